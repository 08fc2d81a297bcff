"""INT8 beside INT8: the static model and the stages, in float32 and in int8, all in one run.

    python benchmarks/bench_int8.py OUT --data IMAGES --test IMAGES [--model STATIC.onnx] [--budgets 0.35,0.45,0.6]

OUT is a converted folder. `--data` is what it was converted with (ranges, temperatures and thresholds come from it),
`--test` has images on which nothing was chosen. Latencies are medians over rounds that time every model once, as ratios
to the static float32 model; the mean of a folder is that of its ways out, weighted with the share of test images that take
them. Without arguments it measures the folder of `make demo`, if it is there.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from s2d_runtime import Dispatcher

from s2d_convert.base.arrays import Array, slices
from s2d_convert.base.sessions import make_session
from s2d_convert.conversion.requantize import USED, Requantization, requantize
from s2d_convert.data.images import Images
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_all, load_data
from s2d_convert.exporting.provenance import Origin, recorded_preprocess
from s2d_convert.exporting.quantize import int8_model
from s2d_convert.exporting.timing import thresholds_for_exit
from s2d_convert.frontend.reference import StaticModel
from s2d_convert.latency.meter import interleave
from s2d_convert.workflows.split_model import open_export

DEMO = Path("build/demo")
RUN_BATCH = 64


@dataclass(frozen=True)
class Row:
    """A line of the table; latencies are ratios to the static model in float32, `apart` the quartiles of the mean's.

    `right` counts agreement where images have no labels; `budget` and the share that leaves at stage 1 are for folders.
    """

    name: str
    right: float
    agree: float
    mean: float
    apart: tuple[float, float]
    worst: float
    megabytes: float
    budget: float | None = None
    leave_first: float | None = None

    @property
    def label(self) -> str:
        """What the line begins with."""
        return self.name if self.budget is None else f"{self.name}, budget {self.budget:g}"


@dataclass(frozen=True)
class Table:
    """The lines, and the milliseconds of the static model's median call."""

    rows: tuple[Row, ...]
    static_ms: float


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Static model and stages, float32 and int8, in one run.")
    parser.add_argument("out", nargs="?", type=Path, default=DEMO / "out")
    parser.add_argument("--data", type=Path, default=DEMO / "train.npz")
    parser.add_argument("--test", type=Path, default=DEMO / "test.npz")
    parser.add_argument("--model", type=Path, help="the static model, where it is not where OUT says")
    parser.add_argument("--budgets", type=lambda text: [float(b) for b in text.split(",")], default=[])
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to time")
    return parser.parse_args()


def static_int8(static: StaticModel, images: Images) -> onnx.ModelProto:
    """Return the static model in int8 with the same options, the layer that makes the logits in float as in the stages."""
    graph = static.graph
    linear = [n.name for n in graph.to_model().graph.node if n.op_type in ("Gemm", "MatMul")][-1:]
    rows = np.linspace(0, len(images) - 1, min(USED, len(images))).astype(np.int64)
    return int8_model(graph.to_model(), {graph.image: np.ascontiguousarray(images.batch(rows))}, excluded=linear)


def answers(images: Images, ask: Callable[[Array], Any]) -> list[Any]:
    """Return the answers of `ask` on all images, batch by batch."""
    return [ask(np.ascontiguousarray(images.batch(part))) for part in slices(len(images), RUN_BATCH)]


def classes_of(session: Any, images: Images) -> Array:
    """Return the classes that a plain session answers, int [B]."""
    name = session.get_inputs()[0].name
    return np.concatenate(
        [a[0].reshape(len(a[0]), -1).argmax(axis=1) for a in answers(images, lambda x: session.run(None, {name: x}))]
    )


def folder_bytes(folder: Path) -> int:
    """Return the size of the stage files."""
    return sum(path.stat().st_size for path in folder.glob("*.onnx"))


def rows_of(
    runners: dict[str, Dispatcher],
    sizes: dict[str, int],
    plain: dict[str, Any],
    *,
    test: Images,
    budgets: Sequence[float | None],
    seconds: float,
) -> Table:
    """Return the table: plain sessions first, the first of them being the reference, then every folder at every budget.

    A budget of None is a folder's own.
    """
    image = np.ascontiguousarray(test.batch(np.arange(1)))
    calls: list[Callable[[], object]] = [partial(s.run, None, {s.get_inputs()[0].name: image}) for s in plain.values()]
    first: dict[str, int] = {}
    for name, runner in runners.items():
        first[name] = len(calls)
        stages = len(runner.manifest.stages)
        calls += [partial(runner, image, thresholds=thresholds_for_exit(stages, k + 1)) for k in range(stages)]
    for call in calls:
        call()
    times = interleave(calls, seconds, rounds=10**6)
    ratio, medians = times / times[:, :1], np.median(times, axis=0)
    static_ms = float(1e3 * medians[0])
    print(f"{len(times)} rounds; static float32 {static_ms:.3f} ms")
    said = {name: classes_of(session, test) for name, session in plain.items()}
    truth = next(iter(said.values()))
    labels = truth if test.labels is None else test.labels

    def row(name: str, answer: Array, costs: Array, weights: Array, size: int) -> Row:
        quartiles = np.percentile(costs @ weights, (25, 75))
        mean = float((np.median(costs, axis=0) * weights).sum())
        worst = float(np.median(costs, axis=0).max())
        return Row(
            name, float((answer == labels).mean()), float((answer == truth).mean()), mean,
            (float(quartiles[0]), float(quartiles[1])), worst, size / 1e6,
        )  # fmt: skip

    found = [row(n, said[n], ratio[:, [i]], np.ones(1), sizes[n]) for i, n in enumerate(plain)]
    for name, runner in runners.items():
        stages = len(runner.manifest.stages)
        costs = ratio[:, first[name] : first[name] + stages]
        for asked in budgets or [None]:
            budget = runner.manifest.default_budget if asked is None else asked
            got = answers(test, partial(runner, budget=budget))
            stage = np.concatenate([a.stage for a in got])
            answer = np.concatenate([a.output.reshape(len(a.output), -1).argmax(axis=1) for a in got])
            share = np.bincount(stage, minlength=stages + 1)[1:] / len(stage)
            line = row(name, answer, costs, share, sizes[name])
            found.append(replace(line, budget=budget, leave_first=float(share[0])))
    return Table(tuple(found), static_ms)


def main() -> None:
    """Convert, time, print."""
    asked = arguments()
    if not asked.out.is_dir():
        print(f"{asked.out} is not there; give a converted folder, or run `make demo` first")
        return
    with tempfile.TemporaryDirectory() as place, open_export(asked.out, static=asked.model) as (runner, static):
        preprocess = recorded_preprocess(runner.manifest)
        seed = Origin.of(runner.manifest).seed
        dataset = load_data(asked.data, preprocess=preprocess, space=LabelSpace(static.graph.classes), seed=seed)
        test = load_all(asked.test, preprocess=preprocess, space=LabelSpace(static.graph.classes))
        folders = {"stages float32": asked.out}
        for kind in ("int8", "int8:early"):
            folders[f"stages {kind}"] = Path(place) / kind.replace(":", "-")
            requantize(
                asked.out, folders[f"stages {kind}"], Requantization(kind), dataset=dataset, static=static, note=print
            )
        models = {"static float32": static.graph.to_model(), "static int8": static_int8(static, dataset.train)}
        sizes = {name: folder_bytes(folder) for name, folder in folders.items()}
        sizes |= {name: model.ByteSize() for name, model in models.items()}
        found = rows_of(
            {name: Dispatcher(folder) for name, folder in folders.items()},
            sizes,
            {name: make_session(model.SerializeToString()) for name, model in models.items()},
            test=test, budgets=asked.budgets, seconds=asked.seconds,
        )  # fmt: skip
    print(f"{'':32}{'accuracy':>10}{'agreement':>11}{'mean':>8}{'quartiles':>16}{'worst':>8}{'MB':>7}")
    for r in found.rows:
        spread = f"{r.apart[0]:.3f} - {r.apart[1]:.3f}"
        print(f"{r.label:32}{r.right:10.2%}{r.agree:11.2%}{r.mean:8.3f}{spread:>16}{r.worst:8.3f}{r.megabytes:7.2f}")


if __name__ == "__main__":
    main()
