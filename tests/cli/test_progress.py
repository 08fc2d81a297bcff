"""Progress is one live line on a terminal and plain lines elsewhere, in words that newcomers know."""

from __future__ import annotations

import io
import math
import time

import pytest
from rich.console import Console

from s2d_convert.base.reporting import STEPS, PlannedStep, in_words, seconds_in_all
from s2d_convert.cli import progress
from s2d_convert.cli.progress import TerminalReporter, Words

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


def reporter(*, terminal: bool, words: Words = "plain") -> tuple[TerminalReporter, io.StringIO]:
    """A reporter that writes into a text."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100, highlight=False)
    return TerminalReporter(console, words=words), text


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call is shown."""
    monkeypatch.setattr(progress, "BAR_INTERVAL_S", 0.0)
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the reporter's clock shows, to be set by the test."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.mark.usefixtures("no_waiting")
def test_plain_lines_without_a_terminal() -> None:
    shown, text = reporter(terminal=False)
    shown.step("fine-tune")
    shown.progress(1, 4, "training steps", 150.0, detail="loss 0.5")
    shown.note("[red]as it is[/red]")
    shown.warn("mind")
    shown.progress(4, 4, "training steps", math.nan, detail="loss 0.1")
    assert text.getvalue().splitlines() == [
        "training the chosen plan",
        "  training the chosen plan: 1/4 training steps, about 2 min left",
        "  [red]as it is[/red]",
        "  warning: mind",
        "  training the chosen plan: 4/4 training steps",
    ]


@pytest.mark.usefixtures("no_waiting")
def test_what_only_experts_read_is_shown_on_request() -> None:
    shown, text = reporter(terminal=False, words="verbose")
    shown.step("search")
    shown.progress(1, 4, "plans tried", math.nan, detail="reward 0.8")
    shown.detail("finals")
    assert text.getvalue().splitlines()[1:] == ["  choosing among plans: 1/4 plans tried, reward 0.8", "  finals"]
    shown, text = reporter(terminal=False)
    shown.detail("finals")
    assert not text.getvalue()


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown = TerminalReporter(words="quiet")
    shown.plan([PlannedStep("search")])
    shown.step("search")
    shown.note("a note")
    shown.warn("a warning")
    shown.progress(4, 4, "plans tried", 1.0)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("no_waiting")
def test_the_plan_counts_its_steps_and_the_time_that_is_left(clock: list[float]) -> None:
    shown, text = reporter(terminal=False)
    shown.step("load")
    shown.plan(
        [PlannedStep("search", 240.0), PlannedStep("finals", 400.0), PlannedStep("export")], memory_bytes=3_100_000_000
    )
    shown.step("search")
    clock[0] += 60
    shown.progress(1, 4, "plans tried", math.nan)
    shown.progress(2, 4, "plans tried", 100.0)
    shown.step("finals")
    clock[0] += 1000  # longer than planned
    shown.progress(1, 4, "training steps", math.nan)
    shown.step("measure")
    assert text.getvalue().splitlines() == [
        "reading the model",
        "The plan: 3 steps, about 11 min, up to 3.1 GB of memory",
        "  1  choosing among plans              about 4 min",
        "  2  trying out the best plans         about 7 min",
        "  3  writing the stages",
        "step 1 of 3: choosing among plans, about 11 min left in all",
        "  choosing among plans: 1/4 plans tried, about 10 min left in all",
        "  choosing among plans: 2/4 plans tried, about 8 min left in all",
        "step 2 of 3: trying out the best plans, about 7 min left in all",
        "  trying out the best plans: 1/4 training steps, about 0 s left in all",
        "measuring the result",
    ]


def test_a_plan_without_times_counts_only() -> None:
    shown, text = reporter(terminal=False)
    shown.plan([PlannedStep("search"), PlannedStep("measure")])
    shown.step("measure")
    assert text.getvalue().splitlines()[0] == "The plan: 2 steps"
    assert text.getvalue().splitlines()[-1] == "step 2 of 2: measuring the result"
    assert math.isnan(seconds_in_all([PlannedStep("search")]))


def test_no_step_speaks_to_insiders() -> None:
    for name in STEPS:
        assert not {"supernet", "reward", "finals", "heads", "fine-tune"} & set(in_words(name).split())
    assert in_words("measure folder 3 of 4") == "measure folder 3 of 4"


@pytest.mark.usefixtures("no_waiting")
def test_a_bar_on_a_terminal_makes_room_for_notes_and_gives_the_cursor_back() -> None:
    shown, text = reporter(terminal=True)
    shown.step("search")
    shown.progress(1, 4, "[plans]", 5.0)
    assert "1/4" in text.getvalue()
    assert "[plans], about 5 s left" in text.getvalue()
    assert text.getvalue().count(HIDE_CURSOR) == 1
    shown.note("a note")
    assert text.getvalue().endswith("a note\n")
    assert text.getvalue().count(SHOW_CURSOR) == 1
    shown.progress(2, 4, "plans", math.nan)
    del shown
    assert text.getvalue().count(SHOW_CURSOR) == text.getvalue().count(HIDE_CURSOR) == 2


def test_progress_is_shown_now_and_then(clock: list[float]) -> None:
    shown, text = reporter(terminal=False)
    shown.step("training")
    for step in range(1, 1001):
        clock[0] += 0.025
        shown.progress(step, 1000, "steps", math.nan)
    assert text.getvalue().splitlines()[1:] == ["  training: 400/1000 steps", "  training: 800/1000 steps"]
