"""Numbers and facts as text, for both the terminal and the report."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from s2d_runtime import Manifest


def quantity(value: float) -> str:
    """Return a number in short form, such as 40.55 M."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.2f} {unit}"
    return f"{value:.0f}"


def plain(message: str) -> str:
    """Return the message as one printable line; names in it may come from an untrusted file."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))


def listed(names: Sequence[str]) -> str:
    """Return the first five names in quotes, followed by how many more there are."""
    shown = ", ".join(f"'{name}'" for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown or "nothing"


PROMISED_CLASSES = "promise_per_class"  # in the provenance, where dispatchers that do not know it read past it


def promise_text(manifest: Manifest) -> str:
    """Return the promise of the policies as a sentence, '' without a promise."""
    promise = manifest.default_policy.promise
    if promise is None:
        return ""
    classes = manifest.provenance.get(PROMISED_CLASSES)
    part = " of every class" if isinstance(classes, Mapping) and classes else ""
    claim = (
        f"{manifest.target_name}{part} is at most {{}} below the static model's"
        if manifest.target == "accuracy"
        else f"at most {{}} of the answers{part and ' to' + part.removeprefix(' of')} are not the static model's"
    )
    drop, confidence = f"{100 * promise.max_drop:.4g} %", f"{100 * promise.confidence:.4g} %"
    return (
        f"Promise, for every budget: {claim.format(drop)}, with {confidence} confidence over the draw of the "
        f"{promise.images} images that it was tested on; for images like these."
    )


def promise_cost(manifest: Manifest) -> str:
    """Return by how much the promise exceeds the requested budget, as a sentence; '' where the budget is kept."""
    policy = manifest.default_policy
    if policy.promise is None or policy.reached:
        return ""
    return (
        f"the promise wins over the budget: asked was {policy.budget:g}, the cheapest policy that keeps the promise "
        f"costs {policy.expected_latency:.3f}"
    )


def next_commands(manifest: Manifest, folder: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return the two commands that come next after a conversion to `folder`, each with its purpose."""
    out = shlex.quote(folder)
    if manifest.data == "made-up":
        return (
            (f"s2d calibrate {out} --data IMAGES", "thresholds from some hundred real images, in minutes"),
            (f"s2d evaluate {out} --data IMAGES", "accuracy and latency on images that nothing has seen"),
        )
    return (
        (f"s2d evaluate {out} --data IMAGES", "accuracy and latency on images that nothing has seen"),
        (f"s2d serve {out}", "answer HTTP requests with it"),
    )


def answer_rows(measured: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Yield (name, static, dynamic) of the measured shares of right answers, as tables have them. measured: as in a
    manifest; where images have several labels, `labels` tells of them one by one."""
    labels = measured.get("labels") or {}
    pairs = {
        "exact match of all labels" if labels else "accuracy": (
            measured["correct_static"],
            measured["correct_dynamic"],
        ),
        "balanced accuracy": (measured.get("balanced_static"), measured.get("balanced_dynamic")),
        "labels right": (labels.get("right_static"), labels.get("right_dynamic")),
        "F1 over all labels (micro)": (labels.get("micro_f1_static"), labels.get("micro_f1_dynamic")),
        "F1, mean over labels (macro)": (labels.get("macro_f1_static"), labels.get("macro_f1_dynamic")),
    }
    for name, (static, dynamic) in pairs.items():
        if static is not None and dynamic is not None:
            yield name, static, dynamic
