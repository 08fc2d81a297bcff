"""How often the promise of `s2d calibrate --max-drop` is broken, on real images: many draws of calibration images from a pool.

    python benchmarks/bench_promise.py OUT --data POOL [--model MODEL.onnx] [--cache scores.npz]

The answers of every stage and of the static model on all images of POOL are computed once (and kept in --cache). Then, for
every size of the calibration set and every bound, DRAWS sets are drawn from the pool with replacement, temperatures, order
and test are made from each as `s2d calibrate` makes them, and the risk of the cheapest policy that is kept is counted on the
whole pool: the pool is the population, so that this is the truth and no estimate. POOL must hold images that the conversion
has not seen. Beside it stands what the promise is good for: the share of images that leave before the last stage. Writes a
Markdown table.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from s2d_convert.calibration.policies import Divided, Scores, fit_temperatures, promised_policies
from s2d_convert.calibration.risk_control import RiskBound
from s2d_convert.calibration.thresholds import confidences, exits
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_all
from s2d_convert.errors import DataError, PromiseError
from s2d_convert.exporting.provenance import recorded_preprocess
from s2d_convert.workflows.recalibrate import FIT_SHARE, CalibrateOptions, read_scores
from s2d_convert.workflows.split_model import open_export

SIZES, DROPS = (500, 1000, 2000, 5000), (0.01, 0.02)


class Outcome(NamedTuple):
    """Of one draw: the cheapest policy that is kept, its true risk and the share of images that leave early; NaN where
    none is."""

    risk: float
    early: float


def main() -> None:
    arguments = parse()
    scores, cost = load(arguments)
    print(
        f"{arguments.folder}, pool of {len(scores)} images, {arguments.draws} draws, confidence {arguments.confidence:g}\n"
    )
    print("| risk | bound | images | broken | no promise | risk, mean | risk, largest | leave early |")
    print("|---|---|---|---|---|---|---|---|")
    kinds = [("disagreement", Scores(scores.logits, scores.static_classes, None))]
    kinds += [("accuracy drop", scores)] if scores.labels is not None else []
    for name, kind in kinds:
        for drop in DROPS:
            for size in SIZES:
                row(name, kind, cost, RiskBound(drop, arguments.confidence), size=size, draws=arguments.draws)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--confidence", type=float, default=0.95)
    return parser.parse_args()


def load(arguments: argparse.Namespace) -> tuple[Scores, tuple[float, ...]]:
    """Return all answers on the pool, and the cost of every stage."""
    with open_export(arguments.folder, static=arguments.model) as (runner, static):
        cost = tuple(stage.latency_ratio for stage in runner.manifest.stages)
        if arguments.cache and arguments.cache.exists():
            kept = np.load(arguments.cache)
            labels = kept["labels"] if kept["labels"].size else None
            return Scores(kept["logits"], kept["said"], labels), cost
        images = load_all(
            arguments.data, preprocess=recorded_preprocess(runner.manifest), space=LabelSpace(static.graph.classes)
        )
        scores = read_scores(runner, static, images, CalibrateOptions(arguments.folder, arguments.data))
    if arguments.cache:
        labels = np.empty(0, np.int64) if scores.labels is None else scores.labels
        np.savez(arguments.cache, logits=scores.logits, said=scores.static_classes, labels=labels)
    return scores, cost


def row(name: str, scores: Scores, cost: tuple[float, ...], risk_bound: RiskBound, *, size: int, draws: int) -> None:
    """Print one line of the table."""
    rng = np.random.default_rng([size, round(1e6 * risk_bound.max_drop)])
    found = np.array([one_draw(scores, cost, risk_bound, rng.integers(0, len(scores), size)) for _ in range(draws)])
    risk, early = found.T
    none = np.isnan(risk)
    head = f"| {name} | {100 * risk_bound.max_drop:g} % | {size} "
    if none.all():
        print(f"{head}| - | {none.mean():.1%} | - | - | - |", flush=True)
        return
    broken = float((risk > risk_bound.max_drop).mean())
    error = math.sqrt(max(broken * (1 - broken), 1 / draws) / draws)
    print(f"{head}| {broken:.1%} ± {error:.1%} | {none.mean():.1%} | {np.nanmean(risk):.2%} | {np.nanmax(risk):.2%} "
          f"| {np.nanmean(early):.1%} ± {np.nanstd(early):.1%} |", flush=True)  # fmt: skip


def one_draw(scores: Scores, cost: tuple[float, ...], risk_bound: RiskBound, rows: np.ndarray) -> Outcome:
    """Calibrate on these rows; risk and latency are counted on all."""
    count = round(FIT_SHARE * len(rows))
    fit, test = scores.take(rows[:count]), scores.take(rows[count:])
    temperatures = fit_temperatures(fit)
    try:
        chosen = promised_policies(Divided(fit, test), temperatures, cost=cost, risk_bound=risk_bound, budget=None)
    except (DataError, PromiseError):
        return Outcome(math.nan, math.nan)
    thresholds = next(p.thresholds for p in chosen.policies if p.budget == chosen.default_budget)
    stage = exits(confidences(scores.logits, temperatures), thresholds)
    risk = scores.losses[stage, np.arange(len(stage))].mean()
    return Outcome(float(risk), float((stage < len(cost) - 1).mean()))


if __name__ == "__main__":
    main()
