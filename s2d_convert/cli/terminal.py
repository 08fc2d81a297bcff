"""The tables that commands show on stdout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text
from s2d_runtime import Manifest

from s2d_convert.base.text import answer_rows, quantity
from s2d_convert.calibration.verdict import useful_policies, worth_showing
from s2d_convert.exporting.measure import Measured
from s2d_convert.exporting.timing import worst_case


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def measured_table(measured: Measured, *, title: str) -> Table:
    """Return a table that compares the static model with the exported folder."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in ("static", "dynamic", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, before, after in answer_rows(measured.to_json()):
        table.add_row(name, _percent(before), _percent(after), f"{100 * (after - before):+.2f} points")
    table.add_row("agreement with static", _percent(1.0), _percent(measured.agreement), "")
    if measured.labels is not None:
        table.add_row("label by label", _percent(1.0), _percent(measured.labels.agreement), "")
    for ratio, name in (
        (measured.mean_latency, "mean latency"),
        (measured.median_latency, "median latency"),
        (measured.worst_latency, "worst latency (all stages)"),
    ):
        table.add_row(name, f"{measured.static_ms:.3f} ms", f"{ratio * measured.static_ms:.3f} ms", f"{ratio:.3f}")
    shares = "  ".join(f"{k}: {100 * s:.1f} %" for k, s in enumerate(measured.exit_share, start=1))
    table.add_row("share of images per exit", "", shares, "")
    if measured.static_macs:
        for name, static, dynamic in (
            ("mean MACs per image", measured.static_macs, measured.mean_macs),
            ("parameters", measured.static_parameters, measured.parameters),
        ):
            table.add_row(name, quantity(static), quantity(dynamic), f"{dynamic / max(1, static):.3f}")
    return table


def class_table(measured: Measured) -> Table | None:
    """Return the table of classes if they are unequal or one is lost, else None."""
    if not (measured.per_class and measured.classes_differ):
        return None
    labelled, one = measured.per_class[0].correct_static is not None, "class" if measured.labels is None else "label"
    table = Table(title=f"{one} by {one}, those that lose most first", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("label" if labelled else f"{one} by the static model")
    for column in ("images", *(("recall static", "recall dynamic") if labelled else ()), "agreement"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in measured.per_class:
        right = (_percent(row.correct_static), _percent(row.correct_dynamic)) if labelled else ()
        table.add_row(Text(row.name), str(row.images), *right, _percent(row.agreement))
    return table


def policy_table(manifest: Manifest) -> Table:
    """Return the table of calibrated budgets: one row for equal policies, and none for a policy that another one beats.

    The worst case is an image that leaves as late as the thresholds allow.
    """
    measured = manifest.measured  # empty if the static model was missing
    how = f"; latency {measured['latency']} for {measured['machine']}" if measured else ""
    table = Table(
        title=f"calibrated budgets (on held-out images{how}; * in use)", title_justify="left", box=box.SIMPLE_HEAD
    )
    for column in ("budget", "expected\nlatency", "worst case", f"expected\n{manifest.target_name}", "share per exit"):
        table.add_column(column, justify="right", no_wrap=True)
    ratios = [stage.latency_ratio for stage in manifest.stages]
    for policy in useful_policies(manifest):
        table.add_row(
            f"{'* ' if policy is manifest.default_policy else ''}{policy.budget:.2f}"
            f"{'' if policy.reached else ' (not reached)'}",
            f"{policy.expected_latency:.3f}",
            f"{worst_case(ratios, policy.thresholds):.3f}",
            _percent(policy.expected_accuracy),
            "  ".join(f"{100 * share:.0f} %" for share in policy.exit_share),
        )
    return table


def outcome_table(manifest: Manifest, measured: Measured) -> Table:
    """Return the table of all useful policies and the static model on the measured images, with the one in use marked."""
    target, chosen = manifest.target_name, manifest.default_budget
    table = Table(
        title=f"budgets, on {measured.images} unseen images (* in use)", title_justify="left", box=box.SIMPLE_HEAD
    )
    for column in ("--budget", "latency", "worst case", target, "points lost", "per exit"):
        table.add_column(column, justify="right", no_wrap=True)
    for outcome in worth_showing(measured.outcomes, chosen):
        table.add_row(
            f"{'* ' if outcome.budget == chosen else ''}{outcome.budget:g}",
            f"{outcome.latency:.3f}",
            f"{outcome.worst:.2f}",
            _percent(outcome.right),
            f"{100 * outcome.loss:.2f} ± {100 * outcome.loss_error:.2f}",
            "  ".join(f"{100 * share:.0f} %" for share in outcome.exit_share),
        )
    static = 1.0 if measured.correct_static is None else measured.correct_static
    table.add_row("static model", "1.000", "1.00", _percent(static), "", "")
    return table


def bench_table(found: Mapping[str, Any], *, title: str) -> Table:
    """Return the output of `s2d bench`."""
    table = Table(title=f"{title}, {found['rounds']} rounds", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("", "median ms", "quartiles ms", "ratio of medians", "quartiles of the ratio"):
        table.add_column(column, justify="left" if not column else "right")
    for row in found["rows"]:
        ms, name = row["ms"], row["name"]
        spread = f"{row['ratio_q1']:.3f} - {row['ratio_q3']:.3f}"
        quartiles = f"{ms['q1']:.3f} - {ms['q3']:.3f}"
        if row is found["rows"][-1]:
            name += " (worst case: all stages)"
        table.add_row(name, f"{ms['median']:.3f}", quartiles, f"{row['ratio']:.3f}", spread)
    return table
