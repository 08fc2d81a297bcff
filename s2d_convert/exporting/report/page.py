"""report.html of an export: one self-contained page from the manifest, the search trace and some pictures.

Everything that comes from outside (file names, class names, numbers of a manifest) is escaped; the page runs no script and
asks for nothing from anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import Any

from s2d_convert.base.files import write_bytes
from s2d_convert.base.text import promise_text, quantity
from s2d_convert.exporting.report.charts import Series, bars, plot
from s2d_convert.exporting.report.gallery import Gallery, Picture

REPORT = "report.html"
METHODS = "reinforce random uniform"  # in this order, others behind
STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c1e21;--soft:#667;--line:#dfe2e7;--card:#f6f7f9;
--c0:#2f6fde;--c1:#e08a1e;--c2:#2a9d6f;--c3:#b0489c;--c4:#8a8f98;--c5:#c43d3d}
@media(prefers-color-scheme:dark){:root{--paper:#16181c;--ink:#e6e8eb;--soft:#9aa3af;--line:#2e333b;--card:#1e2126;
--c0:#6aa0ff;--c1:#f0a94a;--c2:#4cc596;--c3:#d679c4;--c4:#8a8f98;--c5:#ee6a6a}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:920px;margin:0 auto;padding:36px 28px 60px}h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:40px 0 8px}
p{margin:6px 0}.soft,.legend,figcaption{color:var(--soft);font-size:13px}
.cards{display:flex;flex-wrap:wrap;gap:12px;margin:22px 0}.cards div{flex:1 1 150px;background:var(--card);
border:1px solid var(--line);border-radius:8px;padding:12px 14px}.cards b{display:block;font-size:22px;font-weight:600}
svg{display:block;width:100%;height:auto;margin-top:10px}svg text{font:12px system-ui,sans-serif;fill:var(--soft)}
svg text.in{fill:#fff}.grid{stroke:var(--line)}.axis{stroke:var(--soft)}polyline{fill:none;stroke-width:2}
.legend span{margin-right:16px}.legend i{display:inline-block;width:10px;height:10px;border-radius:5px;margin-right:6px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:5px 10px;border-bottom:1px solid var(--line);text-align:right}th:first-child,td:first-child{text-align:left}
th{color:var(--soft);font-weight:500}tr.default td{font-weight:600}
.pictures{display:flex;flex-wrap:wrap;gap:12px}figure{margin:0;width:96px}figure img{display:block;border-radius:4px}
figcaption{font-size:11px;line-height:1.3;overflow-wrap:anywhere;margin-top:3px}
"""


def write_report(path: Path, manifest: Mapping[str, Any], *, trace: Path, gallery: Gallery) -> None:
    """Write the page whole or not at all; `trace` is the search.jsonl of the conversion, which may be absent."""
    lines = trace.read_text(encoding="utf-8").splitlines() if trace.is_file() else []
    write_bytes(path, page(manifest, [json.loads(line) for line in lines], gallery).encode())


def page(manifest: Mapping[str, Any], trace: Sequence[Mapping[str, Any]], gallery: Gallery) -> str:
    """The whole page."""
    model = Path(str(manifest["provenance"].get("model", "model"))).name
    sections = [
        _head(manifest, model),
        _section(f"{manifest['target'].capitalize()} against latency", _trade_off(manifest)),
        _section("Where images leave", bars([(f"{p['budget']:g}", p["exit_share"]) for p in manifest["policies"]])),
        _section("Calibrated budgets", _policies(manifest)),
        _section("Measured from the exported files", _measured(manifest["measured"])),
        _section("Class by class", _classes(manifest["measured"])),
        _section("Easy images: stage 1 answered", _pictures(gallery.easy)),
        _section("Hard images: went furthest, least sure", _pictures(gallery.hard)),
        _section("Search", _search(trace)),
        _section("Stages", _stages(manifest["stages"])),
        _section("Made with", _provenance(manifest["provenance"])),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(model)} in stages</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inside}</section>" if inside else ""


def _default(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    chosen: Mapping[str, Any] = next(p for p in manifest["policies"] if p["budget"] == manifest["default_budget"])
    return chosen


def _head(manifest: Mapping[str, Any], model: str) -> str:
    """Title, the promise, and the numbers of the default policy: measured ones where there are any."""
    policy, measured = _default(manifest), manifest["measured"]
    cards = [
        (f"{manifest['target']} (expected)", _percent(policy["expected_accuracy"])),
        ("mean latency (expected)", f"{policy['expected_latency']:.3f} x static"),
        ("leave at stage 1", _percent(policy["exit_share"][0], 0)),
    ]
    if measured:
        cards = [
            ("agreement with static", _percent(measured["agreement"])),
            ("mean latency", f"{measured['mean_latency']:.3f} x static"),
            ("worst latency", f"{measured['worst_latency']:.3f} x static"),
            ("leave at stage 1", _percent(measured["exit_share"][0], 0)),
        ]
        if measured["correct_dynamic"] is not None:
            name = f"accuracy (static {_percent(measured['correct_static'])})"
            cards[0] = (name, _percent(measured["correct_dynamic"]))
    boxes = "".join(f"<div><span class=soft>{escape(name)}</span><b>{escape(value)}</b></div>" for name, value in cards)
    lines = [
        f"{len(manifest['stages'])} stages, default budget {manifest['default_budget']:g}; {manifest['data']} images.",
        promise_text(manifest) or "No promise on the risk was asked for.",
    ]
    if manifest["data"] == "made-up":
        lines.append("All numbers come from made-up images: expect others on real ones.")
    texts = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f"<header><h1>{escape(model)}</h1>{texts}<div class=cards>{boxes}</div></header>"


def _trade_off(manifest: Mapping[str, Any]) -> str:
    """The policies, the default one, and the static model where its accuracy is known."""
    points = [(p["expected_latency"], p["expected_accuracy"]) for p in manifest["policies"]]
    notes = [f"budget {p['budget']:g}: latency {p['expected_latency']:.3f}, {_percent(p['expected_accuracy'])}"
             for p in manifest["policies"]]  # fmt: skip
    own = _default(manifest)
    series = [
        Series(
            "calibrated budgets",
            0,
            tuple(sorted(points)),
            tuple(n for _, n in sorted(zip(points, notes, strict=True))),
            line=True,
        ),
        Series("default", 1, ((own["expected_latency"], own["expected_accuracy"]),), large=True),
    ]
    static = 1.0 if manifest["target"] == "agreement" else manifest["measured"].get("correct_static")
    if static is not None:
        series.append(Series("static model", 5, ((1.0, float(static)),), large=True))
    note = ""
    if manifest["target"] == "accuracy" and static is not None:
        note = "<p class=soft>Static: measured on the reported images; budgets: on those of calibration.</p>"
    return plot(series, x_name="mean latency, static = 1", y_name=manifest["target"], percent=True) + note


def _policies(manifest: Mapping[str, Any]) -> str:
    head = (
        "budget",
        "expected latency",
        f"expected {manifest['target']}",
        "other answer than the last stage",
        "thresholds",
    )
    rows = []
    for p in manifest["policies"]:
        apart = "-" if p["disagreement"] is None else _percent(p["disagreement"])
        thresholds = ", ".join("never" if t > 1 else f"{t:.4f}" for t in p["thresholds"])
        mark = "" if p["reached"] else " (not reached)"
        rows.append(
            (
                f"{p['budget']:g}{mark}",
                f"{p['expected_latency']:.3f}",
                _percent(p["expected_accuracy"]),
                apart,
                thresholds,
            )
        )
    return _table(head, rows, marked=[p["budget"] for p in manifest["policies"]].index(manifest["default_budget"]))


def _measured(measured: Mapping[str, Any]) -> str:
    if not measured:
        return ""
    ms = measured["static_ms"]
    rows = [
        (name, f"{ms:.3f} ms", f"{measured[key] * ms:.3f} ms", f"{measured[key]:.3f}")
        for name, key in (
            ("mean latency", "mean_latency"),
            ("median latency", "median_latency"),
            ("worst latency", "worst_latency"),
        )
    ]
    if measured["correct_dynamic"] is not None:
        gain = 100 * (measured["correct_dynamic"] - measured["correct_static"])
        rows.insert(
            0,
            (
                "accuracy",
                _percent(measured["correct_static"]),
                _percent(measured["correct_dynamic"]),
                f"{gain:+.2f} points",
            ),
        )
    rows.append(("agreement with static", "", _percent(measured["agreement"]), ""))
    if measured["static_macs"]:
        rows.append(("multiply-accumulates per image", quantity(measured["static_macs"]), quantity(measured["mean_macs"]),
                     f"{measured['mean_macs'] / measured['static_macs']:.3f}"))  # fmt: skip
    of = (
        "the images of calibration"
        if measured.get("images_of") == "calibration"
        else "images that nothing was chosen on"
    )
    running = f"batch {measured['batch']}, {measured['threads']} thread(s), {measured.get('machine', '')}"
    about = f"{measured['images']} images ({of}), {running}"
    return _table(("", "static", "in stages", "ratio"), rows) + f"<p class=soft>{escape(about)}</p>"


def _classes(measured: Mapping[str, Any]) -> str:
    """Recall and agreement of every class where they are unequal, and the classes that a stage loses."""
    rows = measured.get("per_class") or []
    if not rows:
        return ""
    lines = [*measured.get("lost_classes", ())]
    labelled = rows[0]["correct_static"] is not None
    if labelled:
        static, dynamic = _percent(measured["balanced_static"]), _percent(measured["balanced_dynamic"])
        lines.append(f"Balanced accuracy (the mean recall of the classes): static {static}, in stages {dynamic}.")
    head = ("class", "images", *(("recall, static", "recall, in stages") if labelled else ()), "agreement")
    cells = [
        (
            str(row["name"]),
            str(row["images"]),
            *((_percent(row["correct_static"]), _percent(row["correct_dynamic"])) if labelled else ()),
            _percent(row["agreement"]),
        )
        for row in rows
    ]
    return "".join(f"<p>{escape(line)}</p>" for line in lines) + _table(head, cells)


def _search(trace: Sequence[Mapping[str, Any]]) -> str:
    """Every trial's reward, and the best so far, by method."""
    methods = sorted({str(line["method"]) for line in trace}, key=lambda name: (METHODS.find(name) % 99, name))
    series = []
    for number, method in enumerate(methods):
        own = sorted((line["index"] + 1.0, float(line["reward"])) for line in trace if line["method"] == method)
        notes = tuple(f"{method}, trial {x:.0f}: reward {y:.4f}" for x, y in own)
        series.append(Series(method, number % 5, tuple(own), notes))
        best = tuple(zip((x for x, _ in own), accumulate((y for _, y in own), max), strict=True))
        series.append(Series(f"best of {method}", number % 5, best, steps=True, dots=False))
    note = "<p class=soft>Dots are trials, lines the best so far.</p>"
    return plot(series, x_name="trial", y_name="reward") + note if series else ""


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            f"{k}: {s['file']}",
            f"{s['latency_ratio']:.3f}",
            quantity(s["macs"]),
            quantity(s["parameters"]),
            f"{s['temperature']:.3f}",
        )
        for k, s in enumerate(stages, start=1)
    ]
    return _table(("stage", "latency, static = 1", "multiply-accumulates", "parameters", "temperature"), rows)


def _pictures(pictures: Sequence[Picture]) -> str:
    figures = (
        f'<figure><img src="data:image/png;base64,{escape(p.png)}" alt="{escape(p.caption)}" width="96">'
        f"<figcaption>{escape(p.caption)}</figcaption></figure>"
        for p in pictures
    )
    return f"<div class=pictures>{''.join(figures)}</div>" if pictures else ""


def _provenance(provenance: Mapping[str, Any]) -> str:
    return _table(
        ("", ""),
        list(_flat({k: v for k, v in provenance.items() if k in ("options", "versions", "calibration", "seconds")})),
    )


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}: ")
        elif value is not None:
            yield f"{prefix}{key}", str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, marked: int = -1) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr{' class=default' if number == marked else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for number, row in enumerate(rows)
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f} %"
