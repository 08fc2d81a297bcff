"""The context that the steps of a conversion share: options, prepared data, run folder and reporter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch

from s2d_convert.base.arrays import Array
from s2d_convert.base.clock import Clock, Timetable
from s2d_convert.base.reporting import Reporter
from s2d_convert.base.sessions import Running
from s2d_convert.calibration.answered import Answered
from s2d_convert.calibration.task import Task
from s2d_convert.channels.analysis import AnalysedModel, Channels
from s2d_convert.conversion.options import ConvertOptions, Effort
from s2d_convert.conversion.run_folder import RunFolder
from s2d_convert.data.images import Dataset, Images
from s2d_convert.data.preprocess import Preprocess
from s2d_convert.exporting.overhead import dispatch_overhead
from s2d_convert.frontend.graph import Graph
from s2d_convert.frontend.reference import StaticModel
from s2d_convert.latency import LatencyMeter
from s2d_convert.latency.device_table import Table
from s2d_convert.latency.layout import layout_block
from s2d_convert.latency.meter import Meter, interleave
from s2d_convert.network.masks import Masks
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.weights import Weights
from s2d_convert.search.evaluate import Goal
from s2d_convert.slicing.chain import Chain
from s2d_convert.slicing.own_network import OwnNetwork
from s2d_convert.training.distillation import Teacher, teacher_in_onnxruntime, teacher_in_torch
from s2d_convert.training.lessons import Lessons, views_to_keep
from s2d_convert.training.loop import exit_logits
from s2d_convert.training.settings import step_seconds
from s2d_convert.training.solving import Solver

EVEN = Timetable(heads=0.2, search=0.4, first_round=0.5, finals=0.6, training=0.92)
MORE_TRAINING = Timetable(heads=0.1, search=0.25, first_round=0.34, finals=0.42, training=0.92)
NO_TRAINING = Timetable(heads=0.2, search=0.6, first_round=0.85, finals=0.85, training=0.85)
FEW_EPOCHS, FEW_SEEN = 10.0, 8000  # of the long training at even shares of the time: epochs; images seen in all
FEW_SOLVES = 30  # rough ones: the statistics, and the first plans of a search
FIRST_CHAIN = 0.5  # of the static model's work, where no budget says more
IMAGE_SECONDS = 0.2  # for timing the static model on this machine where latencies are another device's
LEAST_HALF = 200  # images; with fewer, chance alone would choose the thresholds


def few_to_divide(images: int) -> bool:
    """Return whether plans and thresholds are better chosen on the same images than on halves of them."""
    return images // 2 < LEAST_HALF


@dataclass(frozen=True)
class Prepared:
    """The inputs of all later steps.

    held_out: the images of `dataset.calib`. copies: the same and changed copies of them, where they are few. table: predicts
    the latencies of another device, None to measure on this one. class_names: those that the manifest records, if any are
    known. own: the user's network of --first.
    """

    model: AnalysedModel
    weights: Weights
    preprocess: Preprocess
    dataset: Dataset
    static: StaticModel
    held_out: Answered
    device: torch.device
    provider: str = "CPUExecutionProvider"
    table: Table | None = None
    class_names: tuple[str, ...] | None = None
    own: OwnNetwork | None = None
    copies: Answered | None = None

    @property
    def graph(self) -> Graph:
        """The graph of the static model."""
        return self.model.graph

    @property
    def task(self) -> Task:
        """What the static model answers: one class of many, or several labels."""
        return self.model.graph.task

    @property
    def channels(self) -> Channels:
        """The channels of the static model."""
        return self.model.channels

    @cached_property
    def validation(self) -> Answered:
        """The images on which plans are compared: half of those held out, or all of them where they are too few to divide."""
        count = len(self.held_out)
        return self.held_out if few_to_divide(count) else self.held_out.take(slice(0, count // 2))

    @cached_property
    def calibration(self) -> Answered:
        """The images on which thresholds are chosen, and no plan was: of a hundred plans the best on some images loses about a
        point more on others. Images that are too few to divide are changed a little instead."""
        if self.validation is not self.held_out:
            return self.held_out.take(slice(len(self.validation), None))
        return self.held_out if self.copies is None else self.copies

    @property
    def calibrated_on(self) -> int:
        """The number of images that thresholds rest on; copies of an image count once."""
        return min(len(self.calibration), len(self.held_out))

    @cached_property
    def teacher(self) -> Teacher:
        """The static model as the teacher of trainings."""
        if self.device.type != "cpu":
            return teacher_in_torch(self.model, self.weights, self.device)
        return teacher_in_onnxruntime(self.model, threads=torch.get_num_threads(), provider=self.provider)

    @cached_property
    def solver(self) -> Solver:
        """The solver of first chains in closed form."""
        return Solver(self.model, self.weights, self.dataset.train, self.device)

    @property
    def block(self) -> int:
        """Channels per block of onnxruntime's blocked layout, on this machine or on the table's device."""
        return layout_block() if self.table is None else self.table.block

    @property
    def target(self) -> str:
        """The target: accuracy, or without labels agreement with the static model."""
        return "agreement" if self.dataset.calib.labels is None else "accuracy"


def timing_images(ready: Prepared, batch: int) -> Array:
    """Return the batch of images on which latency is measured."""
    calib = ready.dataset.calib
    return np.ascontiguousarray(calib.batch(np.arange(batch) % len(calib)))


def make_meter(ready: Prepared, running: Running) -> LatencyMeter:
    """Return the device's table if there is one, else a meter of this machine."""
    if ready.table is not None:
        return ready.table
    return Meter(ready.graph.to_model().SerializeToString(), timing_images(ready, running.batch), running=running)


@dataclass(frozen=True)
class Job:
    """A running conversion: its options, prepared inputs, run folder, reporter, and the source of latencies."""

    options: ConvertOptions
    ready: Prepared
    run: RunFolder
    reporter: Reporter
    new_meter: Callable[[Prepared, Running], LatencyMeter] = make_meter
    clock: Clock = field(default_factory=Clock)

    @cached_property
    def timed_static(self) -> StaticModel:
        """The static model for measuring latency. `ready.static` has as many threads as the training."""
        return StaticModel(self.ready.graph, self.options.running)

    @cached_property
    def meter(self) -> LatencyMeter:
        """The source of the candidates' latencies, relative to the static model."""
        return self.new_meter(self.ready, self.options.running)

    @cached_property
    def image_seconds(self) -> float:
        """How long the static model takes for an image on this machine, for whatever device the plans are."""
        batch = self.options.batch
        if self.ready.table is None:
            return self.meter.measure([]).reference_ms / 1e3 / batch
        whole = partial(self.timed_static.outputs, timing_images(self.ready, batch))
        return float(np.median(interleave([whole], IMAGE_SECONDS))) / batch

    @cached_property
    def overhead_ms(self) -> tuple[float, float]:
        """What the dispatcher adds to the first stage and to every further one; a device's table does not contain it."""
        ready, running = self.ready, self.options.running
        if ready.table is not None:
            return 0.0, 0.0
        return dispatch_overhead(ready.model, ready.weights, timing_images(ready, running.batch), running)

    @cached_property
    def timetable(self) -> Timetable:
        """How a limited time is divided: a training that would see its images only a few times gets more of it, if the search
        can do with less, and one that would see so few that solved weights are better off without it gets none."""
        if not self.clock.limited:
            return EVEN
        ready, chain = self.ready, FIRST_CHAIN if self.options.budget is None else self.options.budget
        image = step_seconds(1, self.image_seconds / torch.get_num_threads(), chain)
        seen = (EVEN.training - EVEN.finals) * self.clock.seconds / image
        if seen < FEW_SEEN:
            return NO_TRAINING
        searched = (MORE_TRAINING.search - MORE_TRAINING.heads) * self.clock.seconds
        hurried = searched < FEW_SOLVES * ready.solver.rough_seconds(self.image_seconds)
        return MORE_TRAINING if not hurried and seen < FEW_EPOCHS * len(ready.dataset.train) else EVEN

    @property
    def work(self) -> Effort:
        """The amounts of work of the options, without trainings where the time does not allow them."""
        work = self.options.work
        return work.untrained() if self.timetable is NO_TRAINING else work

    @cached_property
    def lessons(self) -> Lessons:
        """The training images with the static model as teacher, for all trainings. On a GPU the teacher takes no time."""
        ready = self.ready
        answer_bytes = 4 * (ready.graph.classes + (ready.teacher.width or 0))
        views = views_to_keep(len(ready.dataset.train), answer_bytes) if ready.device.type == "cpu" else None
        return Lessons(ready.dataset.train, ready.teacher.say, self.options.seed + 1, views)

    @property
    def careful(self) -> bool:
        """Whether thresholds have confidence floors: on made-up images, if the last stage is the original model."""
        return self.options.exact and self.ready.dataset.kind == "made-up"


@dataclass(frozen=True)
class Tuned:
    """The first chain with its weights, and the logits [B, K] of its stages on images as something else than the stage files
    computes them: the module that was trained, or the user's own network."""

    chain: Chain
    logits: Callable[[Images], Iterable[Array]]

    @staticmethod
    def trained(net: StagedNet, masks: Masks, chain: Chain) -> Tuned:
        """Return a chain whose logits the module `net` computes under these masks."""
        return Tuned(chain, lambda images: exit_logits(net, images, masks))


def goal_of(job: Job, judged: Answered | None = None) -> Goal:
    """Return the goal of the search. judged: the images on which it counts, None for those on which plans are compared."""
    options, ready = job.options, job.ready
    judged = ready.validation if judged is None else judged
    static = float(judged.static_right(ready.task).mean())
    worst = math.inf if options.max_latency is None else options.max_latency
    # In exact mode no budget makes thresholds lose more (`careful`), so it is not searched for either.
    budget = None if options.exact and options.risk_bound is None else options.budget
    return Goal(budget, worst, static - options.max_loss)
