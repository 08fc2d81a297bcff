"""The tables of README.md and docs/results.md, each from the published records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from types import MappingProxyType

from benchmarks.published import Network, Record

Records = Mapping[str, Record]

LABELS = MappingProxyType(
    {
        "static": "`static`, against itself",
        "pruned": "`pruned` (torch-pruning)",
        "isomorphic": "`isomorphic` (torch-pruning)",
        "width": "`width`, two linked stages",
    }
)
METHODS_OF_RESNET20 = (
    *("static", "static-tuned", "ours", "cascade", "uniform", "pruned", "width", "two-models", "random", "depth"),
    *("int8-static", "int8-ours"),
)
WIDE = (("vgg16-bn", 0.35), ("wrn-16-4", 0.35), ("mobilenet-v2", 0.55))
POLICIES = ("resnet20", "resnet56", "vgg16-bn", "wrn-16-4", "mobilenet-v2")
# README: per network the rows of ours, pruned, INT8 of the whole model, and ours in INT8; None: not measured.
HEADLINES: tuple[tuple[str | None, ...], ...] = (
    ("page-orientation/ours", None, "page-orientation/int8-static", "page-orientation/int8-ours"),
    ("open-nsfw/ours", None, "open-nsfw/int8-static", "open-nsfw/int8-ours"),
    ("text-direction/ours", None, "text-direction/int8-static", "text-direction/int8-ours"),
    ("fashion-wrn-16-2/ours-0.3", None, "fashion-wrn-16-2/int8-static", "fashion-wrn-16-2/int8-ours-0.3"),
    (
        *("fashion-mobilenet-v2-half/ours-0.4", None),
        *("fashion-mobilenet-v2-half/int8-static", "fashion-mobilenet-v2-half/int8-ours-0.4"),
    ),
    ("fashion-resnet20/ours", None, "fashion-resnet20/int8-static", "fashion-resnet20/int8-ours"),
    ("fashion-methods/ours", "fashion-methods/pruned", "fashion-methods/int8-static", "fashion-methods/int8-ours"),
    ("vgg16-bn/ours-0.35", "vgg16-bn/pruned-0.35", "vgg16-bn/int8-static", "vgg16-bn/int8-ours-0.35"),
    ("wrn-16-4/ours-0.35", "wrn-16-4/pruned-0.35", "wrn-16-4/int8-static", "wrn-16-4/int8-ours-0.35"),
    ("mobilenet-v2/ours-0.35", "mobilenet-v2/pruned-0.55", None, None),
    ("resnet56/cascade-0.45", None, None, None),
    ("resnet20/standard-0.6", "resnet20/pruned", "resnet20/int8-bench-int8-static", "resnet20/int8-bench-int8-0.45"),
)
OWN = (0, 3)  # columns of HEADLINES
HALF_HOUR = (  # files of `benchmarks.half_hour`
    *("text-direction", "page-orientation", "open-nsfw"),
    *("fashion-wrn-16-2", "fashion-mobilenet-v2-half", "fashion-resnet20"),
)


def headline(records: Records) -> str:
    """Return README's table: accuracy at mean latency, ours and rivals."""
    rows = []
    for keys in HEADLINES:
        first = records[str(keys[0])]
        cells = [_short(records[key], bold=i in OWN) if key else "-" for i, key in enumerate(keys)]
        known = first.network.accuracy is not None
        static = f"{rounded(first.network.accuracy, 1)} %" if known else "(agreement with it)"
        rows.append([f"{first.network.name}, {first.network.data.partition(' (')[0]}", static, *cells])
    heads = ["network", "static model", "in stages", "pruned (torch-pruning)", "INT8", "stages in INT8"]
    return _table(heads, rows)


def policies(records: Records) -> str:
    """Return every policy of the folders of ours."""
    rows, last = [], ("", "")
    for file in POLICIES:
        for record in _policies_of(records, file):
            about = _network(record)
            asked = f"{record.searched_for:g}" + (f" ({record.plan})" if record.plan else "")
            rows.append(
                [
                    about if about != last[0] else "",
                    asked if (about, asked) != last else "",
                    f"{record.budget:.2f}",
                    _accuracy(record, to_static=True),
                    _latency(record),
                    _worst(record),
                    _percent(record.leave_first),
                ]
            )
            last = (about, asked)
    heads = ["network (static accuracy and time)", "searched for", "policy", "accuracy", "mean latency", "worst"]
    return _table([*heads, "leave at stage 1"], rows)


def _policies_of(records: Records, file: str) -> list[Record]:
    """Return the rows of a network for the table of policies: those of ours that name a budget."""
    chosen = [r for r in _of(records, file) if r.method == "ours" and r.budget is not None]
    return [r for r in chosen if not r.name.startswith("int8-bench")]


def _network(record: Record) -> str:
    network = record.network
    if record.run.seeds > 1:
        return f"{network.name}, quick effort, {record.run.seeds} seeds"
    return f"{network.name} ({network.accuracy:.2f} %, {_milliseconds(network)})"


def half_hour(records: Records) -> str:
    """Return what whole conversions with a given time brought, beside INT8."""
    rows = []
    for file in HALF_HOUR:
        ours = records[f"{file}/ours"]
        run, network = ours.run, ours.network
        given = f"{run.images:,}, " + ("labelled" if run.labels else "no labels")
        seeds = f", {run.seeds} networks" if run.seeds > 1 else ""
        cells = [_kept(records.get(f"{file}/{method}")) for method in ("ours", "int8-static", "int8-ours")]
        rows.append(
            [
                f"{network.name}, {network.data}{seeds}",
                given,
                f"{run.minutes:g} min, {run.gigabytes:g} GB",
                *cells,
                _worst(ours),
            ]
        )
    heads = ["network", "images given", "took", "in stages", "INT8", "stages in INT8", "worst (in stages)"]
    return _table(heads, rows)


def _kept(record: Record | None) -> str:
    """Return the latency, and what is kept: the change of the accuracy where it is known, and the agreement."""
    if record is None:
        return "-"
    change = [] if record.accuracy is None else [_signed(record.accuracy - (record.network.accuracy or 0.0))]
    agreement = f"{record.agreement:.1f} %"
    if record.agreement_spread is not None:
        agreement = f"{record.agreement:.1f} ± {record.agreement_spread:.1f} %"
    return ", ".join([_latency(record), *change, agreement])


def methods_resnet20(records: Records) -> str:
    """Return all methods on ResNet-20 at quick effort."""
    return _methods([records[f"resnet20/{method}"] for method in METHODS_OF_RESNET20])


def methods_fashion(records: Records) -> str:
    """Return all methods on the ResNet-20 of Fashion-MNIST, the most accurate first."""
    ranked = sorted(_of(records, "fashion-methods"), key=lambda r: (r.method != "static", -(r.accuracy or 0.0)))
    return _methods(ranked)


def _methods(chosen: Sequence[Record]) -> str:
    """Return a table of methods on one network."""
    rows = []
    for record in chosen:
        seeds = ", three seeds" if record.run.seeds == 3 else ""
        label = {**LABELS, "width": "`width`"}.get(record.method, f"`{record.method}`") + seeds
        gap = record.measured_to_predicted
        cells = [
            _accuracy(record, to_static=record.method != "static"),
            _latency(record),
            _worst(record),
            "" if record.at_32x2 is None else f"{record.at_32x2:.3f}",
        ]
        rows.append([label, *cells, _percent(record.leave_first), "" if gap is None else f"{gap:+.1f} %"])
    heads = ["method", "accuracy", "mean latency", "worst", "batch 32, 2 threads", "leave first"]
    return _table([*heads, "measured to predicted"], rows)


def methods_wide(records: Records) -> str:
    """Return the methods on the wider networks, one column each; a dash: not run."""
    methods = ("static-tuned", "ours", "pruned", "width", "depth", "int8-static", "int8-ours")
    networks = [_of(records, file)[0].network for file, _ in WIDE]
    rows = [["`static`", *(f"{network.accuracy:.2f} %" for network in networks)]]
    for method in methods:
        cells = []
        for file, budget in WIDE:
            of_method = [r for r in _of(records, file) if r.method == method and r.budget in (None, budget)]
            of_method = [r for r in of_method if not r.name.startswith("max-latency")]
            cells.append(_cell(of_method[0]) if of_method else "-")
        rows.append([LABELS.get(method, f"`{method}`"), *cells])
    heads = [f"{n.name}, {budget:g}" for n, (_, budget) in zip(networks, WIDE, strict=True)]
    return _table(["method", *heads], rows)


def _cell(record: Record) -> str:
    text = f"{record.accuracy:.2f} %"
    if record.latency:
        text += " at " + ", ".join(f"{value:.3f}" for value in record.latency)
    if record.worst and record.worst != record.latency:
        text += f" ({_worst(record)})"
    return f"**{text}**" if record.headline else text


def int8(records: Records) -> str:
    """Return ResNet-20 in INT8, quartiles by round in brackets."""
    labels = {"static": "static float32", "int8-static": "static int8", "ours": "stages float32"}
    labels |= {"int8-ours": "stages int8", "int8:early": "stages int8:early"}
    rows = []
    for record in _of(records, "resnet20"):
        if not record.name.startswith("int8-bench"):
            continue
        ratio = _latency(record)
        if record.quartiles:
            ratio += " ({:.3f} - {:.3f})".format(*record.quartiles)
        if record.milliseconds is not None:
            ratio = f"1 ({record.milliseconds:.3f} ms)"
        rows.append(
            [
                labels[record.method],
                "" if record.budget is None else f"{record.budget:g}",
                _accuracy(record, to_static=False),
                _percent(record.agreement, digits=2),
                ratio,
                _worst(record, digits=3),
                f"{record.megabytes:.2f}",
            ]
        )
    return _table(["", "budget", "accuracy", "agreement", "mean latency", "worst", "MB"], rows)


def exact(records: Records) -> str:
    """Return the policies of ResNet-56 in exact mode."""
    rows = []
    for record in _of(records, "resnet56"):
        if record.method == "exact":
            agreement = _bold(_percent(record.agreement, digits=2), record.headline)
            first = _percent(record.leave_first)
            rows.append(
                [f"{record.budget:.2f}", agreement, f"{record.accuracy:.2f} %", _latency(record), first, _worst(record)]
            )
    static = _of(records, "resnet56")[0].network.accuracy
    heads = ["ResNet-56 on A, policy", "agreement", f"accuracy (static {static:.2f} %)", "mean latency"]
    return _table([*heads, "leave at stage 1", "worst"], rows)


TABLES: Mapping[str, Callable[[Records], str]] = MappingProxyType(
    {
        "headline": headline,
        "policies": policies,
        "half-hour": half_hour,
        "methods-resnet20": methods_resnet20,
        "methods-fashion": methods_fashion,
        "methods-wide": methods_wide,
        "int8": int8,
        "exact": exact,
    }
)


def _of(records: Records, file: str) -> list[Record]:
    return [record for record in records.values() if record.network.file == file]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in rows)]) + "\n"


def _short(record: Record, *, bold: bool) -> str:
    share = record.agreement if record.accuracy is None else record.accuracy
    return f"{rounded(share, 1)} % at " + _bold(rounded(record.latency[0], 2), bold)


def rounded(value: float | None, digits: int) -> str:
    """Return a published number with fewer digits, half rounded up as on paper (0.435 is 0.44). None is the empty text."""
    step = Decimal(1).scaleb(-digits)
    return "" if value is None else str(Decimal(repr(value)).quantize(step, rounding=ROUND_HALF_UP))


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold and text else text


def _accuracy(record: Record, *, to_static: bool) -> str:
    if record.accuracy is None:
        return ""
    text = f"{record.accuracy:.2f}"
    if record.accuracy_spread is not None:
        text += f" ± {record.accuracy_spread:.2f}"
    text += " %"
    if to_static and record.network.accuracy is not None:
        text += f" ({_signed(record.accuracy - record.network.accuracy)})"
    return _bold(text, record.headline)


def _signed(difference: float) -> str:
    text = f"{difference:+.2f}"
    return "0.00" if float(text) == 0 else text


def _latency(record: Record) -> str:
    """Return all measurements; the first is bold in a row to quote."""
    texts = [f"{value:.3f}" for value in record.latency]
    if record.latency_spread is not None:
        texts[0] += f" ± {record.latency_spread:.3f}"
    return ", ".join([*(_bold(text, record.headline) for text in texts[:1]), *texts[1:]])


def _worst(record: Record, *, digits: int = 2) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in record.worst)


def _percent(value: float | None, *, digits: int | None = None) -> str:
    if value is None:
        return ""
    return f"{value} %" if digits is None else f"{value:.{digits}f} %"


def _milliseconds(network: Network) -> str:
    return " to ".join(str(value) for value in network.milliseconds) + " ms"
