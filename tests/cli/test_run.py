"""`s2d run`: answers for images, folders and arrays, with names where they are known, in lines or as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import call
from example_exports import Example, make_example
from PIL import Image
from s2d_runtime import Classifier


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Example:
    """A folder of two stages whose manifest has names, and a folder with pictures of which one is broken."""
    made = make_example(tmp_path)
    path = made.folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["provenance"]["class_names"] = ["cat", "dog", "\x1bfox"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    (tmp_path / "images" / "inner").mkdir(parents=True)
    for number, pixels in enumerate(made.pixels[:6]):
        Image.fromarray(pixels).save(tmp_path / "images" / ("inner" if number % 2 else "") / f"{number}.png")
    np.save(tmp_path / "inputs.npy", made.images[:3])
    monkeypatch.chdir(tmp_path)
    return made


def test_one_picture_is_one_line(example: Example, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "run", "OUT", "images/0.png")
    expected = Classifier(example.folder)(example.pixels[0])
    (label,) = expected.labels
    assert (code, err) == (0, "")
    line = f"0: class {label.index} ({label.name}), confidence {expected.confidence:.4f}, stage {expected.stage}\n"
    assert out == line
    assert "\x1b" not in out


def test_a_folder_as_json_has_names_probabilities_and_stages(
    example: Example, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "run", "OUT", "images", "--json", "--budget", "0.8")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    files = sorted((Path("images/inner") if k % 2 else Path("images")) / f"{k}.png" for k in range(6))
    assert [row["image"] for row in rows] == list(map(str, files))
    found = Classifier(example.folder)(files, budget=0.8)
    assert [{k: v for k, v in row.items() if k != "image"} for row in rows] == [one.to_json() for one in found]
    assert set(rows[0]["labels"][0]) == {"name", "class", "probability"}


def test_several_arguments_and_an_array(example: Example, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "run", "OUT", "images/0.png", "inputs.npy", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [(row["image"], row.get("row")) for row in rows] == [
        ("images/0.png", None), ("inputs.npy", 0), ("inputs.npy", 1), ("inputs.npy", 2),
    ]  # fmt: skip
    assert rows[0]["labels"] == rows[1]["labels"]
    assert len(call(capsys, "run", "OUT", "inputs.npy")[1].splitlines()) == 3


def test_a_broken_picture_among_others_is_left_out_and_told(
    example: Example, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("images/3a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    code, out, err = call(capsys, "run", "OUT", "images")
    assert code == 5
    assert len(out.splitlines()) == 6
    assert "warning: images/3a.png: cannot be read as an image" in err
    assert err.splitlines()[-1] == "error: 1 of 7 images cannot be read, the first is images/3a.png; replace them"
    code, out, _ = call(capsys, "run", "OUT", "images", "--json")
    assert code == 5
    assert [row["image"] for row in json.loads(out) if "error" in row] == ["images/3a.png"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["missing.png"], 5, "missing.png: no such file"),
        (["images/0.png", "missing.png"], 5, "1 of 2 images cannot be read, the first is missing.png"),
        (["empty"], 5, "empty: holds no images"),
        ([], 2, "IMAGE"),
    ],
)
def test_bad_input_is_one_sentence(
    example: Example, capsys: pytest.CaptureFixture[str], args: list[str], code: int, words: str
) -> None:
    Path("empty").mkdir()
    got, _, err = call(capsys, "run", "OUT", *args)
    assert got == code
    assert words in err.splitlines()[-1]


def test_pictures_for_a_folder_that_knows_no_pixels_are_refused_once(
    example: Example, capsys: pytest.CaptureFixture[str]
) -> None:
    path = example.folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["preprocess"]["known"] = False
    path.write_text(json.dumps(manifest), encoding="utf-8")
    code, out, err = call(capsys, "run", "OUT", "images")
    assert (code, out, len(err.splitlines())) == (5, "", 1)
    assert "pixels, but the model was converted with float32 arrays" in err


def test_names_are_not_shown_where_none_are_known(example: Example, capsys: pytest.CaptureFixture[str]) -> None:
    path = example.folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["provenance"]["class_names"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert "(" not in call(capsys, "run", "OUT", "images/0.png")[1]
