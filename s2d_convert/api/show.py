"""Results as plain text and as HTML, from the tables that the command line shows."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.table import Table

WIDTH = 120
CELL = "padding:1px 8px;text-align:{}"


def as_text(parts: Iterable[RenderableType]) -> str:
    """Return parts as plain text, a blank line between two of them, without spaces at the ends of lines."""
    blocks = []
    for part in parts:
        text = io.StringIO()
        console = Console(
            file=text, width=WIDTH, color_system=None, markup=False, highlight=False, emoji=False, force_jupyter=False
        )
        console.print(part, soft_wrap=isinstance(part, str))
        blocks.append("\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n"))
    return "\n\n".join(blocks)


def as_html(head: str, parts: Iterable[RenderableType]) -> str:
    """Return a heading, and parts that are tables or texts, as compact HTML. Everything in it is escaped."""
    blocks = [f"<b>{html.escape(head)}</b>"]
    blocks += [_table(part) if isinstance(part, Table) else _text(str(part)) for part in parts]
    return f"<div>{''.join(blocks)}</div>"


def _text(text: str) -> str:
    return f"<p>{'<br>'.join(map(html.escape, text.splitlines()))}</p>"


def _table(table: Table) -> str:
    cells = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    sides = ["right" if column.justify == "right" else "left" for column in table.columns]
    rows = [
        "".join(
            f'<{tag} style="{CELL.format(side)}">{html.escape(text)}</{tag}>'
            for side, text in zip(sides, row, strict=True)
        )
        for tag, row in zip(["th", *["td"] * table.row_count], zip(*cells, strict=True), strict=True)
    ]
    title = f"<caption>{html.escape(str(table.title))}</caption>" if table.title else ""
    return f"<table>{title}{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
