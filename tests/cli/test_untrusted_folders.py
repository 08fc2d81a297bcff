"""The command line on folders that somebody changed: one sentence and a documented exit code, or the right answer."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from text_nets import chain, residual

from s2d_convert.cli.main import main
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.exporting.provenance import sha256_of
from s2d_convert.workflows.split_model import SplitOptions, split_model

CODES = {0, 4, 5, 6}
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 3, 10**9, 2**63, 10**400, 0.5, -0.0, 1e300, "", "a", "NHWC", "BGR", "uint8", "\u0000", "\x1b[2J",
    "/dev/zero", "x" * 5000, "..", [], {}, [1], [8, 8], [[8, 8]], [10**9, 10**9], ["a", "b"], {"size": 3}, {"a": {}},
)  # fmt: skip


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a split model that has a preprocessing, its static model and a picture beside it."""
    place = tmp_path_factory.mktemp("untrusted")
    onnx.save(residual(), str(place / "model.onnx"))
    out = place / "out"
    split_model(SplitOptions(place / "model.onnx", plan="depth", stages=2, out=out))
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    manifest["preprocess"] = make_preprocess("unit", size=(8, 8), channels=3).to_json()
    manifest["provenance"]["options"] = {"size": [8, 8], "output": None}
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(place / "picture.png")
    np.savez(place / "images.npz", images=np.zeros((4, 3, 8, 8), np.float32))
    return out


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of one command."""
    code = 0
    try:
        main(list(args))
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capsys.readouterr()


def commands(export: Path) -> tuple[tuple[str, ...], ...]:
    return (
        ("run", str(export), str(export.parent / "picture.png")),
        ("bench", str(export), "--seconds", "0.01", "--json"),
    )


def changed(manifest: dict[str, Any], random_: random.Random) -> dict[str, Any]:
    """The manifest with a free-form value replaced or removed."""
    data = copy.deepcopy(manifest)
    home: Any = data
    key: Any = random_.choice(["preprocess", "provenance", "provenance", "measured"])
    while random_.random() < 0.8 and isinstance(home[key], dict | list) and home[key]:
        home = home[key]
        key = random_.choice(list(home)) if isinstance(home, dict) else random_.randrange(len(home))
    if random_.random() < 0.2:
        del home[key]
    else:
        home[key] = random_.choice(VALUES)
    return data


def check(capsys: pytest.CaptureFixture[str], export: Path, numbers: range) -> None:
    file = export / "manifest.json"
    sound = file.read_text(encoding="utf-8")
    answers = {args: call(capsys, *args) for args in commands(export)}
    assert [code for code, _, _ in answers.values()] == [0, 0]
    codes = []
    try:
        for number in numbers:
            random_ = random.Random(number)
            file.write_text(json.dumps(changed(json.loads(sound), random_)), encoding="utf-8")
            for args, (_, right, _) in answers.items():
                code, out, err = call(capsys, *args)
                codes.append(code)
                assert code in CODES, (number, err)
                if code:
                    assert (out, err.count("\n"), err.rstrip("\n").isprintable()) == ("", 1, True), (number, err)
                elif args[0] == "run":
                    # Another preprocessing that fits is another picture; the model stays what it was.
                    assert out.startswith("0: class "), number
                    if json.loads(file.read_text())["preprocess"] == json.loads(sound)["preprocess"]:
                        assert out == right, number
    finally:
        file.write_text(sound, encoding="utf-8")
    assert 0 in codes
    assert len(set(codes)) >= 3


def test_changed_records_end_in_a_sentence_or_in_the_right_answer(
    capsys: pytest.CaptureFixture[str], export: Path
) -> None:
    check(capsys, export, range(60))


@pytest.mark.slow
def test_many_changed_records_end_in_a_sentence_or_in_the_right_answer(
    capsys: pytest.CaptureFixture[str], export: Path
) -> None:
    check(capsys, export, range(1000, 1600))


@pytest.mark.parametrize(
    ("place", "value", "code", "words"),
    [
        (("provenance", "model"), "/dev/zero", 4, "not there"),
        (("provenance", "model"), "x" * 5000, 4, "cannot be read"),
        (("provenance", "model"), ["a"], 6, "provenance.model: got ['a']; expected a text"),
        (("provenance", "model_sha256"), "0" * 64, 4, "not the model that"),
        (("provenance", "options"), 3, 6, "options: got 3; expected an object"),
        (("provenance", "options", "size"), [10**9, 1], 6, "expected two whole numbers"),
        (("provenance", "options", "size"), [9, 9], 4, "is fixed to 8x8"),
        (("provenance", "options", "output"), "nothing", 4, "nothing"),
        (("provenance", "static_macs"), "many", 6, "static_macs: got 'many'; expected a whole number"),
        (("preprocess",), None, 5, "records no preprocessing"),
        (("preprocess",), {}, 5, "are missing"),
        (("preprocess", "size"), [2**20, 2**20], 5, "but the stages take float32 [3, 8, 8]"),
        (("preprocess", "scale"), 10**400, 5, "scale"),
    ],
)
def test_what_a_hostile_record_says_is_told(
    capsys: pytest.CaptureFixture[str], export: Path, place: tuple[str, ...], value: Any, code: int, words: str
) -> None:
    file = export / "manifest.json"
    sound = file.read_text(encoding="utf-8")
    data: Any = json.loads(sound)
    home = data
    for step in place[:-1]:
        home = home[step]
    home[place[-1]] = value
    try:
        file.write_text(json.dumps(data), encoding="utf-8")
        got, out, err = call(capsys, "evaluate", str(export), "--data", str(export.parent / "images.npz"))
    finally:
        file.write_text(sound, encoding="utf-8")
    assert (got, out, err.count("\n")) == (code, "", 1), err
    assert words in err


def test_a_record_that_names_a_model_of_another_shape_is_refused(
    capsys: pytest.CaptureFixture[str], export: Path
) -> None:
    file, other = export / "manifest.json", export.parent / "other.onnx"
    onnx.save(chain(), str(other))
    sound = file.read_text(encoding="utf-8")
    data = json.loads(sound)
    data["provenance"] |= {"model": str(other), "model_sha256": sha256_of(other)}
    try:
        file.write_text(json.dumps(data), encoding="utf-8")
        code, out, err = call(capsys, "bench", str(export))
    finally:
        file.write_text(sound, encoding="utf-8")
    assert (code, out) == (4, "")
    assert "made for [None, 3], but the static model has [None, 5] there" in err
