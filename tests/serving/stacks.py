"""Serving stacks for tests: an environment of its own for each, made under build/serving, and servers on loopback."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
RUNTIME = ROOT / "runtime"
READY_S = 120.0
INSTALL_S = 900


def environment(name: str, requirements: Sequence[str]) -> Path:
    """The Python of an environment with these requirements; skips the test where they cannot be installed."""
    digest = hashlib.sha256("\n".join((sys.version, *requirements)).encode()).hexdigest()
    home = ROOT / "build" / "serving" / name
    python, stamp = home / "bin" / "python", home / "installed"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return python
    shutil.rmtree(home, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", home], check=True, timeout=INSTALL_S)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run([*pip, *requirements], capture_output=True, text=True, check=False, timeout=INSTALL_S)
    if done.returncode:
        pytest.skip(f"{name}: cannot be installed here ({(done.stderr.splitlines() or ['no reason given'])[-1]})")
    stamp.write_text(digest, encoding="utf-8")
    return python


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def server(
    command: Sequence[str | Path], *, ready: str, log: Path, env: Mapping[str, str] | None = None
) -> Iterator[int]:
    """A server process that answers 200 at the URL `ready`; yields its process id and stops it at the end."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(map(str, command)), stdout=output, stderr=subprocess.STDOUT, env={**clean, **(env or {})}
        )
    try:
        _wait(process, ready, log)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], ready: str, log: Path) -> None:
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(ready, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:  # not listening yet, or not ready
            time.sleep(0.2)
    pytest.fail(f"the server did not get ready:\n{log.read_text(errors='replace')[-6000:]}")
