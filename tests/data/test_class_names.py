"""Names of classes: from files, from what exporters write into the metadata, and which of several sources counts."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from s2d_runtime import DispatcherError, Manifest
from s2d_runtime.names import class_names
from text_nets import residual

from s2d_convert.api.keywords import read_options
from s2d_convert.conversion.options import ConvertOptions
from s2d_convert.data.class_names import LONGEST, check_names, chosen_names, names_in_metadata, read_names
from s2d_convert.errors import UsageError
from s2d_convert.frontend.load import load_graph
from s2d_convert.workflows.split_model import SplitOptions, split_model

NAMES = ("cat", "dog", "red fox")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("names", "{0: 'cat', 1: 'dog', 2: 'red fox'}"),  # ultralytics
        ("names", "{2: 'red fox', 0: 'cat', 1: 'dog'}"),
        ("names", '["cat", "dog", "red fox"]'),
        ("labels", '["cat", "dog", "red fox"]'),
        ("class_names", '{"0": "cat", "1": "dog", "2": "red fox"}'),
        ("class_names", '[{"0": "cat", "1": "dog", "2": "red fox"}]'),
        ("id2label", '{"0": "cat", "1": "dog", "2": "red fox"}'),
        ("label2id", '{"cat": 0, "red fox": 2, "dog": 1}'),
        ("classes", "cat,dog, red fox"),
        ("LABELS", "cat\ndog\nred fox\n"),
    ],
)
def test_metadata_as_exporters_write_it(key: str, text: str) -> None:
    assert names_in_metadata({"task": "classify", key: text}, 3) == NAMES


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cat,dog",
        "{0: 'cat', 2: 'dog', 3: 'x'}",
        "[1, 2, 3]",
        "{0: 'a', 1: 'b', 2: ''}",
        "[" * 100_000,
        "3",
        "a\x00,b,c",
    ],
)
def test_other_metadata_gives_no_names(text: str) -> None:
    assert names_in_metadata({"names": text}, 3) is None


def test_files_of_names(tmp_path: Path) -> None:
    files = {
        "lines.txt": "cat\ndog\r\nred fox\n\n",
        "list.json": json.dumps(NAMES),
        "table.json": json.dumps(dict(enumerate(NAMES))),
        "config.json": json.dumps({"hidden": [1], "id2label": dict(enumerate(NAMES)), "label2id": {"x": 0}}),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert read_names(tmp_path / name) == NAMES
    assert read_names("cat, dog,red fox") == NAMES
    assert read_names("cat") == ("cat",)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.txt", None, "no such file"),
        ("a.json", b"{}", "holds no list of names"),
        ("a.json", b"{", "cannot be read"),
        ("a.txt", b"\xff\xfe\xff", "cannot be read"),
        ("a.json", b"[" * 100_000, "cannot be read"),
    ],
)
def test_a_file_without_names_is_one_sentence(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=words):
        read_names(str(tmp_path / name))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a", "b"), r"2 names \('a', 'b'\), the model has 3 classes"),
        (("a", " ", "c"), "the name of class 1 is ' '"),
        (("a", "b", "c" * (LONGEST + 1)), "the name of class 2"),
        (("a", "b\x1b", "c"), "the name of class 1"),
    ],
)
def test_names_must_fit_the_model(names: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_names(names, 3)


def test_which_names_count() -> None:
    told: list[str] = []
    folders, metadata, asked = ("a", "b"), ("Ann", "Bob"), ("x", "y")
    assert chosen_names(asked, folders, metadata, warn=told.append) == asked
    assert chosen_names(None, folders, metadata, warn=told.append) == folders
    assert chosen_names(None, ("0", "1"), metadata, warn=told.append) == metadata
    assert chosen_names(None, ("0", "1"), None, warn=told.append) == ("0", "1")
    assert chosen_names(None, None, metadata, warn=told.append) == metadata
    assert chosen_names(None, None, None, warn=told.append) is None
    assert told == []
    assert chosen_names(None, ("a", "b", "c"), ("a", "c", "b"), warn=told.append) == ("a", "b", "c")
    assert told[0].startswith("class 1 is 'b' by the order of the class folders and 'c' by the model's metadata")


def test_names_reach_the_manifest(tmp_path: Path) -> None:
    model = residual()
    count = load_graph_classes(model, tmp_path)
    names = tuple(f"name {k}" for k in range(count))
    entry = model.metadata_props.add()
    entry.key, entry.value = "names", str(dict(enumerate(names)))
    onnx.save(model, str(tmp_path / "named.onnx"))
    assert load_graph(tmp_path / "named.onnx").class_names == names
    for out, classes, expected in (("a", None, names), ("b", tuple("abcdefgh"[:count]), tuple("abcdefgh"[:count]))):
        made = split_model(
            SplitOptions(tmp_path / "named.onnx", plan="depth", stages=2, out=tmp_path / out, classes=classes)
        )
        assert class_names(made) == class_names(Manifest.load(tmp_path / out)) == expected
    without = split_model(SplitOptions(tmp_path / "plain.onnx", plan="depth", stages=2, out=tmp_path / "c"))
    assert class_names(without) is None
    assert "class_names" not in without.provenance


def load_graph_classes(model: onnx.ModelProto, folder: Path) -> int:
    """The number of classes of a model, which is saved as plain.onnx."""
    onnx.save(model, str(folder / "plain.onnx"))
    return load_graph(folder / "plain.onnx").classes


@pytest.mark.parametrize("found", ["cat", ["cat"], [1, 2, 3], {"0": "cat"}])
def test_recorded_names_are_not_trusted(tmp_path: Path, found: object) -> None:
    load_graph_classes(residual(), tmp_path)
    split_model(SplitOptions(tmp_path / "plain.onnx", plan="depth", stages=2, out=tmp_path / "out"))
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["provenance"]["class_names"] = found
    with pytest.raises(DispatcherError, match="class_names: got"):
        class_names(Manifest.from_json(manifest))


def test_the_option_takes_names_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\n", encoding="utf-8")
    for given in (["a", "b"], ("a", "b"), "a,b", str(tmp_path / "names.txt"), tmp_path / "names.txt"):
        asked = read_options(ConvertOptions, {"model": "m.onnx", "out": "o", "classes": given}, call="convert")
        assert asked.classes == ("a", "b")
        assert "classes" not in asked.fingerprint()
    with pytest.raises(UsageError, match="classes: got 3; expected names, or a file"):
        read_options(ConvertOptions, {"model": "m.onnx", "out": "o", "classes": 3}, call="convert")
