"""Progress is one live line on a terminal and plain lines elsewhere."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from s2d_convert.cli import progress
from s2d_convert.cli.progress import TerminalReporter

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


def reporter(*, terminal: bool) -> tuple[TerminalReporter, io.StringIO]:
    """A reporter that writes into a text."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100, highlight=False)
    return TerminalReporter(console), text


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call is shown."""
    monkeypatch.setattr(progress, "BAR_INTERVAL_S", 0.0)
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.0)


@pytest.mark.usefixtures("no_waiting")
def test_plain_lines_without_a_terminal() -> None:
    shown, text = reporter(terminal=False)
    shown.step("fine-tune")
    shown.progress(1, 4, "loss 0.5", 90.0)
    shown.note("[red]as it is[/red]")
    shown.warn("mind")
    shown.progress(4, 4, "loss 0.1", math.nan)
    assert text.getvalue().splitlines() == [
        "fine-tune",
        "  fine-tune: 1/4, loss 0.5, 1 min 30 s left",
        "  [red]as it is[/red]",
        "  warning: mind",
        "  fine-tune: 4/4, loss 0.1",
    ]


@pytest.mark.usefixtures("no_waiting")
def test_a_bar_on_a_terminal_makes_room_for_notes_and_gives_the_cursor_back() -> None:
    shown, text = reporter(terminal=True)
    shown.step("search")
    shown.progress(1, 4, "[plans]", 5.0)
    assert "1/4" in text.getvalue()
    assert "[plans], 5 s left" in text.getvalue()
    assert text.getvalue().count(HIDE_CURSOR) == 1
    shown.note("a note")
    assert text.getvalue().endswith("a note\n")
    assert text.getvalue().count(SHOW_CURSOR) == 1
    shown.progress(2, 4, "plans", math.nan)
    del shown
    assert text.getvalue().count(SHOW_CURSOR) == text.getvalue().count(HIDE_CURSOR) == 2


def test_progress_is_not_shown_at_every_step() -> None:
    shown, text = reporter(terminal=False)
    shown.step("training")
    for step in range(1, 1001):
        shown.progress(step, 1000, "loss", math.nan)
    assert text.getvalue().splitlines()[1:] == ["  training: 1000/1000, loss"]
