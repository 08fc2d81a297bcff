"""The output of `s2d inspect`: the data of `describe` as tables and a picture that fit the width of the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from s2d_convert.base.text import quantity
from s2d_convert.workflows.inspect import HOLDS_LOGITS, TIED_BY

LARGEST = 16  # channel classes of a large model that are shown by default
FEW = 20  # up to so many classes, all are shown
NAMED = 8  # opaque nodes per class and reason that are named by default
BAR = 10  # characters
GAP = 2  # characters between two columns
OPERATORS = 16  # least number of characters for the operators in the picture
ASCII_HEAD = box.Box("    \n    \n -- \n" + 5 * "    \n", ascii=True)
HEADS = (0.4, 0.6, 0.25, 0.75, 0.1, 0.9)  # shares of a shortened name that may stand before the cut


@dataclass(frozen=True)
class InspectView:
    """A view of a description: characters per line, whether to show all of it, and whether to use only ASCII."""

    width: int = 80
    everything: bool = False
    ascii_only: bool = False

    def __call__(self, about: Mapping[str, Any]) -> list[RenderableType]:
        """Return the parts of the output of `s2d inspect`. about: the data of `workflows.inspect.describe`."""
        about = self._safe(about)
        parts = [self._overview(about), self._classes(about), self._opaque(about), self._picture(about)]
        return [p for p in [*parts, self._unsupported(about)] if p is not None]

    # --- parts ---

    def _overview(self, about: Mapping[str, Any]) -> RenderableType:
        source, result = about["input"], about["output"]
        rows = [
            ("input", f"{_shape(source['shape'])}  {self._short(source['name'], 40)}"),
            ("output", f"{_shape(result['shape'])}  {self._short(result['name'], 40)}  ({result['kind']})"),
            ("operators", f"{about['nodes']} ({_opset(about)})"),
            ("cost", f"{quantity(about['macs'])} MACs per image, {quantity(about['parameters'])} parameters"),
            ("can be split by channels", f"{_percent(about['splittable_macs'])} of the MACs"),
            ("can be split by depth", f"at {len(about['taps'])} candidate taps"),
            ("can read images smaller", _sizes(about)),
        ]
        table = Table.grid(padding=(0, GAP))
        for label, value in rows:
            table.add_row(label, Text(value))
        return table

    def _classes(self, about: Mapping[str, Any]) -> RenderableType:
        classes = about["classes"]
        by_cost = sorted(range(len(classes)), key=lambda i: (-classes[i]["macs"], i))
        limit = len(classes) if self.everything or len(classes) <= FEW else LARGEST
        shown = [classes[i] for i in sorted(by_cost[:limit])]
        hidden = [classes[i] for i in by_cost[limit:]]
        headers = ("nodes", "channels", "units", "MACs", "split")
        cells = [_class_cells(c) for c in shown]
        room = self._room(headers, cells)
        table = self._table("made by", *headers)
        for group, row in zip(shown, cells, strict=True):
            table.add_row(Text("\n".join(self._made_by(group, about, room))), *row)
        below = self._packed(_more(hidden)) if hidden else []
        return Group(_section(f"channel classes: {len(classes)}"), table, *map(Text, below))

    def _made_by(self, group: Mapping[str, Any], about: Mapping[str, Any], room: int) -> list[str]:
        """Return lines with the first and last member, and the reason if the class cannot be split."""
        members = group["producers"] or [group["name"]]
        lines = [f"{members[0]} to {members[-1]}" if len(members) > 1 else members[0]]
        if len(lines[0]) > room:
            lines = [self._short(members[0], room)]
            lines += [f"  to {self._short(members[-1], room - 5)}"] if len(members) > 1 else []
        if group["reason"] is None:
            return lines
        return lines + [f"  {line}" for line in self._why_whole(group, about, room - 2)]

    def _why_whole(self, group: Mapping[str, Any], about: Mapping[str, Any], room: int) -> list[str]:
        tied_by = group["tied_by"]
        if group["reason"] == HOLDS_LOGITS or not tied_by:
            return self._packed(f"no: {group['reason']}", room)
        whys = {n["node"]: n["reason"] for n in about["opaque"]}
        cause = whys.get(tied_by[0], group["reason"].removeprefix(TIED_BY))
        more = f" and {len(tied_by) - 1} more" if len(tied_by) > 1 else ""
        return self._packed(f"no: {TIED_BY}{{}} ({cause}){more}", room, name=self._short(tied_by[0], room))

    def _opaque(self, about: Mapping[str, Any]) -> RenderableType | None:
        """Return a table with a row per class that opaque nodes tie: its cost, and the nodes by operator and reason."""
        ties: dict[str | None, list[Mapping[str, Any]]] = {}
        for node in about["opaque"]:
            ties.setdefault(node["class"], []).append(node)
        if not ties:
            return None
        lines = []
        for nodes in sorted(ties.values(), key=lambda nodes: -nodes[0]["macs"]):
            cost, count = nodes[0]["macs"], len(nodes)
            because = "because of this node" if count == 1 else f"while any of these {count} nodes is there"
            whole = "whole where it is first needed" if nodes[0]["class"] is None else "one unit"
            costs = f"{_percent(cost)} of the MACs: {whole} {because}"
            lines += self._packed(costs if cost else f"no cost: {_nodes(count)} around what is whole anyway")
            lines += self._reasons(nodes)
        return _section("opaque nodes: channels mix there, and their class splits by depth only", lines)

    def _reasons(self, nodes: Sequence[Mapping[str, Any]]) -> list[str]:
        reasons: dict[tuple[str, str], list[str]] = {}
        for node in nodes:
            reasons.setdefault((node["op"], node["reason"]), []).append(node["node"])
        lines = []
        for (op, reason), names in reasons.items():
            said = reason if op in reason else f"{op}: {reason}"
            lines += self._packed(f"  {said}", indent=4)
            shown = names if self.everything else names[:NAMED]
            lines += [f"    {self._short(name, self.width - 4)}" for name in shown]
            if len(names) > len(shown):
                lines.append(f"    and {len(names) - len(shown)} more (--all names them)")
        return lines

    def _picture(self, about: Mapping[str, Any]) -> RenderableType:
        """Return one line per tap: the share of the MACs before it, the tap, and the operators since the previous one."""
        source, result = about["input"], about["output"]
        first = {"tensor": source["name"], "shape": source["shape"][1:], "macs_before": 0.0, "operators": {}}
        last = {"tensor": result["name"], "shape": result["shape"][1:], "macs_before": 1.0, **about["last_stretch"]}
        ends = [first, *about["taps"], last]
        labels = [_label("image", first["tensor"]), *("" for _ in about["taps"]), _label("logits", last["tensor"])]
        headers = ("MACs before", "shape", "operators since the line above")
        cells = [(self._bar(e["macs_before"]), _shape(e["shape"])) for e in ends]
        flexible = self._room(headers[:2], cells) - GAP
        longest = max(len(label) + len(e["tensor"]) for label, e in zip(labels, ends, strict=True))
        first_words = [f"{count} {op}, ..." for e in ends for op, count in list(e["operators"].items())[:1]]
        names = min(longest, flexible - min(max(OPERATORS, *map(len, first_words)), 2 * OPERATORS))
        table = self._table(*headers[:2], "tap")
        table.add_column(headers[2] if flexible - names >= len(headers[2]) else "operators since", no_wrap=True)
        short = self._distinct([e["tensor"] for e in ends], [names - len(label) for label in labels])
        for label, name, end, row in zip(labels, short, ends, cells, strict=True):
            table.add_row(*row, Text(label + name), Text(self._counts(end["operators"], flexible - names)))
        return Group(_section("from the image to the logits, by way of the candidate taps"), table)

    def _unsupported(self, about: Mapping[str, Any]) -> RenderableType | None:
        nodes = about["unsupported"]
        if not nodes:
            return None
        lines = []
        for node in nodes:
            lines.append(f"  {self._short(node['node'], self.width - 2)}")
            lines += self._packed(f"    {node['op']}: {node['reason']}", indent=6)
        return _section(f"unsupported: the model cannot be converted because of {_nodes(len(nodes))}", lines)

    # --- words ---

    def _safe(self, value: Any) -> Any:
        """Return the data with all texts made printable, because names come from an untrusted file."""
        if isinstance(value, Mapping):
            return {key: self._safe(v) for key, v in value.items()}
        if isinstance(value, list):
            return [self._safe(v) for v in value]
        if not isinstance(value, str):
            return value
        text = "".join(c if c.isprintable() else "?" for c in value)
        return text.encode("ascii", "replace").decode() if self.ascii_only else text

    def _short(self, name: str, room: int, head: float = 0.4) -> str:
        """Return a name in at most `room` characters. Too long names are cut in the middle, after the share `head`."""
        mark = "..." if self.ascii_only else "…"
        if len(name) <= room:
            return name
        keep = max(2, room - len(mark))
        left = round(keep * head)
        return name[:left] + mark + name[len(name) - (keep - left) :]

    def _distinct(self, names: Sequence[str], rooms: Sequence[int]) -> list[str]:
        """Return the names shortened, cut where most of them remain distinct."""
        tries = [[self._short(n, r, head) for n, r in zip(names, rooms, strict=True)] for head in HEADS]
        return max(tries, key=lambda found: len(set(found)))

    def _packed(self, text: str, room: int | None = None, *, indent: int = 0, name: str = "") -> list[str]:
        """Return the text in lines of at most `room` characters. name: replaces {} and is never broken."""
        room = room or self.width
        lines: list[str] = []
        for word in (name if w == "{}" else w for w in text.split(" ")):
            if lines and len(lines[-1]) + 1 + len(word) <= room:
                lines[-1] += f" {word}"
            else:
                lines.append(" " * (indent if lines else 0) + word)
        return lines

    def _bar(self, share: float) -> str:
        full, rest = ("#", ".") if self.ascii_only else ("█", "░")
        done = round(BAR * share)
        return f"{full * done}{rest * (BAR - done)} {100 * share:3.0f} %"

    def _counts(self, operators: Mapping[str, int], room: int) -> str:
        """Return as many operators, with their numbers of occurrences, as there is room for."""
        words = [f"{count} {op}" for op, count in operators.items()]
        mark = ", ..." if self.ascii_only else ", …"
        shown = len(words)
        while shown > 1 and len(_listed(words, shown, mark)) > room:
            shown -= 1
        return self._short(_listed(words, shown, mark), room)

    def _table(self, *headers: str) -> Table:
        """Return a table without a frame, to leave room for names. The first column and text columns are left-aligned."""
        lines = ASCII_HEAD if self.ascii_only else box.SIMPLE_HEAD
        table = Table(box=lines, show_edge=False, pad_edge=False, collapse_padding=True)
        for index, header in enumerate(headers):
            left = index == 0 or header in ("tap", "split")
            table.add_column(header, justify="left" if left else "right", no_wrap=True)
        return table

    def _room(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
        """Return the characters of a line that columns with these cells leave free."""
        widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
        return max(20, self.width - sum(widths) - GAP * len(widths))


def _class_cells(group: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (str(group[key]) if key else str(len(group["producers"])) for key in ("", "channels", "units"))
    return (*counts, _percent(group["macs"]), "yes" if group["splittable"] else "no")


def _more(hidden: Sequence[Mapping[str, Any]]) -> str:
    whole = sum(not c["splittable"] for c in hidden)
    said = f", {whole} of them not split" if whole else ""
    return f"and {len(hidden)} more, {_percent(sum(c['macs'] for c in hidden))} of the MACs{said} (--all shows them)"


def _listed(said: Sequence[str], shown: int, mark: str) -> str:
    return ", ".join(said[:shown]) + (mark if shown < len(said) else "")


def _section(title: str, lines: Sequence[str] = ()) -> Text:
    text = Text(no_wrap=True, overflow="ignore")
    text.append(title, style="bold")
    for line in lines:
        text.append(f"\n{line}")
    return text


def _label(label: str, name: str) -> str:
    return "" if label == name else f"{label}: "


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _sizes(about: Mapping[str, Any]) -> str:
    """Return the smaller sizes of the image with what they leave of the cost, or why there is none."""
    if not about["sizes"]:
        return f"no: {about['size_fixed_by']}"
    sizes = (f"{'x'.join(map(str, size['sides']))} ({_percent(size['macs'])} of the MACs)" for size in about["sizes"])
    return f"at {', '.join(sizes)}"


def _shape(shape: Sequence[Any]) -> str:
    return "x".join(map(str, shape))


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _opset(about: Mapping[str, Any]) -> str:
    """Return the opset of the file and the one to which it was upgraded."""
    before, now = about["opset"], about["simplified_opset"]
    return f"opset {before}" if now == before else f"opset {before}, upgraded to {now}"
