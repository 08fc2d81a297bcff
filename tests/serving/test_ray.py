"""`s2d serve OUT --ray` and, in `make slow`, a two-node Ray cluster under load in which replicas die."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from environments import environment
from stacks import ROOT, RUNTIME
from toy_exports import PAIR, policy, write_export

from s2d_convert.cli.main import main

HERE = Path(__file__).parent
RAY = ("-e", f"{RUNTIME}[ray]")
SETTINGS = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
WITHOUT_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed here")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param(["--ray"], "is missing; pip install 's2d-runtime[ray]'", marks=WITHOUT_RAY),
        (["--ray", "--workers", "2"], "--workers: means nothing beside --ray"),
        (["--replicas", "2"], "--replicas: means nothing without --ray"),
        (["--config", "config.yaml"], "--config: means nothing without --ray"),
    ],
)
def test_what_has_no_meaning_is_refused(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["serve", str(tmp_path), *options])
    told = capsys.readouterr().err
    assert stop.value.code == 2
    assert words in told
    assert told.count("\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_two_nodes_under_load_lose_nothing(tmp_path: Path) -> None:
    python = environment("ray", RAY)
    folder, place = tmp_path / "out", tmp_path / "place"
    folder.mkdir()
    place.mkdir()
    write_export(folder, PAIR, policies=[policy(0.5, [0.5]), policy(1.0, [1.01])])
    env = {**os.environ, **SETTINGS}
    env.pop("PYTHONPATH", None)
    command = [str(python), str(HERE / "ray_check.py"), str(folder), str(place)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    found = json.loads((place / "results.json").read_text(encoding="utf-8"))
    assert found["free"] == {"first": 0, "second": 0}  # every stage is on the node that has its resource
    assert found["bad"] == [400, 400, 400]
    assert found["picture"] == 415
    assert found["load"]["statuses"] == {"200": 300}
    assert found["stage 2 dies"]["statuses"] == {"200": 300}  # stage 1 asks again: clients see nothing of it
    assert found["stage 1 dies"]["statuses"]["200"] == 300  # clients that ask again lose nothing
    assert found["live budget"]["statuses"] == {"200": 100}
    assert found["no replica restarted"] is True
    assert [name for name, part in found.items() if isinstance(part, dict) and part.get("wrong")] == []


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_search_on_two_nodes_finds_what_it_finds_without_them(tmp_path: Path) -> None:
    """Ray comes from its own environment, torch and onnx from this one."""
    python = environment("ray", RAY)
    command = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    ray = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    paths = os.pathsep.join([str(ROOT), str(RUNTIME), str(ROOT / "tests"), ray])
    command = [sys.executable, str(HERE / "spread_check.py"), str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, **SETTINGS, "PYTHONPATH": paths}, capture_output=True, text=True,
                          check=False, timeout=1200)  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["common"] >= 2
    assert found["same"]
