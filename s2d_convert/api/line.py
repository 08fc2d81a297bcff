"""The progress of what a function does, in one line that is written anew: on a terminal, or below a notebook's cell."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from s2d_convert.base.reporting import PlannedStep, in_words
from s2d_convert.base.text import plain
from s2d_convert.cli.progress import BAR_INTERVAL_S, TerminalReporter

NOTEBOOK_COLUMNS = 100


class LineReporter(TerminalReporter):
    """A reporter that shows one line, collects warnings, and clears the line when it is closed.

    Where lines cannot be written anew, such as in a pipe, every step is a line of its own. quiet: show nothing, not even
    warnings.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None, live: bool | None = None) -> None:
        super().__init__(words="quiet")
        notebook = in_notebook()
        self._stream = stream or (sys.stdout if notebook else sys.stderr)  # a notebook shows stderr in red
        self._live = (notebook or self._stream.isatty()) if live is None else live
        self._columns = NOTEBOOK_COLUMNS if notebook else shutil.get_terminal_size().columns - 1
        self._quiet, self._line = quiet, ""
        self.warnings: list[str] = []

    def plan(self, steps: Sequence[PlannedStep], *, memory_bytes: int | None = None) -> None:
        """Take the steps to come, from which the line tells how far it is."""
        self._planned = tuple(steps)

    def step(self, name: str) -> None:
        """Show that a new step begins."""
        text = self._begun(name)
        if self._live:
            self._show(text)
        else:
            self._write(f"{text}\n")

    def note(self, text: str) -> None:
        """Take no notice: results are in what the function returns."""

    def detail(self, text: str) -> None:
        """Take no notice either."""

    def warn(self, text: str) -> None:
        """Show a warning on a line of its own, and keep it."""
        self.warnings.append(plain(text))
        self.tell(f"warning: {plain(text)}")

    def tell(self, text: str) -> None:
        """Show a text on a line of its own."""
        line = self._line
        self.close()
        self._write(f"{text}\n")
        self._show(line)

    def progress(self, done: int, total: int, what: str, seconds_left: float, *, detail: str = "") -> None:
        """Show the progress of the running step. seconds_left: NaN if unknown."""
        now = time.monotonic()
        if now - self._shown_at >= BAR_INTERVAL_S:
            self._shown_at = now
            self._show(f"{in_words(self._step)}: {done} of {total} {what}{self._left(seconds_left)}")

    def close(self) -> None:
        """Clear the line."""
        self._show("")

    def _show(self, text: str) -> None:
        """Write the line anew where that is possible."""
        text = plain(text)[: self._columns]
        if self._live and text != self._line:
            self._write(f"\r{text}{' ' * (len(self._line) - len(text))}" + ("" if text else "\r"))
            self._line = text

    def _write(self, text: str) -> None:
        if not self._quiet:
            self._stream.write(text)
            self._stream.flush()


def in_notebook() -> bool:
    """Return whether a notebook shows what is written to stdout."""
    return type(sys.stdout).__module__.startswith("ipykernel")
