"""What the report and the model card tell of a manifest: its model, its date, the verdict, and the layers of its plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s2d_runtime import Manifest
from s2d_runtime.policies import MAX_LOSS

from s2d_convert.calibration.verdict import Outcome, Verdict, verdict
from s2d_convert.exporting.provenance import FIRST_NETWORK
from s2d_convert.plans.layers import Layer


def model_name(manifest: Manifest) -> str:
    """Return the file name of the static model."""
    return Path(str(manifest.provenance.get("model", "model"))).name


def images_are(measured: Mapping[str, Any]) -> str:
    """Return which images the numbers are of, in words behind their count."""
    chosen_on_them = measured.get("images_of") == "calibration"
    return "images of calibration" if chosen_on_them else "images that nothing was trained or chosen on"


def first_network(manifest: Manifest) -> str:
    """Return the file name of the user's own network that is chain 1, '' where that is a part of the model."""
    first = manifest.provenance.get(FIRST_NETWORK)
    return Path(str(first.get("file", ""))).name if isinstance(first, Mapping) else ""


def made_on(manifest: Manifest) -> str:
    """Return the day on which the folder was made or calibrated last, '' where it is not recorded."""
    calibration = manifest.provenance.get("calibration")
    calibrated = calibration.get("date") if isinstance(calibration, Mapping) else None
    return str(calibrated or manifest.provenance.get("date") or "")


def verdict_of(manifest: Manifest) -> Verdict | None:
    """Return the verdict on the conversion, None where it was not measured."""
    outcomes = outcomes_of(manifest)
    if not outcomes:
        return None
    options = manifest.provenance.get("options")
    allowed = options.get("max_loss") if isinstance(options, Mapping) else None
    max_loss = float(allowed) if isinstance(allowed, int | float) else MAX_LOSS
    return verdict(outcomes, budget=manifest.default_budget, max_loss=max_loss, target=manifest.target_name)


def outcomes_of(manifest: Manifest) -> list[Outcome]:
    """Return what every policy was measured to do, empty where nothing was measured."""
    return [Outcome(**{**o, "exit_share": tuple(o["exit_share"])}) for o in manifest.measured.get("outcomes", ())]


def layers_of_manifest(manifest: Manifest) -> list[Layer]:
    """Return the layers of the plan, empty where they are not recorded."""
    recorded = manifest.provenance.get("layers")
    read = (Layer.from_json(line) for line in recorded) if isinstance(recorded, list | tuple) else ()
    return [layer for layer in read if layer is not None]
