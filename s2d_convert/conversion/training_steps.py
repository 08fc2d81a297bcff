"""The trainings of a conversion: of the supernet, of first chains for a short time (`try_out`), and of the chosen one for long.

A chain of one stage is trained as a small network of its own, in a file, without the channels that it lacks; linked stages
are trained together, under masks on the whole network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from s2d_convert.base.files import write_bytes
from s2d_convert.channels.macs import total_macs
from s2d_convert.conversion.context import Job, Prepared, Reporter, Tuned
from s2d_convert.conversion.options import ConvertOptions
from s2d_convert.conversion.run_folder import FINETUNED, FIRST_CHAIN, SUPERNET
from s2d_convert.data.augment import Level
from s2d_convert.network.masks import Masks
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.heuristics import random_plan
from s2d_convert.plans.plan import Conversion, Plan
from s2d_convert.plans.space import PlanSpace
from s2d_convert.slicing.chain import Chain, build_stages, read_chain
from s2d_convert.training.distillation import Hints
from s2d_convert.training.loop import Choose, Progress, TrainSettings, has_bfloat16, input_batches, save_state, train

STATISTICS_IMAGES = 2000
FADE = 0.3  # the share of fine-tuning over which forbidden links fade out
SUPERNET_RATE, FINETUNE_RATE, COMPACT_RATE = 0.02, 0.03, 0.05
MUON = 0.16  # of these rates: what Muon moves a weight by in a step, relative to its size
MOST_PASSES = 3.0
MACS_PER_THREAD = 1.5e9  # of one batch; below that a thread more does not make a training step faster


def new_net(ready: Prepared, taps: Sequence[str]) -> StagedNet:
    """The staged network with the static model's weights, norms put back, and a head for every tap."""
    net = StagedNet(ready.model, ready.weights, taps=taps).to(ready.device)
    _prepare_net(net, ready)
    return net


def _prepare_net(net: StagedNet, ready: Prepared) -> None:
    net.insert_norms(input_batches(ready.dataset.train, ready.device, count=STATISTICS_IMAGES))
    # Convolutions of training run faster with channels last, on CPU and GPU.
    if _is_2d(net):
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _is_2d(net: StagedNet) -> bool:
    return all(p.ndim <= 4 for p in net.parameters())


def train_settings(
    ready: Prepared, options: ConvertOptions, rate: float, epochs: float, at_least: int
) -> TrainSettings:
    """Settings for so many passes over the training images, and at least so many steps."""
    steps = max(at_least, round(epochs * len(ready.dataset.train) / TrainSettings.batch_size))
    level: Level = "strong" if ready.dataset.kind == "made-up" else "light"
    mixed = has_bfloat16(ready.device)
    return TrainSettings(
        steps=steps, learning_rate=rate, muon_rate=MUON * rate, level=level, flip=options.flip, mixed=mixed
    )


def train_supernet(job: Job, space: PlanSpace, *, others: Sequence[str] = ()) -> StagedNet:
    """One network whose weights serve every plan of the space: all exits at full width, and a random plan, at every step.
    It has exits at the `others` too, which a written plan may have where no plan of the space has one."""
    ready, options, run = job.ready, job.options, job.run
    job.reporter.step("supernet")
    taps = tuple(dict.fromkeys([*space.taps, *others]))
    net = new_net(ready, taps)
    done = run.path / SUPERNET
    if _load_finished(net, done):
        return net
    work = options.work
    settings = train_settings(ready, options, SUPERNET_RATE, work.supernet_epochs, work.supernet_min_steps)
    everything = Masks({}, (*taps, ready.graph.output), (None,) * (len(taps) + 1))

    def choose(step: int, _progress: float) -> Sequence[Masks]:
        plan = random_plan(space, np.random.default_rng([options.seed, 3, step]))
        return everything, net.masks(Effective(ready.model, plan.chains[0]))

    _train(job, net, choose, settings=settings, seed=options.seed, name="supernet", hinted=False)
    save_state(done, net.state_dict())
    return net


def _load_finished(net: StagedNet, done: Path) -> bool:
    """Load what an earlier session has finished, if there is any."""
    if done.exists():
        net.load_state_dict(torch.load(done, map_location="cpu", weights_only=True))
        net.eval()
    return done.exists()


def _train(
    job: Job,
    net: StagedNet,
    choose: Choose,
    *,
    settings: TrainSettings,
    seed: int,
    name: str | None = None,
    hinted: bool = True,
) -> None:
    """Train on the job's images, with its progress and, under this name, a checkpoint; with hints if there are any."""
    teacher = job.ready.teacher
    train(
        net,
        teacher.say,
        job.ready.dataset.train,
        choose,
        settings=settings,
        seed=seed,
        hints=Hints(net, teacher.width).to(job.ready.device) if hinted and teacher.width is not None else None,
        checkpoint=None if name is None else job.run.checkpoint(name),
        on_step=_training_progress(job.reporter),
    )


def _training_progress(reporter: Reporter) -> Any:
    def show(progress: Progress) -> None:
        reporter.progress(progress.step, progress.steps, f"loss {progress.loss:.3f}", progress.seconds_left)

    return show


def finetune(job: Job, net: StagedNet, conversion: Conversion, *, start: Path | None = None) -> Tuned:
    """The first chain, trained for long: from the weights of `net`, or from what `try_out` has left in the file `start`."""
    job.reporter.step("fine-tune")
    ready, chain = job.ready, conversion.chains[0]
    if chain.stages == 1:
        file = job.run.path / FIRST_CHAIN
        if not file.exists():
            write_bytes(file, _compact(ready, net, chain) if start is None else start.read_bytes())
        small = read_chain(file)
        return train_chain(job, small, passes=_passes(ready, small))
    if start is not None:
        _load_finished(net, start)
    masks = net.masks(Effective(ready.model, chain))
    _finetune(job, net, masks, _under(masks, fade=start is None), rate=FINETUNE_RATE, passes=1.0)
    return Tuned(net, masks, Chain(ready.model, chain, net.weights()))


def _passes(ready: Prepared, small: Chain) -> float:
    """How many steps a chain of one stage has for every step of linked stages: its steps cost less than the static model's."""
    return min(total_macs(ready.graph) / max(1, total_macs(small.model.graph)), MOST_PASSES)


def _trial_steps(job: Job, steps: int, passes: float) -> int:
    """Steps of a short training of what fine-tuning gives so many passes: in its proportion, `steps` at most."""
    most, own = (_finetuning(job, FINETUNE_RATE, p).steps for p in (MOST_PASSES, passes))
    return max(1, round(steps * own / most))


def _under(masks: Masks, *, fade: bool) -> Choose:
    """Training under one plan; with `fade` forbidden links fade out first."""
    return lambda _step, progress: (masks.faded(max(0.0, 1 - progress / FADE) if fade else 0.0),)


def try_out(job: Job, net: StagedNet, conversion: Conversion, before: Path | None, after: Path, steps: int) -> None:
    """Train the first chain for `steps`, less what fine-tuning would give it less: from the weights of `net`, or on from
    the file `before`; the file `after` keeps it."""
    ready, plan = job.ready, conversion.chains[0]
    if plan.stages == 1:
        first = after.with_name(f"{after.name}.start")
        write_bytes(first, _compact(ready, net, plan) if before is None else before.read_bytes())
        start = read_chain(first)
        own, masks = _alone(ready, start)
        steps = _trial_steps(job, steps, _passes(ready, start))
        _train_shortly(job, own, masks, _under(masks, fade=False), rate=COMPACT_RATE, steps=steps)
        (stage,) = build_stages([replace(start, weights=own.weights())])
        write_bytes(after, stage.model.SerializeToString())
        first.unlink()
        return
    own = _copy(net)
    if before is not None:
        _load_finished(own, before)
    masks = own.masks(Effective(ready.model, plan))
    _train_shortly(
        job, own, masks, _under(masks, fade=before is None), rate=FINETUNE_RATE, steps=_trial_steps(job, steps, 1.0)
    )
    save_state(after, own.state_dict())


def tried_out(job: Job, net: StagedNet, conversion: Conversion, file: Path) -> Chain:
    """The first chain that `try_out` has left in a file."""
    ready, plan = job.ready, conversion.chains[0]
    if plan.stages == 1:
        return read_chain(file)
    own = _copy(net)
    _load_finished(own, file)
    return Chain(ready.model, plan, own.weights())


def _copy(net: StagedNet) -> StagedNet:
    """The network with weights of its own; graph and channels, which never change, are shared."""
    return copy.deepcopy(net, {id(shared): shared for shared in (net.model, net.graph, net.channels)})


def _train_shortly(job: Job, net: StagedNet, masks: Masks, choose: Choose, *, rate: float, steps: int) -> None:
    ready, options = job.ready, job.options
    settings = train_settings(ready, options, rate, 0.0, steps)
    with _threads_for(net, settings.batch_size):
        _train(job, net, choose, settings=settings, seed=options.seed + 2)
    _measure_statistics(net, ready, masks)


def _measure_statistics(net: StagedNet, ready: Prepared, masks: Masks) -> None:
    net.recalibrate(input_batches(ready.dataset.train, ready.device, count=STATISTICS_IMAGES), masks)


def _compact(ready: Prepared, net: StagedNet, plan: Plan) -> bytes:
    """The file of a chain of one stage with the weights of `net`, without the channels that it lacks."""
    _measure_statistics(net, ready, net.masks(Effective(ready.model, plan)))
    (stage,) = build_stages([Chain(ready.model, plan, net.weights())])
    return stage.model.SerializeToString()


def _alone(ready: Prepared, chain: Chain) -> tuple[StagedNet, Masks]:
    """A chain as a network to train, with one exit, its own logits."""
    own = StagedNet(chain.model, chain.weights).to(ready.device)
    _prepare_net(own, ready)
    return own, Masks({}, (chain.model.graph.output,), (None,))


def train_chain(job: Job, chain: Chain, *, passes: float, start: Callable[[StagedNet], None] | None = None) -> Tuned:
    """A network with one exit, its own logits, trained for `passes` times the epochs of fine-tuning; `start` may set
    the weights that it starts from."""
    own, masks = _alone(job.ready, chain)
    if start is not None:
        start(own)
    _finetune(job, own, masks, _under(masks, fade=False), rate=COMPACT_RATE, passes=passes)
    return Tuned(own, masks, replace(chain, weights=own.weights()))


def _finetuning(job: Job, rate: float, passes: float) -> TrainSettings:
    work = job.options.work
    return train_settings(job.ready, job.options, rate, work.finetune_epochs * passes, work.finetune_min_steps)


def _finetune(job: Job, net: StagedNet, masks: Masks, choose: Choose, *, rate: float, passes: float) -> None:
    """Train `net` in place and measure its statistics anew, or load what an interrupted run has finished."""
    ready, options, run = job.ready, job.options, job.run
    done = run.path / FINETUNED
    if _load_finished(net, done):
        return
    settings = _finetuning(job, rate, passes)
    with _threads_for(net, settings.batch_size):
        _train(job, net, choose, settings=settings, seed=options.seed + 1, name="finetune")
    _measure_statistics(net, ready, masks)
    save_state(done, net.state_dict())


@contextmanager
def _threads_for(net: StagedNet, batch_size: int) -> Iterator[None]:
    """As many torch threads as the network can use: on a small one a second thread only takes the static model's core.

    The number depends on the network alone, so that equal seeds give equal results.
    """
    before = torch.get_num_threads()
    work = total_macs(net.graph) * batch_size
    torch.set_num_threads(max(1, min(before, round(work / MACS_PER_THREAD))))
    try:
        yield
    finally:
        torch.set_num_threads(before)
