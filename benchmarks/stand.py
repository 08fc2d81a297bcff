"""What all methods of the measuring stand share: one model, one division of the images, one recipe of training, one folder.

The images are divided once, by seed 0; further seeds change training and search only. Solved weights are shared by all seeds, and
serves every method and budget that starts from it. Everything that is finished lies in the folder, so that a run that was
killed goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from s2d_convert.base.files import write_bytes, write_json
from s2d_convert.base.reporting import Reporter
from s2d_convert.conversion.context import Job, Prepared, Tuned, make_meter
from s2d_convert.conversion.explore import make_evaluator
from s2d_convert.conversion.finals import play_finals
from s2d_convert.conversion.finish import finish
from s2d_convert.conversion.options import ConvertOptions, Effort
from s2d_convert.conversion.pipeline import plan_space
from s2d_convert.conversion.prepare import prepare
from s2d_convert.conversion.run_folder import CHOSEN, RunFolder
from s2d_convert.conversion.training_steps import finetune
from s2d_convert.errors import OutputError
from s2d_convert.exporting.provenance import model_sha256
from s2d_convert.latency import LatencyMeter
from s2d_convert.plans.plan import Conversion
from s2d_convert.plans.space import PlanSpace
from s2d_convert.search.evaluate import Evaluator
from s2d_convert.slicing.chain import build_stages, read_chain


@dataclass(frozen=True)
class BenchOptions(ConvertOptions):
    """Options of a conversion whose amounts of work may be set one by one. `replacement` is the user's own smaller model."""

    amounts: Effort | None = None
    replacement: Path | None = None

    @property
    def work(self) -> Effort:
        """The amounts of work: those of `amounts`, or those behind `effort`. Baselines are methods of their own here."""
        return replace(self.amounts or super().work, baselines=False)


@dataclass(frozen=True)
class Entry:
    """One model that a method made: a file or an exported folder under the stand's folder, and how to run it.

    `budget` is the one to run at (None: the model has no budget), `planned` the one that its plan was searched for;
    `validation` is the accuracy on the calibration images, `facts` whatever else is known.
    """

    method: str
    seed: int
    path: str
    budget: float | None = None
    planned: float | None = None
    validation: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A file name of its own."""
        at = "" if self.budget is None else f"-{self.budget:g}"
        plan = "" if self.planned == self.budget else f"-planned-{self.planned:g}"
        return f"{self.method}-s{self.seed}{at}{plan}"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        return asdict(self)


@dataclass(frozen=True)
class NotRun:
    """A row without numbers: a method that could not be run, and why. `budget` is None for a method without one."""

    method: str
    seed: int
    budget: float | None
    reason: str


class Stand:
    """The folder of a run, and what is made once for all methods.

    `asked` is what must be the same when the run goes on, as text. Raises OutputError when the run in the folder was
    begun with something else: numbers would not fit together.
    """

    def __init__(self, root: Path, options: BenchOptions, reporter: Reporter, asked: Mapping[str, str]) -> None:
        self.root, self.options, self.reporter, self._asked = root, options, reporter, asked
        self._begun_with(asked)
        self._evaluators: dict[int, Evaluator] = {}

    @cached_property
    def ready(self) -> Prepared:
        """The model and the images. Raises OutputError when the folder was begun with others of the same names."""
        ready = prepare(self.options, self.reporter)
        self.begin({**self._asked, "content of --data": ready.dataset.digest()})
        return ready

    def begin(self, asked: Mapping[str, str]) -> None:
        """Keep in the folder what the run is begun with, once it is known to be sound. Raises OutputError when it was begun
        with something else."""
        before = self._begun_with(asked)
        self.root.mkdir(parents=True, exist_ok=True)
        write_json(self.root / "options.json", {**before, **asked})

    def _begun_with(self, asked: Mapping[str, str]) -> dict[str, str]:
        """Return what the run was begun with. Raises OutputError where that is something else than this."""
        path = self.root / "options.json"
        before: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        changed = [name for name, value in asked.items() if before.get(name, value) != value]
        if changed:
            raise OutputError(f"{self.root}: the run there had another {', '.join(changed)}; choose another --out")
        return before

    @cached_property
    def space(self) -> PlanSpace:
        """All plans."""
        return plan_space(self.ready, self.options)

    @cached_property
    def meter(self) -> LatencyMeter:
        """Times models next to the static one, or predicts them for the device that plans are for."""
        return make_meter(self.ready, self.options.running)

    def job(self, name: str, seed: int, **changes: Any) -> Job:
        """Return a conversion of its own, kept in the folder under `name`."""
        options = replace(self.options, out=self.root / name, seed=seed, **changes)
        run = RunFolder(options.out)
        run.open({"seed": seed, **{k: str(v) for k, v in changes.items() if k != "budget"}})
        return Job(options, self.ready, run, self.reporter)

    def evaluator(self, seed: int, budget: float) -> Evaluator:
        """Return the worth of plans; a candidate is timed and run once for all methods and budgets."""
        if seed not in self._evaluators:
            self._evaluators[seed] = make_evaluator(self.job(f"search-s{seed}", seed))
        return self._evaluators[seed].at_budget(budget)

    def finalist(self, job: Job, seed: int, budget: float, first: Conversion) -> tuple[Conversion, Path | None]:
        """Return the conversion that wins the finals of a search, and what it is trained on from; a plan that several
        searches send there is trained once."""
        place = self.root / f"finals-s{seed}"
        place.mkdir(parents=True, exist_ok=True)
        winner = play_finals(job, self.space, first, self.evaluator(seed, budget).latency, place=place)
        assert winner is not None  # there is nothing that it had to be better than
        return winner

    def folder(
        self,
        conversion: Conversion,
        seed: int,
        budget: float,
        *,
        start: Path | None = None,
        tuned: Tuned | None = None,
        name: str = "",
    ) -> str:
        """Return the exported folder of a conversion, relative to the root; equal conversions are trained once per seed."""
        name = name or f"folders/{conversion.digest()}-s{seed}"
        if not (self.root / name).exists():
            job = self.job(name, seed, budget=budget)
            tuned = tuned or finetune(job, conversion.chains[0], start=start)
            # With this `s2d evaluate` finds the static model of a folder of the stand as of any other.
            finish(job, tuned, conversion, provenance={"model_sha256": model_sha256(self.options.model)})
            job.run.remove()
        return name

    def file(self, name: str, tuned: Tuned) -> str:
        """Return the ONNX file of a trained network with one exit, relative to the root; with the logits as its only
        output, so that it pays for nothing that a static model would not."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (stage,) = build_stages([tuned.chain])
        partial = path.with_suffix(".stage.onnx")
        write_bytes(partial, stage.model.SerializeToString())
        write_bytes(path, read_chain(partial).model.graph.to_model().SerializeToString())
        partial.unlink()
        return name

    def known(self, kind: str, name: str) -> Any:
        """Return a finished JSON result, None if it is not there yet."""
        path = self.root / kind / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def keep(self, kind: str, name: str, data: Any) -> None:
        """Write a JSON result whole."""
        (self.root / kind).mkdir(parents=True, exist_ok=True)
        write_json(self.root / kind / f"{name}.json", data)


def told(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a command line as JSON has them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}


def stage_times(job: Job) -> Any:
    """Return what the search measured of the chosen plan: latency per stage, shares of exits, accuracy of exits."""
    return job.run.read_json(CHOSEN)
