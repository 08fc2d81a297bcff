"""What the functions return: numbers and folders that show themselves as text, as HTML and as a chart."""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from s2d_runtime import Dispatcher, Manifest

from s2d_convert.api.show import WIDTH, as_html, as_text
from s2d_convert.base.reporting import in_words, seconds_in_all
from s2d_convert.base.text import promise_cost, promise_text, quantity
from s2d_convert.calibration.verdict import Outcome, loss_text, worth_showing
from s2d_convert.cli.inspect_view import InspectView
from s2d_convert.cli.progress import duration
from s2d_convert.cli.terminal import class_table, measured_table, outcome_table, policy_table
from s2d_convert.conversion.estimate import Forecast
from s2d_convert.conversion.finish import Result
from s2d_convert.errors import UsageError
from s2d_convert.exporting.measure import Measured


class Shown(ABC):
    """A result that shows itself: one line for `repr`, plain text for `summary`, HTML for notebooks."""

    @abstractmethod
    def head(self) -> str:
        """Return the result in one short line."""

    @abstractmethod
    def parts(self) -> Iterable[RenderableType]:
        """Yield texts and tables, the most important first."""

    def summary(self) -> str:
        """Return the result as plain text."""
        return as_text(self.parts())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.head()}>"

    def _repr_html_(self) -> str:
        return as_html(self.head(), self.parts())


class OnFolder(Shown):
    """A result that is an exported folder. It may be given wherever the path of a folder is expected."""

    manifest: Manifest

    @property
    @abstractmethod
    def path(self) -> Path:
        """The folder."""

    @abstractmethod
    def outcomes(self) -> Sequence[Outcome]:
        """Return what every policy does, for the chart; the static model's accuracy is that of an outcome and its loss."""

    def __fspath__(self) -> str:
        return str(self.path)

    def dispatcher(self, **options: Any) -> Dispatcher:
        """Open the folder. options: those of `s2d_runtime.Dispatcher`, such as threads and budget."""
        return Dispatcher(self.path, **options)

    def plot(self, axes: Any = None) -> Any:
        """Draw accuracy (or agreement) against latency, and return matplotlib's axes. axes: where to draw, None for new ones.

        Raises UsageError if matplotlib is not installed, or nothing was measured.
        """
        outcomes = self.outcomes()
        if not outcomes:
            raise UsageError(
                f"{self.path}: nothing was measured, because the static model was not there; give model=..."
            )
        return plotted(outcomes, self.manifest, axes)


@dataclass(frozen=True, repr=False)
class ConvertResult(OnFolder, Result):
    """The outcome of a conversion. `verdict` is what it is worth, `measured` what was measured on unseen images."""

    warnings: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The exported folder."""
        return self.out

    def head(self) -> str:
        outcome = self.verdict.outcome
        return f"{self.out}: {outcome.latency:.3f} of static, {loss_text(outcome, self.manifest.target_name).lower()}"

    def parts(self) -> Iterable[RenderableType]:
        yield "\n".join(self.verdict.sentences)
        yield outcome_table(self.manifest, self.measured)
        yield from filter(None, (class_table(self.measured), promise_text(self.manifest)))
        if self.manifest.data == "made-up":
            yield "All numbers come from made-up images: expect others on real ones."
        if self.verdict.warning:
            yield f"warning: {self.verdict.warning}"
        if not self.reached:
            policy = self.manifest.default_policy
            missed = f"budget {policy.budget:g} was not reached: expected latency {policy.expected_latency:.3f}"
            yield promise_cost(self.manifest) or missed
        if not self.within_max_latency:
            yield f"max_latency was not kept: an image that needs every stage costs {self.worst_latency:.3f}"

    def outcomes(self) -> Sequence[Outcome]:
        return self.measured.outcomes


@dataclass(frozen=True, repr=False)
class CalibrateResult(OnFolder):
    """A folder after calibration: its new manifest, and whether the budget that was asked for is reached."""

    folder: Path
    manifest: Manifest
    reached: bool = True
    warnings: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The folder."""
        return self.folder

    def head(self) -> str:
        policy = self.manifest.default_policy
        target = f"{self.manifest.target_name} {100 * policy.expected_accuracy:.1f} %"
        return f"{self.folder}: {policy.expected_latency:.3f} of static, expected {target}"

    def parts(self) -> Iterable[RenderableType]:
        yield policy_table(self.manifest)
        yield from filter(None, (promise_text(self.manifest),))
        if not self.reached:
            yield promise_cost(self.manifest) or f"budget {self.manifest.default_budget:g} was not reached"

    def outcomes(self) -> Sequence[Outcome]:
        rows = self.manifest.measured.get("outcomes", ())
        return tuple(Outcome(**{**row, "exit_share": tuple(row["exit_share"])}) for row in rows)


@dataclass(frozen=True, repr=False)
class MeasuredResult(OnFolder):
    """A folder as it was measured on images."""

    folder: Path
    manifest: Manifest
    measured: Measured
    warnings: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The folder."""
        return self.folder

    def head(self) -> str:
        measured = self.measured
        right = "" if measured.correct_dynamic is None else f"accuracy {100 * measured.correct_dynamic:.2f} %, "
        agreement = f"agreement {100 * measured.agreement:.2f} %"
        return f"{self.folder}: {measured.mean_latency:.3f} of static, {right}{agreement}, {measured.images} images"

    def parts(self) -> Iterable[RenderableType]:
        yield measured_table(self.measured, title=f"{self.folder} on {self.measured.images} images")
        yield from filter(None, (class_table(self.measured),))

    def outcomes(self) -> Sequence[Outcome]:
        return self.measured.outcomes


class EvaluateResult(MeasuredResult):
    """What `evaluate` measured."""


@dataclass(frozen=True, repr=False)
class QuantizeResult(MeasuredResult):
    """The folder in another arithmetic that `export` has written, and in `sentences` what it is worth."""

    sentences: tuple[str, ...] = ()

    def parts(self) -> Iterable[RenderableType]:
        yield policy_table(self.manifest)
        yield from super().parts()
        yield "\n".join(self.sentences)


@dataclass(frozen=True, repr=False)
class ExportResult(Shown):
    """What `export` has written: a file or a folder, and what to know of it."""

    path: Path
    facts: tuple[str, ...]  # sentences, the first with the path

    def __fspath__(self) -> str:
        return str(self.path)

    def head(self) -> str:
        return self.facts[0]

    def parts(self) -> Iterable[RenderableType]:
        yield "\n".join(self.facts)


@dataclass(frozen=True, repr=False)
class InspectResult(Shown):
    """What a model offers. `about` is the data of `s2d inspect --json`, which `result["macs"]` reads too."""

    model: Path
    about: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.about[name]

    def head(self) -> str:
        about = self.about
        split = f"{100 * about['splittable_macs']:.0f} % can be split by channels, {len(about['taps'])} candidate taps"
        return f"{self.model}: {quantity(about['macs'])} MACs, {quantity(about['parameters'])} parameters, {split}"

    def parts(self) -> Iterable[RenderableType]:
        yield from InspectView(WIDTH)(self.about)

    def _repr_html_(self) -> str:
        table = Table()
        for name in ("channels made by", "channels", "units", "share of MACs", "split"):
            table.add_column(name, justify="left" if name in ("channels made by", "split") else "right")
        for group in self.about["classes"]:
            counts = (str(group["channels"]), str(group["units"]), f"{100 * group['macs']:.1f} %")
            table.add_row(group["name"], *counts, f"no: {group['reason']}" if group["reason"] else "yes")
        return as_html(self.head(), [table])


@dataclass(frozen=True, repr=False)
class ForecastResult(Shown):
    """What a conversion would take and may bring; `forecast` has the numbers."""

    model: Path
    forecast: Forecast

    def head(self) -> str:
        forecast = self.forecast
        seconds, memory = seconds_in_all(forecast.steps), f"up to {forecast.memory / 1e9:.1f} GB of memory"
        takes = f"about {duration(seconds)}, " if math.isfinite(seconds) else ""
        return f"{self.model}: {takes}{memory}, static {forecast.target} {100 * forecast.right:.1f} %"

    def parts(self) -> Iterable[RenderableType]:
        yield self.head()
        steps = Table(title="steps", title_justify="left", box=box.SIMPLE_HEAD)
        for name in ("step", "takes about"):
            steps.add_column(name)
        for step in self.forecast.steps:
            steps.add_row(in_words(step.name), duration(step.seconds) if math.isfinite(step.seconds) else "")
        yield steps
        if self.forecast.expected:
            expected = Table(title="before any training", title_justify="left", box=box.SIMPLE_HEAD)
            for name in ("share of static's time", "points lost"):
                expected.add_column(name, justify="right")
            for row in self.forecast.expected:
                lost = max(0.0, 100 * (self.forecast.right - row.right))
                expected.add_row(f"{row.budget:.1f}", f"{lost:.1f}")
            yield expected


@dataclass(frozen=True, repr=False)
class PicturesResult(Shown):
    """Some pictures as the model sees them: `pictures`, and the same in lines."""

    model: Path
    pictures: tuple[Any, ...]
    lines: tuple[str, ...]

    def head(self) -> str:
        return f"{len(self.pictures)} pictures as {self.model} sees them"

    def parts(self) -> Iterable[RenderableType]:
        yield "\n".join(self.lines)

    def _repr_html_(self) -> str:
        return as_html(self.head(), [line for line in self.lines if not line.startswith("  ")])


def plotted(outcomes: Sequence[Outcome], manifest: Manifest, axes: Any) -> Any:
    """Return axes with the policies worth showing, the one in use, and the static model. Raises UsageError."""
    if axes is None:
        try:
            axes = importlib.import_module("matplotlib.pyplot").subplots(figsize=(6, 4))[1]
        except ModuleNotFoundError as error:
            raise UsageError("plot: matplotlib is not installed; pip install matplotlib") from error
    shown = worth_showing(outcomes, manifest.default_budget)
    latency, right = [o.latency for o in shown], [100 * o.right for o in shown]
    axes.errorbar(latency, right, yerr=[100 * o.loss_error for o in shown], marker="o", capsize=3, label="budgets")
    for chosen in (o for o in shown if o.budget == manifest.default_budget):
        axes.plot([chosen.latency], [100 * chosen.right], "s", markersize=10, fillstyle="none", label="in use")
    axes.plot([1.0], [100 * (shown[0].right + shown[0].loss)], "k*", markersize=11, label="static model")
    axes.set_xlabel("mean latency, share of static")
    axes.set_ylabel(f"{manifest.target_name}, %")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()
    return axes
