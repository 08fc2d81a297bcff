"""Writes docs/operators.md: the hand-written introduction stays, the tables below it come from RULES and BUILDERS.

`make docs` runs this with --write; without it the page goes to stdout.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from s2d_convert.channels.kinds import RULES, Kind, Rule, opaque
from s2d_convert.network.converters.lower import BUILDERS

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"
MARK = "<!-- What follows is written by `make docs` from the tables in the code. Do not edit it here. -->"
NO_RULE = "-"

Function = Callable[..., Any]


def page(text: str) -> str:
    """The page anew: the introduction of `text`, up to the mark, and the tables. Raises ValueError without a mark."""
    introduction, mark, _ = text.partition(MARK)
    if not mark:
        raise ValueError(f"{PAGE.name} has lost the line that ends its introduction; put it back: {MARK}")
    operators = sorted({*RULES, *BUILDERS})
    tables = [_operator_table(operators), _rule_table()]
    return f"{introduction}{MARK}\n\n" + "\n\n".join("\n".join(lines) for lines in tables) + "\n"


def _operator_table(operators: Iterable[str]) -> list[str]:
    lines = [
        "## Operators",
        "",
        _row("operator", "roles", "rule", "constants cut by channel", "keeps zero", "in torch"),
    ]
    lines.append(_row(*["---"] * 6))
    for op in operators:
        found = RULES.get(op)
        torch = "yes" if op in BUILDERS else "**no**"
        if found is None:
            lines.append(_row(op, Kind.OPAQUE.value, NO_RULE, "", "", torch))
        else:
            zero = "yes" if found.keeps_zero else ""
            lines.append(_row(op, ", ".join(kinds(found)), _name(found), _constants(found), zero, torch))
    return lines


def _rule_table() -> list[str]:
    lines = ["## Rules", "", _row("rule", "what it does", "opaque when"), _row(*["---"] * 3)]
    by_function = {found.role: found for found in RULES.values()}
    for found in sorted(by_function.values(), key=_name):
        said = (inspect.getdoc(found.role) or "").partition("\n")[0]
        lines.append(_row(_name(found), said, "; ".join(reasons(found))))
    return lines


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _name(found: Rule) -> str:
    return found.role.__name__.strip("_").replace("_", " ")


def _constants(found: Rule) -> str:
    one_each = f"inputs {', '.join(map(str, found.vectors))}: one value per channel" if found.vectors else ""
    return "; ".join(part for part in (one_each, "broadcast as in numpy" if found.broadcasts else "") if part)


# --- what the source of a rule tells ----------------------------------------------------------------


def kinds(found: Rule) -> tuple[str, ...]:
    """The roles that a rule can answer, in the order of `Kind`."""
    named = {
        node.attr
        for node in _source(found.role)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == Kind.__name__
    }
    return tuple(k.value for k in Kind if k.name in named)


def reasons(found: Rule) -> tuple[str, ...]:
    """Why a rule can answer that a node is opaque, each reason once; where several operators share a rule, "the operator"."""
    ops = [op for op, other in RULES.items() if other.role is found.role]
    said = [
        _text(call.args[0], ops[0] if len(ops) == 1 else "the operator") for call in _calls(found.role, opaque.__name__)
    ]
    return tuple(dict.fromkeys(said))


def _calls(function: Function, name: str) -> Iterator[ast.Call]:
    for node in _source(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


def _source(function: Function) -> Iterator[ast.AST]:
    """The syntax of a rule and of the functions that it calls and that make roles, each once."""
    pending, seen = [function], {function}
    while pending:
        current = pending.pop(0)
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(current)))):
            yield node
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            called = current.__globals__.get(name)
            if inspect.isfunction(called) and called.__annotations__.get("return") == "Role" and called not in seen:
                seen.add(called)
                pending.append(called)


def _text(node: ast.expr, op: str) -> str:
    """A string of the source; whatever an f-string fills in is told as the operator."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else op for part in parts)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} instead of stdout")
    made = page(PAGE.read_text(encoding="utf-8"))
    if parser.parse_args().write:
        PAGE.write_text(made, encoding="utf-8")
    else:
        sys.stdout.write(made)


if __name__ == "__main__":
    main()
