"""The trainings of a conversion: short ones of several first chains (`try_out`), and a long one of the best (`finetune`).

All start from solved weights. A chain of one stage is trained as a small network without the channels that it lacks. Linked
stages are trained together, under masks on the whole network.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from s2d_convert.base.files import write_bytes
from s2d_convert.base.reporting import Reporter
from s2d_convert.channels.macs import total_macs
from s2d_convert.conversion.context import Job, Prepared, Tuned
from s2d_convert.conversion.options import ConvertOptions
from s2d_convert.conversion.run_folder import FINETUNED, FIRST_CHAIN
from s2d_convert.data.augment import Level
from s2d_convert.network.masks import Masks
from s2d_convert.network.norms import insert_norms, recalibrate
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.plan import Plan
from s2d_convert.slicing.chain import Chain, build_stages, chain_from_bytes, read_chain
from s2d_convert.training.distillation import Hints
from s2d_convert.training.lessons import EVAL_BATCH, input_batches
from s2d_convert.training.loop import Learner, exit_logits, save_state, train
from s2d_convert.training.settings import Progress, TrainSettings, batch_size, has_bfloat16

STATISTICS_IMAGES, LEAST_STATISTICS, STATISTICS_MACS = 2000, 64, 2.5e11
WORTH_TRAINING, WORTH_TRYING = 10.0, 2.0  # seconds; shorter trainings only disturb solved weights
FINISHING, FINISHING_PASSES = 10.0, 3.0  # seconds, and passes of the held-out images through the static model
FINETUNE_RATE, COMPACT_RATE = 0.03, 0.05
MUON = 0.16  # Muon's learning rate, as a share of these rates
MOST_PASSES = 3.0
MACS_PER_THREAD = 1.5e9  # of one batch; with fewer, another thread does not make a training step faster


def train_settings(
    ready: Prepared, options: ConvertOptions, rate: float, epochs: float, at_least: int
) -> TrainSettings:
    """Return the settings for so many passes over the training images, and at least so many steps of a full batch."""
    batch = batch_size(ready.graph.image_bytes)
    share = batch / TrainSettings.batch_size
    steps = max(round(at_least / share), round(epochs * len(ready.dataset.train) / batch))
    rate *= math.sqrt(share)  # a small batch's gradient is the noisier one
    level: Level = "strong" if ready.dataset.kind == "made-up" else "light"
    mixed = has_bfloat16(ready.device)
    return TrainSettings(
        steps=steps,
        batch_size=batch,
        learning_rate=rate,
        muon_rate=MUON * rate,
        level=level,
        flip=options.flip,
        mixed=mixed,
    )


def _load_finished(net: StagedNet, done: Path) -> bool:
    """Load what an earlier session has finished, if there is any."""
    if done.exists():
        net.load_state_dict(torch.load(done, map_location="cpu", weights_only=True))
        net.eval()
    return done.exists()


def _train(job: Job, training: _Training, *, settings: TrainSettings, name: str | None = None) -> None:
    """Train on the job's images with distillation, with progress and, under this name, a checkpoint; then measure the
    statistics of all norms anew."""
    ready, net = job.ready, training.net
    width = ready.teacher.width
    hints = None if width is None else Hints(net, width).to(ready.device)
    train(
        Learner(net, training.masks, hints),
        job.lessons,
        settings=settings,
        checkpoint=None if name is None else job.run.checkpoint(name),
        on_step=_training_progress(job.reporter),
        stopped=lambda: job.clock.left() <= 0,
    )
    recalibrate(net, statistics_batches(ready, net), training.masks)


def statistics_batches(ready: Prepared, net: StagedNet) -> Iterator[torch.Tensor]:
    """Return batches of the training images from which the statistics of norms are taken: fewer images of a network that
    takes long."""
    affordable = max(LEAST_STATISTICS, int(STATISTICS_MACS / max(1, total_macs(net.graph))))
    batch = net.graph.batch_of(EVAL_BATCH)
    return input_batches(ready.dataset.train, ready.device, count=min(STATISTICS_IMAGES, affordable), batch=batch)


def _training_progress(reporter: Reporter) -> Any:
    def show(progress: Progress) -> None:
        loss = f"loss {progress.loss:.3f}"
        reporter.progress(progress.step, progress.steps, "training steps", progress.seconds_left, detail=loss)

    return show


@dataclass(frozen=True)
class _Training:
    """A first chain as a network to train: its masks, its learning rate and how many steps it has for every step of linked
    stages."""

    net: StagedNet
    masks: Masks
    chain: Chain
    rate: float
    passes: float

    def trained(self) -> Tuned:
        """Return the chain with the weights that the network has now."""
        return Tuned.trained(self.net, self.masks, replace(self.chain, weights=self.net.weights()))


def _training(ready: Prepared, chain: Chain, *, norms: bool = True) -> _Training:
    """Make the network of a chain, for training with `norms` behind its convolutions."""
    net = StagedNet(chain.model, chain.weights, taps=[t for t in chain.plan.taps if t != chain.model.graph.output])
    net = net.to(ready.device).eval()
    masks = net.masks(Effective(chain.model, chain.plan))
    if norms:
        insert_norms(net, statistics_batches(ready, net), masks)
        if all(p.ndim <= 4 for p in net.parameters()):  # convolutions train faster with channels last
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if chain.plan.stages > 1:
        return _Training(net, masks, chain, FINETUNE_RATE, 1.0)
    cheaper = total_macs(ready.graph) / max(1, total_macs(chain.model.graph))
    return _Training(net, masks, chain, COMPACT_RATE, min(cheaper, MOST_PASSES))


def compact(chain: Chain) -> bytes:
    """Return the file of a chain of one stage, without the channels that the chain lacks."""
    (stage,) = build_stages([chain])
    return stage.model.SerializeToString()


def finetune(job: Job, plan: Plan, *, start: Path | None = None) -> Tuned:
    """Train the first chain of a conversion for long: from its solved weights, or from the file `start` of `try_out`.

    Where training made it worse on held-out images, the weights that it started from are the result.
    """
    if not _finetuning(job, 1.0).steps or seconds_to_train(job) < WORTH_TRAINING:
        training = _training(job.ready, job.ready.solver.chain(plan), norms=False)
        job.ready.solver.release()
        return training.trained()
    job.reporter.step("fine-tune")
    if plan.stages == 1:
        file = job.run.path / FIRST_CHAIN
        if not file.exists():
            write_bytes(file, compact(job.ready.solver.chain(plan)) if start is None else start.read_bytes())
        job.ready.solver.release()
        return train_chain(job, read_chain(file, labels=job.ready.graph.labels))
    training = _training(job.ready, job.ready.solver.chain(plan))
    job.ready.solver.release()
    if start is not None:
        _load_finished(training.net, start)
    return _finetuned(job, training)


def train_chain(
    job: Job, chain: Chain, *, passes: float | None = None, start: Callable[[StagedNet], None] | None = None
) -> Tuned:
    """Train a chain that is a network of its own, for `passes` times the epochs of fine-tuning (None: as many as its size
    allows); `start` may set the weights that it starts from."""
    training = _training(job.ready, chain)
    if passes is not None:
        training = replace(training, passes=passes)
    if start is not None:
        start(training.net)
    return _finetuned(job, training)


def _finetuned(job: Job, training: _Training) -> Tuned:
    """Train in place and measure the statistics of norms, or load the result of an interrupted run."""
    before, done = copy.deepcopy(training.net.state_dict()), job.run.path / FINETUNED
    if _load_finished(training.net, done):
        return training.trained()
    right = _right_answers(job, training)
    settings = replace(_finetuning(job, training.passes, rate=training.rate), seconds=seconds_to_train(job))
    with _threads_for(training.net, settings.batch_size):
        _train(job, training, settings=settings, name="finetune")
    if _right_answers(job, training) < right:
        job.reporter.note(
            "training made the first stages worse on held-out images; they keep the weights from before it"
        )
        training.net.load_state_dict(before)
    save_state(done, training.net.state_dict())
    return training.trained()


def _right_answers(job: Job, training: _Training) -> float:
    """Return the share of the held-out images that the exits answer rightly, on average over the exits."""
    judged, task = job.ready.validation, job.ready.task
    logits = exit_logits(training.net, judged.images, training.masks)
    return float(judged.expected(task, logits).mean())


def try_out(job: Job, plan: Plan, before: Path | None, after: Path, *, steps: int, seconds: float = math.inf) -> None:
    """Train a first chain for `steps`, less what fine-tuning would give it less, or for `seconds`, solving included: from its
    solved weights, or on from the file `before`. The file `after` keeps it."""
    started = time.monotonic()
    if plan.stages == 1:
        data = _tried_bytes(job.ready, plan, before)
        if not steps or seconds - (time.monotonic() - started) <= WORTH_TRYING:
            write_bytes(after, data)
            return
    training = _tried(job.ready, plan, before, norms=steps > 0)
    seconds -= time.monotonic() - started
    if steps and seconds > WORTH_TRYING:
        settings = train_settings(job.ready, job.options, training.rate, 0.0, _trial_steps(job, training, steps))
        settings = replace(settings, seconds=seconds)
        with _threads_for(training.net, settings.batch_size):
            _train(job, training, settings=settings)
    if plan.stages == 1:
        write_bytes(after, compact(training.trained().chain))
    else:
        save_state(after, training.net.state_dict())


def _trial_steps(job: Job, training: _Training, steps: int) -> int:
    """Return so many of `steps` as the plan would get in fine-tuning of what a plan can get at most; by the clock, as many as
    there is time for."""
    if job.clock.limited:
        return _finetuning(job, training.passes).steps
    most, of_plan = (_finetuning(job, passes).steps for passes in (MOST_PASSES, training.passes))
    return max(1, round(steps * of_plan / most))


def finishing_seconds(job: Job) -> float:
    """Return about how long writing and measuring the folder will take."""
    ready = job.ready
    images = len(ready.dataset.calib) + len(ready.dataset.test)
    return FINISHING + FINISHING_PASSES * images * job.image_seconds


def seconds_to_train(job: Job) -> float:
    """Return how long the chosen chain may be trained; infinity without a limit of time."""
    if not job.clock.limited:
        return math.inf
    return max(0.0, job.clock.left(job.timetable.training) - finishing_seconds(job))


def tried_out(job: Job, plan: Plan, file: Path) -> Chain:
    """Return the first chain that `try_out` has left in a file."""
    if plan.stages == 1:
        return chain_from_bytes(file.read_bytes(), labels=job.ready.graph.labels)
    return _tried(job.ready, plan, file, norms=job.work.trial_steps > 0).trained().chain


def _tried(ready: Prepared, plan: Plan, file: Path | None, *, norms: bool) -> _Training:
    """Return a first chain from its file, or with its solved weights."""
    if plan.stages == 1:
        data = _tried_bytes(ready, plan, file)
        return _training(ready, chain_from_bytes(data, labels=ready.graph.labels), norms=norms)
    training = _training(ready, ready.solver.chain(plan), norms=norms)
    if file is not None:
        _load_finished(training.net, file)
    return training


def _tried_bytes(ready: Prepared, plan: Plan, file: Path | None) -> bytes:
    """Return a chain of one stage as `compact` writes it, from its file, or with its solved weights."""
    return compact(ready.solver.chain(plan)) if file is None else file.read_bytes()


def _finetuning(job: Job, passes: float, *, rate: float = FINETUNE_RATE) -> TrainSettings:
    work = job.work
    return train_settings(job.ready, job.options, rate, work.finetune_epochs * passes, work.finetune_min_steps)


@contextmanager
def _threads_for(net: StagedNet, batch_size: int) -> Iterator[None]:
    """Set as many torch threads as the network can use. On a small one, a second thread only takes the static model's core.

    The number depends on the network alone, so that equal seeds give equal results.
    """
    before = torch.get_num_threads()
    work = total_macs(net.graph) * batch_size
    torch.set_num_threads(max(1, min(before, round(work / MACS_PER_THREAD))))
    try:
        yield
    finally:
        torch.set_num_threads(before)
