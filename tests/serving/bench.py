"""How fast the serving stacks answer on this machine: rate and latency of single images over gRPC, sixteen at a time.

    python tests/serving/bench.py OUT [--requests 400] [--runs 5] [STACK ...]

OUT is any exported folder whose input is float32; its default budget holds. Prints a line per stack: medians over the runs,
and the lowest and highest. Client and server share the machine, so the rates say little about either alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from s2d_runtime import Dispatcher

sys.path.append(str(Path(__file__).parent.parent / "support"))  # the other helpers of the tests
from environments import environment
from stacks import CLIENT, STACKS, Ports, free_ports


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Rate and latency of the serving stacks.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("stacks", nargs="*", default=list(STACKS), metavar="STACK", help=", ".join(STACKS))
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args(arguments)
    with Dispatcher(given.folder) as runner:
        shape = [n or 1 for n in runner.manifest.input.shape]
        images = np.random.default_rng(0).normal(size=(given.requests, *shape)).astype(np.float32)
        started = time.perf_counter()
        stages = np.concatenate([runner(image).stage for image in images])
        rate = given.requests / (time.perf_counter() - started)
    sys.stdout.write(f"the dispatcher alone: {rate:.0f} images/s, {(stages == 1).mean():.0%} leave at stage 1\n")
    for stack in given.stacks:
        runs = measured(stack, given.folder.resolve(), images, given.runs)
        texts = [f"{np.median(row):.1f} ({min(row):.1f} to {max(row):.1f})" for row in zip(*runs, strict=True)]
        sys.stdout.write(f"{stack}: {texts[0]} requests/s, median {texts[1]} ms, 99 % {texts[2]} ms\n")


def measured(stack: str, folder: Path, images: np.ndarray, runs: int) -> list[tuple[float, float, float]]:
    """Requests/s, median and 99 % latency in ms of every run; the first one only warms up."""
    ports = Ports(*free_ports(3))
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        np.savez(place / "requests.npz", **{str(i): image for i, image in enumerate(images)})
        (place / "parameters.json").write_text(json.dumps([{}] * len(images)), encoding="utf-8")
        client = Path(__file__).parent / "v2_client.py"
        command = [str(environment("client", CLIENT)), str(client), "grpc", str(ports.grpc), "toy", name]
        found = []
        with STACKS[stack](folder, place, ports):
            for _ in range(runs + 1):
                subprocess.run(command, check=True, timeout=300, env={"PATH": os.environ["PATH"]})
                if errors := json.loads((place / "errors.json").read_text(encoding="utf-8")):
                    sys.exit(f"{stack}: {errors[0]}")
                seconds = json.loads((place / "seconds.json").read_text(encoding="utf-8"))
                middle, slow = np.quantile(seconds["each"], [0.5, 0.99])
                found.append((len(images) / seconds["all"], 1e3 * float(middle), 1e3 * float(slow)))
    return found[1:]


if __name__ == "__main__":
    main()
