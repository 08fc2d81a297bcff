"""The small HTTP server under more load than it has places for: nothing lost, nothing wrong, memory where it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from example_exports import make_example

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "load_server.py"


@pytest.mark.slow
def test_a_minute_of_everything_at_once(tmp_path: Path) -> None:
    example = make_example(tmp_path)
    command = [sys.executable, str(SCRIPT), str(example.folder), "--seconds", "60"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr, found["lost"], found["wrong"]) == (0, "", [], [])
    statuses = {name.rpartition(": ")[2] for name in found["answered"]}
    assert statuses == {"200", "400", "404", "408", "413", "415", "503", "gone"}
    memory = found["memory_mib"]
    assert memory["most"] - memory["warm"] < 16
    before, after = found["open_files"]
    assert after <= before + 5  # the event loop's own, made at the first connection
