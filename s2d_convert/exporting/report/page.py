"""report.html of an export: one self-contained page with the manifest, the search trace and some pictures.

The template and the charts escape everything that comes from outside (file names, class names, numbers of a manifest). The
page runs no script and sends no request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from s2d_runtime import Manifest, Stage

from s2d_convert.base.text import answer_rows, next_commands, promise_text, quantity
from s2d_convert.calibration.verdict import useful_policies, worth_showing
from s2d_convert.exporting.per_class import ClassResult
from s2d_convert.exporting.report.charts import Series, bars, losses, plot
from s2d_convert.exporting.report.drawing import draw_plan
from s2d_convert.exporting.report.facts import (
    first_network,
    images_are,
    layers_of_manifest,
    made_on,
    model_name,
    outcomes_of,
    verdict_of,
)
from s2d_convert.exporting.report.gallery import Gallery

TEMPLATE = "report.html.jinja"
METHODS = "reinforce random uniform"  # the order of methods; others follow
RECORDED = ("date", "options", "versions", "calibration", "seconds")  # parts of the provenance that are shown
PIXELS = ("size", "resize", "order", "layout", "dtype", "formula", "scale", "mean", "std")  # of the preprocessing


@dataclass(frozen=True)
class Rows:
    """A table of texts: column names, rows, the row that is highlighted, and a line below."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    marked: int = -1
    about: str = ""


@dataclass(frozen=True)
class ClassPart:
    """The part on classes: sentences, a chart of their losses, and a table."""

    lines: Sequence[str]
    chart: str
    table: Rows


@lru_cache(maxsize=1)
def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template(TEMPLATE)


def page(manifest: Manifest, trace: Sequence[Mapping[str, Any]], gallery: Gallery, *, folder: str = "OUT") -> str:
    """Return the HTML page. trace: the lines of the search trace, as parsed JSON. folder: the name of the export."""
    static = 1.0 if manifest.target == "agreement" else manifest.measured.get("correct_static")
    measured = manifest.measured
    judged = verdict_of(manifest)
    return _template().render(
        model=model_name(manifest),
        date=made_on(manifest),
        verdict=judged.sentences if judged is not None else (),
        good=judged is not None and not judged.worse and judged.warning is None,
        lines=_lines(manifest),
        cards=_cards(manifest),
        commands=next_commands(manifest, folder),
        target=manifest.target_name,
        trade_off=_trade_off(manifest, static),
        same_images="outcomes" in measured,
        images=measured.get("images"),
        images_are=images_are(measured),
        exits=bars([(f"{p.budget:g}", p.exit_share) for p in useful_policies(manifest)]),
        budgets=_budgets(manifest, static) if measured.get("outcomes") else None,
        policies=_policies(manifest),
        measured=_measured(measured) if measured else None,
        classes=_classes(measured) if measured.get("per_class") else None,
        gallery=gallery,
        labelled=measured.get("correct_static") is not None,
        search=_search(trace),
        plan=draw_plan(layers_of_manifest(manifest), [s.chain for s in manifest.stages], first=first_network(manifest)),
        stages=_stages(manifest.stages),
        pixels=_pixels(manifest),
        provenance=list(_flat({k: v for k, v in manifest.provenance.items() if k in RECORDED})),
    )


def _pixels(manifest: Manifest) -> list[tuple[str, str]]:
    """Return names and values of the way from pixels to model input."""
    recorded = manifest.preprocess or {}
    return [(name, _listing(recorded[name])) for name in PIXELS if recorded.get(name) is not None]


def _listing(value: Any) -> str:
    return ", ".join(f"{v:.6g}" for v in value) if isinstance(value, list | tuple) else str(value)


def _lines(manifest: Manifest) -> list[str]:
    """Return the sentences below the verdict, including the promise."""
    lines = [
        f"{len(manifest.stages)} stages, default budget {manifest.default_budget:g}; {manifest.data} images.",
        promise_text(manifest) or "No promise on the risk was asked for.",
    ]
    if manifest.data == "made-up":
        lines.append("All numbers come from made-up images: expect others on real ones.")
    return lines


def _cards(manifest: Manifest) -> list[tuple[str, str]]:
    """Return names and values of the default policy's numbers, measured ones where there are any."""
    policy, measured = manifest.default_policy, manifest.measured
    if not measured:
        return [
            (f"{manifest.target_name} (expected)", _percent(policy.expected_accuracy)),
            ("mean latency (expected)", f"{policy.expected_latency:.3f} x static"),
            ("leave at stage 1", _percent(policy.exit_share[0], 0)),
        ]
    first = ("agreement with static", _percent(measured["agreement"]))
    if measured["correct_dynamic"] is not None:
        what = "exact match" if measured.get("labels") else "accuracy"
        name = f"{what} (static {_percent(measured['correct_static'])})"
        first = (name, _percent(measured["correct_dynamic"]))
    return [
        first,
        ("mean latency", f"{measured['mean_latency']:.3f} x static"),
        ("worst latency", f"{measured['worst_latency']:.3f} x static"),
        ("leave at stage 1", _percent(measured["exit_share"][0], 0)),
    ]


def _trade_off(manifest: Manifest, static: float | None) -> str:
    """Return the chart of all policies, the default policy and the static model, if its accuracy is known.

    Where policies were measured, all points are of the same images, and have the standard errors of their losses.
    """
    by_budget = {o.budget: (o.latency, o.right, o.loss_error) for o in outcomes_of(manifest)}
    by_budget = by_budget or {p.budget: (p.expected_latency, p.expected_accuracy, 0.0) for p in manifest.policies}
    dots = sorted(
        (point, f"budget {budget:g}: latency {point[0]:.3f}, {_percent(point[1])}")
        for budget, point in by_budget.items()
    )
    points, notes = tuple(point[:2] for point, _ in dots), tuple(note for _, note in dots)
    errors = tuple(point[2] for point, _ in dots)
    series = [
        Series("budgets", 0, points, notes, errors, line=True),
        Series("in use", 1, (by_budget[manifest.default_budget][:2],), large=True),
    ]
    if static is not None:
        series.append(Series("static model", 5, ((1.0, float(static)),), large=True))
    return plot(series, x_name="mean latency, static = 1", y_name=manifest.target_name, percent=True)


def _budgets(manifest: Manifest, static: float | None) -> Rows:
    """Return the table of useful budgets and the static model on the measured images."""
    shown = worth_showing(outcomes_of(manifest), manifest.default_budget)
    rows = [
        (
            f"{o.budget:g}",
            f"{o.latency:.3f}",
            f"{o.worst:.2f}",
            _percent(o.right),
            f"{100 * o.loss:.2f} ± {100 * o.loss_error:.2f}",
        )
        for o in shown
    ]
    marked = next(n for n, o in enumerate(shown) if o.budget == manifest.default_budget)
    rows.append(("static model", "1.000", "1.00", "-" if static is None else _percent(static), ""))
    return Rows(("budget", "mean latency", "worst case", manifest.target_name, "points lost"), rows, marked=marked)


def _policies(manifest: Manifest) -> Rows:
    head = (
        "budget", "expected latency", f"expected {manifest.target_name}", "other answer than the last stage", "thresholds",
    )  # fmt: skip
    rows = [
        (
            f"{p.budget:g}{'' if p.reached else ' (not reached)'}",
            f"{p.expected_latency:.3f}",
            _percent(p.expected_accuracy),
            "-" if p.disagreement is None else _percent(p.disagreement),
            ", ".join("never" if t > 1 else f"{t:.4f}" for t in p.thresholds),
        )
        for p in manifest.policies
    ]
    return Rows(head, rows, marked=manifest.policies.index(manifest.default_policy))


def _measured(measured: Mapping[str, Any]) -> Rows:
    ms = measured["static_ms"]
    rows = [
        (f"{kind} latency", f"{ms:.3f} ms", f"{measured[key] * ms:.3f} ms", f"{measured[key]:.3f}")
        for kind, key in (("mean", "mean_latency"), ("median", "median_latency"), ("worst", "worst_latency"))
    ]
    right = [
        (name, _percent(static), _percent(dynamic), f"{100 * (dynamic - static):+.2f} points")
        for name, static, dynamic in answer_rows(measured)
        if name != "balanced accuracy"  # told with the classes
    ]
    rows = [*right, *rows, ("agreement with static", "", _percent(measured["agreement"]), "")]
    if measured.get("labels"):
        rows.append(("agreement with static, label by label", "", _percent(measured["labels"]["agreement"]), ""))
    if measured["static_macs"]:
        static, dynamic = measured["static_macs"], measured["mean_macs"]
        rows.append(("multiply-accumulates per image", quantity(static), quantity(dynamic), f"{dynamic / static:.3f}"))
    running = f"batch {measured['batch']}, {measured['threads']} thread(s), {measured.get('machine', '')}"
    about = f"{measured['images']} {images_are(measured)}, {running}"
    return Rows(("", "static", "in stages", "ratio"), rows, about=about)


def _classes(measured: Mapping[str, Any]) -> ClassPart:
    """Return the part on classes: warnings, the loss of each, and a table with recall and agreement."""
    rows = [ClassResult(**row) for row in measured["per_class"]]
    lines = [*measured.get("lost_classes", ())]
    labelled = rows[0].correct_static is not None
    if labelled and measured.get("balanced_static") is not None:
        static, dynamic = _percent(measured["balanced_static"]), _percent(measured["balanced_dynamic"])
        lines.append(f"Balanced accuracy (the mean recall of the classes): static {static}, in stages {dynamic}.")
    head = (
        "label" if measured.get("labels") else "class",
        "images",
        *(("recall, static", "recall, in stages") if labelled else ()),
        "agreement",
    )
    cells = [
        (
            str(row.name),
            str(row.images),
            *(_percent(right) for right in (row.correct_static, row.correct_dynamic) if right is not None),
            _percent(row.agreement),
        )
        for row in rows
    ]
    return ClassPart(lines, losses([(str(row.name), row.loss, row.loss_error) for row in rows]), Rows(head, cells))


def _search(trace: Sequence[Mapping[str, Any]]) -> str:
    """Return the chart of the rewards of all trials, and of the best so far, by method."""
    methods = sorted({str(line["method"]) for line in trace}, key=lambda name: (METHODS.find(name) % 99, name))
    series = []
    for number, method in enumerate(methods):
        trials = sorted((line["index"] + 1.0, float(line["reward"])) for line in trace if line["method"] == method)
        notes = tuple(f"{method}, trial {x:.0f}: reward {y:.4f}" for x, y in trials)
        series.append(Series(method, number % 5, tuple(trials), notes))
        best = tuple(zip((x for x, _ in trials), accumulate((y for _, y in trials), max), strict=True))
        series.append(Series(f"best of {method}", number % 5, best, steps=True, dots=False))
    return plot(series, x_name="trial", y_name="reward")


def _stages(stages: Sequence[Stage]) -> Rows:
    rows = [
        (
            f"{number}: {stage.file}",
            f"{stage.latency_ratio:.3f}",
            quantity(stage.macs),
            quantity(stage.parameters),
            f"{stage.temperature:.3f}",
        )
        for number, stage in enumerate(stages, start=1)
    ]
    return Rows(("stage", "latency, static = 1", "multiply-accumulates", "parameters", "temperature"), rows)


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}: ")
        elif value is not None:
            yield f"{prefix}{key}", str(value)


def _percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f} %"
