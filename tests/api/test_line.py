"""Progress in one line: written anew where that is possible, and gone in the end."""

from __future__ import annotations

import io
import math

import pytest
from rich.table import Table

from s2d_convert.api import line as module
from s2d_convert.api.line import LineReporter
from s2d_convert.api.show import as_html, as_text
from s2d_convert.base.reporting import PlannedStep, in_words


def shown(text: str) -> list[str]:
    """What a terminal shows for a text: a carriage return goes back to the start of the line."""
    lines = []
    for raw in text.split("\n"):
        cells: list[str] = []
        for part in raw.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return lines


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call is shown."""
    monkeypatch.setattr(module, "BAR_INTERVAL_S", 0.0)


@pytest.mark.usefixtures("no_waiting")
def test_one_line_is_written_anew_and_cleared() -> None:
    stream = io.StringIO()
    line = LineReporter(stream=stream, live=True)
    line.plan([PlannedStep("search"), PlannedStep("export")])
    line.step("search")
    assert shown(stream.getvalue()) == [f"step 1 of 2: {in_words('search')}"]
    line.progress(3, 24, "plans", 40.0, detail="reward 0.5")
    assert shown(stream.getvalue()) == [f"{in_words('search')}: 3 of 24 plans, about 40 s left"]
    line.note("a note")
    line.detail("a detail")
    line.warn("few images\x1b[31m")
    assert line.warnings == ["few images?[31m"]
    assert shown(stream.getvalue())[0] == "warning: few images?[31m"
    assert "3 of 24" in shown(stream.getvalue())[1]
    line.progress(4, 24, "plans", math.nan)
    line.close()
    assert shown(stream.getvalue()) == ["warning: few images?[31m", ""]


def test_in_a_pipe_every_step_is_a_line() -> None:
    stream = io.StringIO()
    line = LineReporter(stream=stream)
    line.step("load")
    line.progress(1, 2, "images", 1.0)
    line.warn("mind")
    line.close()
    assert stream.getvalue() == f"{in_words('load')}\nwarning: mind\n"


def test_quiet_shows_nothing_and_keeps_warnings() -> None:
    stream = io.StringIO()
    line = LineReporter(quiet=True, stream=stream, live=True)
    line.step("load")
    line.warn("mind")
    line.close()
    assert stream.getvalue() == ""
    assert line.warnings == ["mind"]


def test_a_long_line_does_not_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = io.StringIO()
    line = LineReporter(stream=stream, live=True)
    line.step("x" * 50)
    assert shown(stream.getvalue()) == ["x" * 19]


def test_notebooks_are_known_by_their_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not module.in_notebook()
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr("sys.stdout", stream)
    LineReporter().step("load")
    assert stream.getvalue() == f"\r{in_words('load')}"


def test_texts_are_texts_in_a_notebook_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert as_text(["one", "[two]"]) == "one\n\n[two]"


def test_html_is_escaped_and_in_one_line() -> None:
    table = Table("<a>", title="t & u")
    table.add_row("x < y")
    html = as_html("<head>", ["one\n<two>", table])
    assert html.startswith("<div><b>&lt;head&gt;</b><p>one<br>&lt;two&gt;</p><table><caption>t &amp; u</caption>")
    assert "x &lt; y</td>" in html
    assert "\n" not in html
