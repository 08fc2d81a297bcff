"""The progress of a conversion on stderr: a live bar on a terminal, a plain line now and then otherwise."""

from __future__ import annotations

import math
import time
import weakref

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from s2d_convert.base.text import plain

BAR_INTERVAL_S, PLAIN_INTERVAL_S = 0.2, 10.0  # seconds between two updates


def say_warning(text: str) -> None:
    """Print a warning outside a conversion."""
    click.echo(f"warning: {plain(text)}", err=True)


class TerminalReporter:
    """A reporter that shows steps, notes, warnings and progress on stderr."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=self.console,
            transient=True,
            auto_refresh=False,
        )
        weakref.finalize(self, _stop, self._bar)  # a bar hides the cursor; show it again however the process ends
        self._task: TaskID | None = None
        self._step = ""
        self._shown_at = 0.0

    def step(self, name: str) -> None:
        """Show that a new step begins."""
        self._remove_bar()
        self._step = name
        self._shown_at = time.monotonic()
        self.console.print(f"[bold]{name}[/bold]")

    def note(self, text: str) -> None:
        """Show a result."""
        self._remove_bar()
        self.console.print(f"  {text}", markup=False)

    def warn(self, text: str) -> None:
        """Show a warning."""
        self._remove_bar()
        self.console.print(f"  warning: {plain(text)}", style="yellow", markup=False)

    def progress(self, done: int, total: int, detail: str, seconds_left: float) -> None:
        """Show the progress of the running step. seconds_left: NaN if unknown."""
        now = time.monotonic()
        interval = BAR_INTERVAL_S if self.console.is_terminal else PLAIN_INTERVAL_S
        if now - self._shown_at < interval and done < total:
            return
        self._shown_at = now
        detail += "" if math.isnan(seconds_left) else f", {_duration(seconds_left)} left"
        if self.console.is_terminal:
            self._move_bar(done, total, detail)
        else:
            self.console.print(f"  {self._step}: {done}/{total}, {detail}", markup=False)

    def _move_bar(self, done: int, total: int, detail: str) -> None:
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(self._step, total=total, detail=detail)
        self._bar.update(self._task, completed=done, total=total, detail=detail, refresh=True)

    def _remove_bar(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._bar.stop()
            self._task = None


def _stop(bar: Progress) -> None:
    """Stop a bar if it is shown. For a bar that was never shown, rich would print an empty line."""
    if bar.live.is_started:
        bar.stop()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
