"""The single file against the dispatcher on separate files: every way out, interleaved in one run.

    python -m benchmarks.bench_single [OUT ...]

Without arguments it cuts a ResNet-20 with random weights by width and by depth.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from s2d_runtime import Dispatcher

from benchmarks.bench_parts import BUILD, resnet20
from s2d_convert.base.sessions import make_session
from s2d_convert.exporting.single import ANSWER, THRESHOLDS, write_single
from s2d_convert.exporting.timing import thresholds_for_exit
from s2d_convert.latency.meter import interleave
from s2d_convert.workflows.split_model import SplitOptions, split_model

BATCHES = (1, 8)
SECONDS = 3.0


def bench(folder: Path) -> None:
    """Print the ratio of the single file's time to the dispatcher's."""
    with tempfile.TemporaryDirectory() as place, Dispatcher(folder) as runner:
        write_single(folder, Path(place) / "single.onnx")
        session = make_session((Path(place) / "single.onnx").read_bytes())
        spec, stages = runner.manifest.input, len(runner.manifest.stages)
        for batch in BATCHES:
            shape = (batch, *[n or 1 for n in spec.shape[1:]])
            images = np.random.default_rng(0).normal(size=shape).astype(spec.dtype)
            for k in range(stages):
                limits = thresholds_for_exit(stages, k + 1)
                feeds = {spec.name: images}
                if stages > 1:
                    feeds[THRESHOLDS] = np.asarray(limits, np.float32)
                calls: list[Callable[[], object]] = [
                    partial(runner, images, thresholds=limits),
                    partial(session.run, list(ANSWER), feeds),
                ]
                for call in calls:
                    call()
                times = interleave(calls, SECONDS, rounds=10**6)
                files, single = 1e3 * np.median(times, axis=0)
                low, high = np.percentile(times[:, 1] / times[:, 0], (25, 75))
                print(f"{folder.name}, batch {batch}, exit {k + 1}: files {files:.3f} ms, single {single:.3f} ms, "
                      f"ratio {single / files:.3f} (quartiles {low:.3f} - {high:.3f}), {len(times)} rounds")  # fmt: skip


def main() -> None:
    """Measure the folders on the command line, or two made here."""
    folders = [Path(argument) for argument in sys.argv[1:]]
    if not folders:
        BUILD.mkdir(parents=True, exist_ok=True)
        model = BUILD / "resnet20.onnx"
        if not model.exists():
            onnx.save(resnet20(), str(model))
        for plan in ("width", "depth"):
            folders.append(BUILD / f"resnet20-{plan}.s2d")
            if not folders[-1].exists():
                split_model(SplitOptions(model, plan=plan, stages=2, out=folders[-1]))
    for folder in folders:
        bench(folder)


if __name__ == "__main__":
    main()
