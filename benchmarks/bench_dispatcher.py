"""What the dispatcher costs beyond onnxruntime: latency, throughput under eight threads, and memory.

    python -m benchmarks.bench_dispatcher [MODEL.onnx]

Without an argument: a ResNet-20 with random weights, made here, in two stages by depth. Everything is compared with plain
`session.run` calls on the same sessions; every timed call follows a call of the static model, as a request follows other
work, and the order of the calls is drawn anew in every round.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from s2d_runtime import Dispatcher

from benchmarks.bench_parts import BUILD, resnet20
from s2d_convert.base.sessions import make_session
from s2d_convert.workflows.split_model import SplitOptions, split_model

BLOCKS = 10  # the spread is that of so many parts of a run
THREADS = 8
MEMORY = """
import sys, numpy as np
from s2d_runtime import Dispatcher
run = Dispatcher(sys.argv[1], lazy=sys.argv[2] == "lazy")
shape = run.manifest.input.shape[1:]
run(np.zeros((1, *shape), np.float32), thresholds=[0.0] * (len(run.manifest.stages) - 1))
fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(fields["VmRSS"].split()[0]) / 1024)
"""


def bare_chain(runner: Dispatcher, image: np.ndarray[Any, Any]) -> Callable[[], Any]:
    """Return both stages by plain calls on the dispatcher's own sessions."""
    first, second = runner.sessions
    links = [link.name for link in runner.manifest.stages[0].links_out]
    name, names = runner.manifest.input.name, ["output", "confidence"]

    def bare() -> Any:
        _, _, *made = first.run([*names, *links], {name: image})
        return second.run(names, dict(zip(links, made, strict=True)))

    return bare


def bench_latency(out: Path, static: Callable[[Any], Any], batch: int, rounds: int) -> None:
    """Print what a call costs beyond the two session calls, as a share of the static model's latency."""
    with Dispatcher(out) as runner, Dispatcher(out) as watched:
        shape = [n or 1 for n in runner.manifest.input.shape[1:]]
        image = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)
        watched._loaded = runner._loaded  # the same sessions, so that only the counting differs
        watched.monitor()
        bare = bare_chain(runner, image)
        calls: dict[str, Callable[[], Any]] = {
            "bare": bare,
            "bare again": bare,
            "dispatcher": partial(runner, image),
            "monitored": partial(watched, image),
        }
        taken: dict[str, list[float]] = {name: [] for name in calls}
        static_s: list[float] = []
        order = list(calls)
        for _ in range(rounds):
            random.shuffle(order)
            for name in order:
                times = [time.perf_counter()]
                for call in (partial(static, image), calls[name]):
                    call()
                    times.append(time.perf_counter())
                static_s.append(times[1] - times[0])
                taken[name].append(times[2] - times[1])
    base = float(np.median(static_s))
    print(f"batch {batch}: static {1e3 * base:.3f} ms, two stages bare {np.median(taken['bare']) / base:.3f} of it")
    for name, before in (("bare again", "bare"), ("dispatcher", "bare"), ("monitored", "dispatcher")):
        cut = [np.array_split(np.array(taken[n]), BLOCKS) for n in (name, before)]
        more = sorted(float(np.median(a) - np.median(b)) / base for a, b in zip(*cut, strict=True))
        middle = float(np.median(taken[name]) - np.median(taken[before]))
        print(f"  {name:10} beyond {before:10} {1e6 * middle:7.1f} us, {middle / base:7.2%} of static "
              f"(quartiles of {BLOCKS} parts {more[2]:.2%} to {more[-3]:.2%})")  # fmt: skip


def bench_threads(out: Path, calls: int) -> None:
    """Print the throughput of eight threads on one dispatcher, relative to plain calls on the same sessions."""
    with Dispatcher(out) as runner:
        shape = [n or 1 for n in runner.manifest.input.shape[1:]]
        image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
        bare = bare_chain(runner, image)

        def rate(call: Callable[[], Any]) -> float:
            with ThreadPoolExecutor(THREADS) as pool:
                before = time.perf_counter()
                list(pool.map(lambda _: [call() for _ in range(calls)], range(THREADS)))
                return THREADS * calls / (time.perf_counter() - before)

        ratios = []
        for _ in range(9):
            plain, own = rate(bare), rate(partial(runner, image))
            ratios.append(own / plain)
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    print(f"{THREADS} threads: {own:.0f} images/s, {middle:.3f} of plain calls (quartiles {low:.3f} to {high:.3f})")


def bench_memory(out: Path) -> None:
    """Print the resident memory of a process that has answered one image at stage 1."""
    for kind in ("eager", "lazy"):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(out), kind], capture_output=True, text=True, check=True
        )
        print(f"resident after one answer of stage 1, {kind}: {float(done.stdout):.1f} MiB")


def main() -> None:
    """Measure the model on the command line, or one made here."""
    BUILD.mkdir(parents=True, exist_ok=True)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else BUILD / "resnet20.onnx"
    if not path.exists():
        onnx.save(resnet20(), str(path))
    out = BUILD / f"dispatcher-{path.stem}.s2d"
    if not out.exists():
        split_model(SplitOptions(path, plan="depth", stages=2, out=out))
    session = make_session(path.read_bytes())
    name = session.get_inputs()[0].name

    def static(image: Any) -> object:
        return session.run(None, {name: image})

    bench_latency(out, static, batch=1, rounds=2000)
    bench_latency(out, static, batch=32, rounds=60)
    bench_threads(out, calls=60)
    bench_memory(out)


if __name__ == "__main__":
    main()
