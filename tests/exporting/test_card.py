"""README.md of an export: right numbers, code that runs as it stands, and text from outside that stays text."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from s2d_runtime import Dispatcher, OutputSpec
from test_report import EVIL, OUTCOMES, manifest
from text_nets import residual

from s2d_convert.exporting.report.card import card, escaped
from s2d_convert.workflows.split_model import SplitOptions, split_model


def code(text: str, language: str) -> list[str]:
    """The blocks of code of one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_card_says_what_it_is_with_verdict_and_numbers() -> None:
    text = card(manifest(measured={**manifest().measured, "outcomes": [OUTCOMES[2]]}))
    lines = text.splitlines()
    assert lines[0] == "# model.onnx in stages"
    assert "> Loses 1.0 ± 0.4 points of accuracy and takes 0.550 of the static model's time" in text
    assert "| accuracy | 90.00 % | 89.00 % |" in lines
    assert "| mean latency | 1.000 ms | 0.600 ms |" in lines
    assert "| 0.6 (in use) | 0.550 | 89.00 % | 1.00 ± 0.40 | 70 %, 30 % |" in lines
    assert "at most 1 % below" in text
    assert code(text, "sh")[-1].splitlines()[0].startswith("s2d evaluate . --data IMAGES  #")


def test_labels_are_told_as_such() -> None:
    scores = {"agreement": 0.98, "right_static": 0.97, "right_dynamic": 0.96}
    whole = manifest(measured={**manifest().measured, "outcomes": [OUTCOMES[2]], "labels": scores})
    text = card(replace(whole, output=OutputSpec((None, 3), "sigmoid")))
    lines = text.splitlines()
    assert "> Loses 1.0 ± 0.4 points of exact match and takes 0.550 of the static model's time" in text
    assert "| exact match of all labels | 90.00 % | 89.00 % |" in lines
    assert "| labels right | 97.00 % | 96.00 % |" in lines
    assert "| agreement, label by label | 100.00 % | 98.00 % |" in lines
    assert "a label is given where its number is above 0.5" in text
    assert "exact match is at most 1 % below" in text


@pytest.mark.parametrize("data", ["made-up", "none"])
def test_without_measurements_it_says_so(data: str) -> None:
    text = card(manifest(measured={}, data=data))
    assert ("the model was only split" in text) == (data == "none")
    assert ("come from made-up images" in text) == (data == "made-up")
    assert "| accuracy |" not in text


@pytest.mark.parametrize(
    "text", [EVIL, "a|b", "`x`", "[a](b)", "**b**", "# h\n# h", "<img src=x>", "\x1b[2J", "![](x)", "a_b"]
)
def test_text_from_outside_stays_text(text: str) -> None:
    safe = escaped(text)
    assert "\n" not in safe
    assert safe.isprintable()
    assert not re.search(r"(?<!\\)[`*_\[\]#|~<>]", safe)
    whole = card(manifest(text))
    outside = re.sub(r"```.*?\n```", "", whole, flags=re.DOTALL)
    assert "<" not in outside
    heads = [line for line in outside.splitlines() if line.startswith("# ")]
    assert len(heads) == 1
    assert len({line.count("|") for line in whole.splitlines() if line.startswith("| accuracy")}) == 1


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported folder whose image has an awkward name."""
    place = tmp_path_factory.mktemp("card")
    model = residual()
    model.graph.input[0].name = 'im"age `s`'
    model.graph.node[0].input[0] = model.graph.input[0].name
    onnx.save(model, str(place / "model.onnx"))
    split_model(SplitOptions(place / "model.onnx", plan="width", stages=2, out=place / "out"))
    return place / "out"


@pytest.mark.parametrize("number", [0, 2])
def test_the_code_for_python_and_for_onnxruntime_runs_as_it_stands(export: Path, number: int) -> None:
    blocks = code((export / "README.md").read_text(encoding="utf-8"), "python")
    assert len(blocks) == 3
    done = subprocess.run(
        [sys.executable, "-c", blocks[number]], cwd=export, capture_output=True, text=True, check=True
    )
    with Dispatcher(export) as model:
        expected = model(np.zeros((1, *(n or 0 for n in model.manifest.input.shape[1:])), np.float32))
    values = [float(n) for n in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", done.stdout)]
    assert values[:3] == pytest.approx(expected.output[0].tolist(), abs=1e-4)
    assert str(expected.stage[0]) in done.stdout


def test_the_server_answers_the_request_of_the_card(export: Path) -> None:
    for package in ("starlette", "prometheus_client"):
        pytest.importorskip(package, reason="the extra s2d-runtime[http] is not installed")
    http_client = importlib.import_module("http_client")
    block = code((export / "README.md").read_text(encoding="utf-8"), "python")[1]
    with http_client.running(export) as server:
        here = block.replace("127.0.0.1:8000/v2/models/model/", f"127.0.0.1:{server.port}/v2/models/toy/")
        assert here != block
        done = subprocess.run([sys.executable, "-c", here], cwd=export, capture_output=True, text=True, check=True)
    assert {"output", "confidence", "stage"} <= set(re.findall(r"'(\w+)':", done.stdout))
