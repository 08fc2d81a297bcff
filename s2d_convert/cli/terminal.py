"""The tables that commands show on stdout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from s2d_convert.base.text import quantity
from s2d_convert.exporting.measure import worst_case


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def measured_table(measured: Mapping[str, Any], *, title: str) -> Table:
    """Static against dynamic, from the numbers of `measure.Measured.to_json`."""
    table = Table(title=title, title_justify="left")
    for column, justify in (("", "left"), ("static", "right"), ("dynamic", "right"), ("ratio", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    static_ms = measured["static_ms"]
    if measured["correct_dynamic"] is not None:
        difference = 100 * (measured["correct_dynamic"] - measured["correct_static"])
        table.add_row(
            "accuracy",
            _percent(measured["correct_static"]),
            _percent(measured["correct_dynamic"]),
            f"{difference:+.2f} points",
        )
    if measured.get("balanced_static") is not None:
        difference = 100 * (measured["balanced_dynamic"] - measured["balanced_static"])
        table.add_row(
            "balanced accuracy",
            _percent(measured["balanced_static"]),
            _percent(measured["balanced_dynamic"]),
            f"{difference:+.2f} points",
        )
    table.add_row("agreement with static", _percent(1.0), _percent(measured["agreement"]), "")
    for key, name in (
        ("mean_latency", "mean latency"),
        ("median_latency", "median latency"),
        ("worst_latency", "worst latency (all stages)"),
    ):
        ratio = measured[key]
        table.add_row(name, f"{static_ms:.3f} ms", f"{ratio * static_ms:.3f} ms", f"{ratio:.3f}")
    shares = "  ".join(f"{k}: {100 * s:.1f} %" for k, s in enumerate(measured["exit_share"], start=1))
    table.add_row("share of images per exit", "", shares, "")
    if measured["static_macs"]:
        ratio = measured["mean_macs"] / measured["static_macs"]
        table.add_row(
            "mean MACs per image", quantity(measured["static_macs"]), quantity(measured["mean_macs"]), f"{ratio:.3f}"
        )
        ratio = measured["parameters"] / max(1, measured["static_parameters"])
        table.add_row(
            "parameters", quantity(measured["static_parameters"]), quantity(measured["parameters"]), f"{ratio:.3f}"
        )
    return table


def class_table(measured: Mapping[str, Any]) -> Table | None:
    """The classes one by one, where they are unequal or one is lost; None elsewhere."""
    rows = measured.get("per_class")
    if not rows:
        return None
    labelled = rows[0]["correct_static"] is not None
    kind = "label" if labelled else "class by the static model"
    table = Table(title="class by class, those that lose most first", title_justify="left")
    table.add_column(kind)
    for column in ("images", *(("recall static", "recall dynamic") if labelled else ()), "agreement"):
        table.add_column(column, justify="right")
    for row in rows:
        right = (_percent(row["correct_static"]), _percent(row["correct_dynamic"])) if labelled else ()
        table.add_row(Text(row["name"]), str(row["images"]), *right, _percent(row["agreement"]))
    return table


def policy_table(manifest: Mapping[str, Any], *, target: str) -> Table:
    """The calibrated budgets of an export. The worst case is an image that leaves as late as the thresholds allow."""
    measured = manifest["measured"]  # nothing is, where the static model was not at hand
    how = f"; latency {measured['latency']} for {measured['machine']}" if measured else ""
    table = Table(title=f"calibrated budgets (on held-out images{how})", title_justify="left")
    for column in ("budget", "expected latency", "worst case", f"expected {target}", "share per exit"):
        table.add_column(column, justify="right")
    for p in manifest["policies"]:
        shares = "  ".join(f"{100 * s:.0f} %" for s in p["exit_share"])
        mark = "" if p["reached"] else " (not reached)"
        table.add_row(
            f"{p['budget']:.2f}{mark}",
            f"{p['expected_latency']:.3f}",
            f"{worst_case(manifest['stages'], p['thresholds']):.3f}",
            _percent(p["expected_accuracy"]),
            shares,
        )
    return table


def bench_table(found: Mapping[str, Any], *, title: str) -> Table:
    """The output of `s2d bench`."""
    table = Table(title=f"{title}, {found['rounds']} rounds", title_justify="left")
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
