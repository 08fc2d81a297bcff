"""The progress of a conversion on stderr: one live bar on a terminal, a plain line now and then otherwise.

Three amounts of words: quiet (warnings and progress are left out too), plain, and verbose, which adds what only those who
know the method can read.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Sequence
from typing import Literal

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from s2d_convert.base.reporting import PlannedStep, in_words, seconds_in_all
from s2d_convert.base.text import plain

BAR_INTERVAL_S, PLAIN_INTERVAL_S = 0.2, 10.0  # seconds between two updates
Words = Literal["quiet", "plain", "verbose"]


def say_warning(text: str) -> None:
    """Print a warning outside a conversion."""
    click.echo(f"warning: {plain(text)}", err=True)


class TerminalReporter:
    """A reporter that shows the plan, steps, notes, warnings and progress on stderr."""

    def __init__(self, console: Console | None = None, *, words: Words = "plain") -> None:
        self.console = console or Console(stderr=True, highlight=False, quiet=words == "quiet")
        self._verbose = words == "verbose"
        self._bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}", markup=False),
            console=self.console,
            transient=True,
            auto_refresh=False,
        )
        weakref.finalize(self, _stop, self._bar)  # a bar hides the cursor; show it again however the process ends
        self._task: TaskID | None = None
        self._planned: tuple[PlannedStep, ...] = ()
        self._step = ""
        self._began_at = self._shown_at = 0.0

    def plan(self, steps: Sequence[PlannedStep], *, memory_bytes: int | None = None) -> None:
        """Show the steps to come on one screen, with their times and the memory as far as they are known."""
        self._remove_bar()
        self._planned = tuple(steps)
        facts = [f"{len(steps)} steps"]
        if math.isfinite(seconds := seconds_in_all(steps)):
            facts.append(f"about {duration(seconds)}")
        if memory_bytes is not None:
            facts.append(f"up to {memory_bytes / 1e9:.1f} GB of memory")
        self._print(f"The plan: {', '.join(facts)}", style="bold")
        for number, step in enumerate(steps, start=1):
            takes = f"about {duration(step.seconds)}" if math.isfinite(step.seconds) else ""
            self._print(f"  {number}  {in_words(step.name):34}{takes}".rstrip())

    def step(self, name: str) -> None:
        """Show that a new step begins."""
        self._remove_bar()
        self._print(self._begun(name), style="bold")

    def _begun(self, name: str) -> str:
        """Begin a step, and return it in words."""
        self._step = name
        self._shown_at = self._began_at = time.monotonic()
        number = next((n for n, step in enumerate(self._planned, start=1) if step.name == name), None)
        place = "" if number is None else f"step {number} of {len(self._planned)}: "
        return f"{place}{in_words(name)}{self._left(math.nan)}"

    def note(self, text: str) -> None:
        """Show a result."""
        self._remove_bar()
        self._print(f"  {text}")

    def detail(self, text: str) -> None:
        """Show a result for those who know the method, where they asked for it."""
        if self._verbose:
            self.note(text)

    def warn(self, text: str) -> None:
        """Show a warning."""
        self._remove_bar()
        self._print(f"  warning: {plain(text)}", style="yellow")

    def progress(self, done: int, total: int, what: str, seconds_left: float, *, detail: str = "") -> None:
        """Show the progress of the running step. seconds_left: NaN if unknown."""
        now = time.monotonic()
        interval = BAR_INTERVAL_S if self.console.is_terminal else PLAIN_INTERVAL_S
        if now - self._shown_at < interval:
            return
        self._shown_at = now
        said = f"{what}{f', {detail}' if detail and self._verbose else ''}{self._left(seconds_left)}"
        if self.console.is_terminal:
            self._move_bar(done, total, said)
        else:
            self._print(f"  {in_words(self._step)}: {done}/{total} {said}")

    def _left(self, seconds_of_step: float) -> str:
        """Return the time that is left in words, '' if it is not known: in all where the plan has times, else for the step."""
        names = [step.name for step in self._planned]
        if self._step not in names or not math.isfinite(seconds_in_all(self._planned)):
            return f", about {duration(seconds_of_step)} left" if math.isfinite(seconds_of_step) else ""
        index = names.index(self._step)
        if not math.isfinite(seconds_of_step):
            spent = time.monotonic() - self._began_at
            seconds_of_step = max(0.0, seconds_in_all([PlannedStep("", 0.0), self._planned[index]]) - spent)
        later = seconds_in_all([PlannedStep("", 0.0), *self._planned[index + 1 :]])
        return f", about {duration(seconds_of_step + later)} left in all"

    def _print(self, text: str, *, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, soft_wrap=not self.console.is_terminal)

    def _move_bar(self, done: int, total: int, said: str) -> None:
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(in_words(self._step), total=total, said=said)
        self._bar.update(self._task, completed=done, total=total, said=said, refresh=True)

    def _remove_bar(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._bar.stop()
            self._task = None


def _stop(bar: Progress) -> None:
    """Stop a bar if it is shown. For a bar that was never shown, rich would print an empty line."""
    if bar.live.is_started:
        bar.stop()


def duration(seconds: float) -> str:
    """Return a length of time as people say it: seconds below a minute and a half, else minutes, or hours and minutes."""
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{minutes} min" if not hours else f"{hours} h {rest} min"
