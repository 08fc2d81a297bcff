"""From pictures of another shape and scale to a folder that reads them: the whole way on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import call
from PIL import Image
from s2d_runtime import Dispatcher
from s2d_runtime.pictures import read_image
from tiny import TINY, make_model, quadrants, use_tiny_effort

from s2d_convert.exporting.provenance import recorded_preprocess

SHARES = {0: 120, 1: 90, 2: 60, 3: 12}  # images per class
AS_TRAINED = ["--scale", "1", "--mean", "100", "--std", "30", "--resize", "stretch", "--no-flip"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model, and wide pictures of unequal classes of which one is broken."""
    root = tmp_path_factory.mktemp("pictures")
    make_model(root / "model.onnx")
    images, labels = quadrants(1500, 5)
    for label, count in SHARES.items():
        (root / "data" / f"q{label}").mkdir(parents=True)
        for number, image in enumerate(images[labels == label][:count]):
            pixels = np.clip(np.rint(100 + 30 * image.transpose(1, 2, 0)), 0, 255).astype(np.uint8)
            wide = Image.fromarray(pixels).resize((48, 24), Image.Resampling.NEAREST)
            wide.save(root / "data" / f"q{label}" / f"{number:03}.png")
    (root / "data/q0/050.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return root


def test_pictures_are_read_as_the_model_was_trained(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny_effort(monkeypatch)
    monkeypatch.chdir(place)
    begin = ["convert", "model.onnx", "--effort", TINY, "--data", "data"]
    code, out, err = call(capsys, *begin, "--strict", *AS_TRAINED)
    assert code == 5
    assert "050.png: cannot be read as an image" in err
    code, out, err = call(capsys, *begin, "--plan", "depth", "--out", "out.s2d", *AS_TRAINED)
    assert code in (0, 3, 10), err  # so tiny a network may be no faster in stages
    words = " ".join(err.split())
    assert "1 of 282 images cannot be read and are left out: q0/050.png" in words
    assert "(balanced " in words
    assert "cropped away" not in words
    assert "balanced accuracy" in out
    assert "class by class" in out
    manifest = json.loads((place / "out.s2d/manifest.json").read_text())
    assert manifest["provenance"]["class_names"] == ["q0", "q1", "q2", "q3"]
    measured = manifest["measured"]
    assert {row["name"] for row in measured["per_class"]} == {"q0", "q1", "q2", "q3"}
    assert sum(row["images"] for row in measured["per_class"]) == measured["images"]
    right = sum(row["images"] * row["correct_dynamic"] for row in measured["per_class"]) / measured["images"]
    assert right == pytest.approx(measured["correct_dynamic"])
    assert "Class by class" in (place / "out.s2d/report.html").read_text()
    with Dispatcher(place / "out.s2d") as runner:
        preprocess = recorded_preprocess(runner.manifest)
        picture = place / "data/q1/003.png"
        answer = runner(preprocess(read_image(picture, preprocess)[None]))
    assert (preprocess.fit, preprocess.scale, preprocess.mean, preprocess.std) == ("stretch", 1, (100,) * 3, (30,) * 3)
    assert call(capsys, "run", "out.s2d", str(picture))[1].startswith(
        f"0: class {(k := int(answer.output.argmax()))} (q{k}), "
    )
    code, out, err = call(capsys, "evaluate", "out.s2d", "--data", "data")
    assert code == 0
    assert "warning: data: 1 of 282 images cannot be read" in err
    assert "class by class" in out
    assert call(capsys, "evaluate", "out.s2d", "--data", "data", "--strict")[0] == 5
    assert call(capsys, "calibrate", "out.s2d", "--data", "data", "--strict")[0] == 5
