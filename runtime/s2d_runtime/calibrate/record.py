"""What a calibration writes into the manifest. Letters: S stages, B images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from s2d_runtime.calibrate.answers import Answers
from s2d_runtime.calibrate.timing import Costs, Latency
from s2d_runtime.dispatcher import Manifest, Policy
from s2d_runtime.policies import rounded
from s2d_runtime.thresholds import exits

PROMISED_CLASSES = "promise_per_class"  # what the converter records of a promise


def calibrated_manifest(
    before: Manifest,
    row: Sequence[Policy],
    default: float,
    *,
    costs: Costs,
    measured: Mapping[str, Any],
    calibration: Mapping[str, Any],
) -> Manifest:
    """Return the manifest with new policies and latencies, and what is known about where they come from."""
    labelled = measured["correct_static"] is not None
    stages = tuple(
        replace(stage, latency_ratio=round(cost, 5)) for stage, cost in zip(before.stages, costs.per_stage, strict=True)
    )
    provenance = {name: value for name, value in before.provenance.items() if name != PROMISED_CLASSES}
    return replace(
        before,
        target="accuracy" if labelled else "agreement",
        data="labelled" if labelled else "unlabelled",
        stages=stages,
        policies=tuple(map(rounded, row)),
        default_budget=default,
        measured=measured,
        provenance={**provenance, "calibration": dict(calibration)},
    )


def measured_numbers(
    manifest: Manifest, said: Answers, policy: Policy, *, costs: Costs, latency: Latency
) -> dict[str, Any]:
    """Return the numbers of a policy on the images, under the names that the converter's tables read."""
    stage = exits(said.confidence, policy.thresholds)
    rows = np.arange(stage.size)
    share = np.bincount(stage, minlength=len(manifest.stages)) / stage.size
    right = float(said.correct[stage, rows].mean())
    return {
        "images": int(stage.size),
        "images_of": "calibration",
        "exit_share": share.tolist(),
        "correct_static": float(said.static.mean()) if said.labelled else None,
        "correct_dynamic": right if said.labelled else None,
        "agreement": float(said.as_static[stage, rows].mean()),
        "latency": "measured",
        "static_ms": costs.static_ms,
        "mean_latency": latency.mean,
        "median_latency": latency.median,
        "worst_latency": max(latency.worst, float(sum(costs.per_stage))),
        "mean_macs": float(share @ np.cumsum([entry.macs for entry in manifest.stages])),
        "parameters": sum(entry.parameters for entry in manifest.stages),
        "batch": 1,
    }
