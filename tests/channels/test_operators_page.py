"""docs/operators.md is what `make docs` writes, and tells the truth about the tables."""

from __future__ import annotations

import re

import onnx
import pytest
from operators_page import MARK, PAGE, kinds, page, reasons

from s2d_convert.channels.kinds import RULES
from s2d_convert.network.converters.lower import BUILDERS


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text), "docs/operators.md differs from the tables; run `make docs`"


def test_every_operator_has_one_row() -> None:
    table = page(MARK).partition("## Rules")[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")]
    assert rows[2:] == sorted({*RULES, *BUILDERS})


def test_what_is_left_out_is_told_by_name() -> None:
    """Of the newest operators of onnx every one either has a builder or stands in the list of those that are left out."""
    prose = PAGE.read_text(encoding="utf-8").partition("## What is left out")[2].partition(MARK)[0]
    named = set(re.findall(r"`([A-Z]\w+)`", prose))
    table = {s.name for s in onnx.defs.get_all_schemas() if not s.domain and not s.deprecated}
    assert sorted(named & BUILDERS.keys()) == [], "these have a builder; take them out of 'What is left out'"
    assert named == table - BUILDERS.keys(), (
        "'What is left out' differs from the operators of onnx that have no builder"
    )


def test_every_rule_has_a_builder() -> None:
    assert sorted(RULES.keys() - BUILDERS.keys()) == [], (
        "these have a rule and no builder; add one to network/converters"
    )


def test_the_introduction_stays() -> None:
    assert page(f"my words\n{MARK}\nold tables").startswith(f"my words\n{MARK}\n\n## Operators\n")


def test_a_page_without_its_mark_is_not_overwritten() -> None:
    with pytest.raises(ValueError, match="put it back"):
        page("")


def test_roles_and_reasons_come_from_the_source() -> None:
    assert kinds(RULES["Flatten"]) == ("move",)
    assert {"mix", "grouped", "opaque"} <= set(kinds(RULES["Conv"]))
    assert {"map", "join", "opaque"} <= set(kinds(RULES["Add"]))
    assert "its weight is computed" in reasons(RULES["Conv"])


@pytest.mark.parametrize("op", sorted(RULES))
def test_every_rule_tells_its_roles(op: str) -> None:
    assert kinds(RULES[op])
    assert all(reason.strip() for reason in reasons(RULES[op]))
