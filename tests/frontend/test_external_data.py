"""Weights beside a file: links of caches and hard links are read, links out of the folder and paths that reach out are not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from helpers import assert_close, run
from text_nets import chain

from s2d_convert.errors import ModelError
from s2d_convert.frontend import load_graph
from s2d_convert.frontend.equivalence import noise

DATA = "model.onnx.data"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with a model and its weights beside it."""
    folder = tmp_path / "source"
    folder.mkdir()
    onnx.save(chain(), str(folder / "model.onnx"), save_as_external_data=True, size_threshold=0, location=DATA)
    return folder


def hub_cache(source: Path, root: Path) -> Path:
    """Names that link to contents, as the caches of hubs lie."""
    (root / "blobs").mkdir()
    (root / "snapshots" / "main" / "onnx").mkdir(parents=True)
    for number, name in enumerate(["model.onnx", DATA]):
        shutil.copy(source / name, root / "blobs" / str(number))
        (root / "snapshots" / "main" / "onnx" / name).symlink_to(f"../../../blobs/{number}")
    return root / "snapshots" / "main" / "onnx" / "model.onnx"


def hard_links(source: Path, root: Path) -> Path:
    (root / "hard").mkdir()
    for name in ("model.onnx", DATA):
        os.link(source / name, root / "hard" / name)
    return root / "hard" / "model.onnx"


def linked_folder(source: Path, root: Path) -> Path:
    (root / "link").symlink_to(source)
    return root / "link" / "model.onnx"


@pytest.mark.parametrize("make", [hub_cache, hard_links, linked_folder])
def test_links_of_caches_are_followed(source: Path, tmp_path: Path, make: Callable[[Path, Path], Path]) -> None:
    graph = load_graph(make(source, tmp_path))
    images = noise((3, 3, 8, 8))
    assert_close(run(graph.to_model(), {"image": images}), run(chain(), {"image": images}))


def changed(source: Path, **facts: str) -> Path:
    """The model with other facts about where its first weight lies."""
    path = source / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    entries = model.graph.initializer[0].external_data
    kept = {e.key: e.value for e in entries} | facts
    del entries[:]
    for key, value in kept.items():
        entries.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../secret", "{root}/secret", "sub/../../secret"])
def test_a_file_does_not_reach_out_of_its_folder(source: Path, tmp_path: Path, location: str) -> None:
    shutil.copy(source / DATA, tmp_path / "secret")
    path = changed(source, location=location.format(root=tmp_path))
    with pytest.raises(ModelError, match=r"model\.onnx: the weight 'wa' lies at '.*', outside of the model's folder"):
        load_graph(path)


def test_nor_through_a_link(source: Path, tmp_path: Path) -> None:
    (source / DATA).rename(tmp_path / "secret")
    (source / DATA).symlink_to("../secret")
    with pytest.raises(ModelError, match="a link out of the model's folder; put a copy of 'secret' there"):
        load_graph(source / "model.onnx")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"location": "gone.data"}, r"the file 'gone\.data' with the weight 'wa' is missing"),
        ({"offset": "9999999"}, "has 0 bytes of the weight 'wa' where 864 are expected"),
        ({"length": "17"}, "has 17 bytes of the weight 'wa' where 864 are expected"),
        ({"offset": "-1"}, "does not say where the weight 'wa' lies"),
        ({"location": ""}, "does not say where the weight 'wa' lies"),
    ],
)
def test_what_is_wrong_with_the_weights_is_said(source: Path, facts: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_graph(changed(source, **facts))


def test_weights_that_are_cut_off(source: Path) -> None:
    whole = (source / DATA).read_bytes()
    (source / DATA).write_bytes(whole[:-10])
    with pytest.raises(ModelError, match="it is cut off or belongs to another model"):
        load_graph(source / "model.onnx")
