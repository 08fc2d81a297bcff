"""How well a table predicts what stages cost: random plans that it was not fitted on, predicted and measured.

    python benchmarks/bench_profile.py [MODEL.onnx ...] [--plans 30] [--passes 15] [--clock cpu]

Without a model it makes a WRN-16-4 for 32x32 with random weights. `--clock cpu` is for a machine that others use too.
Prints a line per model; `--json FILE` keeps every prediction beside its measurement.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from s2d_runtime.profile import Settings, machine, measure, profile, write_board
from torch import nn

from s2d_convert.conversion.prepare import read_analysed
from s2d_convert.latency.board import read_board
from s2d_convert.latency.device_table import Table, fit, prediction_error
from s2d_convert.latency.kernels import work_of
from s2d_convert.latency.layout import layout_block
from s2d_convert.plans.divisions import divide
from s2d_convert.plans.heuristics import random_plan
from s2d_convert.plans.space import PlanSpace
from s2d_convert.plans.weights import static_weights
from s2d_convert.slicing.chain import build_stages, chains_of
from s2d_convert.workflows.profile_kit import KitOptions, write_kit

BUILD = Path("build/bench/profile")
TEST_SEED = 20_001


class WideBlock(nn.Module):
    """A pre-activation block of a wide residual network."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(c_in), nn.BatchNorm2d(c_out)
        self.one = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.short = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if c_in != c_out else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.first(x))
        short = x if self.short is None else self.short(y)
        return short + self.two(torch.relu(self.second(self.one(y))))


def wide_resnet(path: Path, *, width: int = 4) -> None:
    """Write a WRN-16 for 32x32 and 10 classes."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
    channels = 16
    for stage in range(3):
        for block in range(2):
            out = 16 * width * 2**stage
            layers.append(WideBlock(channels, out, 2 if stage and not block else 1))
            channels = out
    head = (nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    net = nn.Sequential(*layers, *head).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(net, (torch.zeros(1, 3, 32, 32),), str(path), dynamo=False, opset_version=17,
                          input_names=["image"], dynamic_axes={"image": {0: "N"}})  # fmt: skip


def bench(model: Path, settings: Settings, *, plans: int) -> dict[str, Any]:
    """Make the kit, measure it, and compare predictions with measurements of `plans` other random plans."""
    kit, board = BUILD / f"{model.stem}.kit", BUILD / f"{model.stem}.json"
    started = time.perf_counter()
    if not kit.exists():
        write_kit(model, kit, KitOptions())
    made = time.perf_counter()
    write_board(board, profile(kit, settings))
    profiled = time.perf_counter()
    table = fit(read_board(board))
    rows = compare(model, table, settings, plans=plans)
    predicted, measured = (np.array([r[k] for r in rows]) for k in ("predicted", "measured"))
    whole = [[sum(r[k] for r in rows if r["plan"] == p) for p in range(plans)] for k in ("predicted", "measured")]
    return {
        "model": model.name,
        "machine": machine(),
        "settings": asdict(settings),
        "static_ms": table.board.static_ms,
        "kit_mb": sum(f.stat().st_size for f in kit.iterdir()) / 1e6,
        "kit_s": made - started,
        "profile_s": profiled - made,
        "kit_held_out": asdict(table.held_out_error),
        "stages": len(rows),
        "stage_error": asdict(prediction_error(predicted, measured)),
        "stage_spread": float(np.median([r["spread"] for r in rows])),
        "plan_error": asdict(prediction_error(np.array(whole[0]), np.array(whole[1]))),
        "rows": rows,
    }


def compare(model: Path, table: Table, settings: Settings, *, plans: int) -> list[dict[str, Any]]:
    """Return every stage of random plans, with its own weights: predicted and measured, relative to the static model."""
    analysed = read_analysed(model)
    weights = static_weights(analysed.graph, analysed.channels)
    space = PlanSpace(
        analysed,
        divide(analysed, weights, groups=4, block=layout_block()),
        stages=2,
    )
    rng, rows, models = np.random.default_rng(TEST_SEED), [], []
    for plan in range(plans):
        conversion = random_plan(space, rng)
        parts = chains_of(analysed, conversion.chains, weights)
        for number, stage in enumerate(build_stages(parts), start=1):
            work = work_of(stage.model, block=table.board.layout_block)
            rows.append({"plan": plan, "stage": number, "predicted": table.predict(work)})
            models.append(stage.model.SerializeToString())
    found = measure(analysed.graph.to_model().SerializeToString(), models, settings)
    measured = zip(rows, found.ratios.tolist(), found.spread.tolist(), strict=True)
    return [{**row, "measured": ratio, "spread": spread} for row, ratio, spread in measured]


def show(name: str, error: dict[str, float]) -> str:
    """Return one set of errors in words."""
    return f"  {name}: median {error['median']:.1%}, p90 {error['p90']:.1%}, most {error['most']:.1%}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--plans", type=int, default=30)
    parser.add_argument("--passes", type=int, default=15)
    parser.add_argument("--clock", default="wall")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    made = BUILD / "wrn-16-4.onnx"
    if not given.models and not made.exists():
        wide_resnet(made)
    found = []
    for model in given.models or [made]:
        result = bench(model, Settings(passes=given.passes, clock=given.clock), plans=given.plans)
        found.append(result)
        print(
            f"{result['model']}: static {result['static_ms']:.3f} ms; kit {result['kit_mb']:.1f} MB, made in "
            f"{result['kit_s']:.0f} s, measured in {result['profile_s']:.0f} s"
        )
        print(show("kit files, held out", result["kit_held_out"]))
        print(show(f"{result['stages']} stages (measured within {result['stage_spread']:.1%})", result["stage_error"]))
        print(show(f"{given.plans} plans, all stages", result["plan_error"]))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
