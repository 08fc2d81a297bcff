"""One function per step of a conversion; the only place that wires the modules together.

prepare -> supernet -> search -> fine-tune -> finish. Every step leaves its result in the run folder, so that a
run that was interrupted or killed takes up where it was.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from s2d_convert.bound import possible
from s2d_convert.data import Level
from s2d_convert.errors import ModelError
from s2d_convert.exact import better, cascade_candidate, depth_candidate
from s2d_convert.explore import CHOSEN, choose, make_evaluator, search, written_plan
from s2d_convert.export import Part, build_stages, check_out, read_part, write_bytes
from s2d_convert.finish import Result, Tuned, finish
from s2d_convert.firstchain import Trials
from s2d_convert.latency import Meter
from s2d_convert.options import ConvertOptions
from s2d_convert.plan import Conversion, Effective, Plan
from s2d_convert.planned import measuring_seconds, predicted_latency, time_shares
from s2d_convert.prepare import Job, Prepared, Reporter, make_meter, prepare
from s2d_convert.recast import Recast, recast
from s2d_convert.runfolder import RunFolder
from s2d_convert.search import random_actions
from s2d_convert.space import CASCADE, PlanSpace, divide, layout_block, total_macs
from s2d_convert.staged import Masks, StagedNet
from s2d_convert.static import StaticModel
from s2d_convert.table import Table
from s2d_convert.train import Choose, Progress, TrainSettings, has_bfloat16, input_batches, save_state, train

__all__ = ["Reporter", "Result", "convert"]

STATISTICS_IMAGES = 2000
FADE = 0.3  # the share of fine-tuning over which forbidden links fade out
SUPERNET_RATE, FINETUNE_RATE, COMPACT_RATE = 0.02, 0.03, 0.05
MOST_PASSES = 3.0
MACS_PER_THREAD = 1.5e9  # of one batch; below that a thread more does not make a training step faster
SECONDS, COMPACT, PLAIN = "seconds.json", "chain1.onnx", "float32"


def convert(options: ConvertOptions, reporter: Reporter) -> Result:
    """Convert a model from file to folder. Raises S2DError for everything that is the caller's to mend."""
    check_out(options.out)
    run = RunFolder(options.out)
    run.refuse_leftover(resume=options.resume)
    ready = prepare(options, reporter)
    written_plan(options, ready)  # what is wrong with it is said before anything is trained
    digest = hashlib.sha256(options.model.read_bytes()).hexdigest()
    board = None if options.latency is None else hashlib.sha256(options.latency.read_bytes()).hexdigest()
    run.open({**options.fingerprint(), "model_sha256": digest, "board_sha256": board})
    job = Job(options, ready, run, reporter)
    if options.exact:
        conversion, tuned = keep_original(job)
    else:
        conversion, tuned = train_everything(job, possible(job, plan_space(ready, options)))
    provenance = {"model_sha256": digest, "seconds": run.read_json(SECONDS)}
    with _timed(run, "finish"):
        result = _finished(job, tuned, conversion, provenance=provenance)
    for text in closing_notes(job, conversion, result):
        reporter.note(text)
    run.remove()
    return result


def _finished(job: Job, tuned: Tuned, conversion: Conversion, *, provenance: Mapping[str, Any]) -> Result:
    """The exported folder; with --quantize one in float32 is made in the run folder first."""
    options, ready = job.options, job.ready
    if options.quantize is None:
        return finish(job, tuned, conversion, provenance=provenance)
    plain = job.run.path / PLAIN
    shutil.rmtree(plain, ignore_errors=True)
    finish(replace(job, options=replace(options, out=plain)), tuned, conversion, provenance=provenance)
    job.reporter.step("quantize")
    static = StaticModel(ready.graph, threads=options.threads, provider=options.provider)
    asked = Recast(options.quantize, options.threads, options.batch, options.provider)
    manifest, measured = recast(plain, options.out, asked, dataset=ready.dataset, static=static, note=job.reporter.note)
    default = next(p for p in manifest["policies"] if p["budget"] == manifest["default_budget"])
    within = options.max_latency is None or measured.worst_latency <= options.max_latency
    return Result(options.out, manifest, measured, bool(default["reached"]), within)


def train_everything(job: Job, space: PlanSpace) -> tuple[Conversion, Tuned]:
    """The best conversion of the space, fine-tuned: supernet, search, fine-tune."""
    with _timed(job.run, "supernet"):
        net = train_supernet(job, space)
    with _timed(job.run, "search"):
        conversion = search(job, space, make_evaluator(job.ready, space, net, job.options))
    with _timed(job.run, "fine-tune"):
        return conversion, finetune(job, net, conversion)


def keep_original(job: Job) -> tuple[Conversion, Tuned]:
    """The best conversion whose last stage is the model as it is: exits by depth, or a narrow chain before it.

    A chain that was trained on made-up images alone is much too sure of itself on real ones, so without data there
    are exits by depth only.
    """
    ready, options = job.ready, job.options
    meter = make_meter(ready, options)
    with _timed(job.run, "heads"):
        best = depth_candidate(job, meter)
    space = possible(job, plan_space(ready, options))
    if ready.dataset.kind != "made-up" and CASCADE in space.kinds:
        space = PlanSpace(ready.graph, ready.channels, space.divisions, stages=2, kinds=(CASCADE,))
        best = better(best, cascade_candidate(job, meter, *narrow_chain(job, space, meter)))
    return best.conversion, best.tuned


def narrow_chain(job: Job, space: PlanSpace, meter: Meter | Table) -> tuple[Conversion, Tuned]:
    """The best first chain before the untouched model by short trainings, then trained for long."""
    ready, run = job.ready, job.run
    job.reporter.step("first chain")
    with _timed(run, "search"):
        found = run.read_json("plan.json")
        if found is None:
            net = new_net(ready, space)
            trials = Trials(
                job, space, meter,
                compact=lambda c: _compact(ready, net, c.chains[0]), train=lambda part, steps: _train_shortly(job, part, steps),
            )  # fmt: skip
            conversion, value = trials.best()
            write_bytes(run.path / COMPACT, trials.file(conversion).read_bytes())
            choose(job, conversion, value)
        else:
            conversion = Conversion.from_json(found, ready.channels)
    job.reporter.step("fine-tune")
    with _timed(run, "fine-tune"):
        return conversion, _train_compact(job)


def closing_notes(job: Job, conversion: Conversion, result: Result) -> Iterator[str]:
    """How well the search predicted the latency, and where the time went."""
    run, chosen = job.run, job.run.read_json(CHOSEN)
    same = chosen is not None and chosen["plan"] == conversion.digest() and job.options.quantize is None
    if same and job.ready.table is None:  # a table speaks of another device
        predicted = predicted_latency(chosen["stage_latency"], result.measured.exit_share)
        measured = result.measured.mean_latency
        yield (
            f"mean latency: {predicted:.3f} by the search's stage times, {measured:.3f} measured from the files "
            f"({100 * (measured / predicted - 1):+.1f} %)"
        )
    yield time_shares(run.read_json(SECONDS), measuring_seconds(tuple(run.trace())))


@contextmanager
def _timed(run: RunFolder, step: str) -> Iterator[None]:
    """Adds the seconds that the block takes to those that the run has spent on the step before, also when it is
    interrupted; of a killed process nobody can tell them."""
    started = time.monotonic()
    try:
        yield
    finally:
        seconds = run.read_json(SECONDS) or {}
        run.write_json(SECONDS, {**seconds, step: round(seconds.get(step, 0.0) + time.monotonic() - started, 1)})


# --- supernet ---------------------------------------------------------------------------------------------


def plan_space(ready: Prepared, options: ConvertOptions) -> PlanSpace:
    """The search space of the model. Raises ModelError when there is nowhere to put an exit."""
    block = layout_block() if ready.table is None else ready.table.block
    divisions = divide(ready.graph, ready.channels, ready.weights, groups=options.work.groups, block=block)
    space = PlanSpace(ready.graph, ready.channels, divisions, stages=options.stages)
    if not space.taps:
        raise ModelError("the model has no tensor at which an exit could be put; `s2d inspect` shows why")
    return space


def new_net(ready: Prepared, space: PlanSpace) -> StagedNet:
    """The staged network with the static model's weights, norms put back, and a head for every tap."""
    net = StagedNet(ready.graph, ready.channels, ready.weights, taps=space.taps).to(ready.device)
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
    return TrainSettings(steps=steps, learning_rate=rate, level=level, flip=options.flip, mixed=mixed)


def train_supernet(job: Job, space: PlanSpace) -> StagedNet:
    """One network whose weights serve every plan of the space: all exits at full width, and a random plan, at every step."""
    ready, options, run = job.ready, job.options, job.run
    job.reporter.step("supernet")
    net = new_net(ready, space)
    done = run.path / "supernet.pt"
    if _load_finished(net, done):
        return net
    work = options.work
    settings = train_settings(ready, options, SUPERNET_RATE, work.supernet_epochs, work.supernet_min_steps)
    everything = Masks({}, (*space.taps, ready.graph.output), (None,) * (len(space.taps) + 1))

    def choose(step: int, _progress: float) -> Sequence[Masks]:
        plan = random_plan(space, np.random.default_rng([options.seed, 3, step]))
        return everything, net.masks(Effective(ready.graph, ready.channels, plan.chains[0]))

    _train(job, net, choose, settings=settings, seed=options.seed, name="supernet")
    save_state(done, net.state_dict())
    return net


def _load_finished(net: StagedNet, done: Path) -> bool:
    """Load what an earlier session has finished, if there is any."""
    if done.exists():
        net.load_state_dict(torch.load(done, weights_only=True))
        net.eval()
    return done.exists()


def _train(job: Job, net: StagedNet, choose: Choose, *, settings: TrainSettings, seed: int, name: str) -> None:
    """Train on the job's images, with the job's checkpoint and progress of this name."""
    train(
        net,
        job.ready.static.logits,
        job.ready.dataset.train,
        choose,
        settings=settings,
        seed=seed,
        checkpoint=job.run.path / f"{name}.part.pt",
        on_step=_training_progress(job.reporter),
    )


def random_plan(space: PlanSpace, rng: np.random.Generator) -> Conversion:
    """A conversion drawn from the space; every second one has the same share of all classes."""
    if rng.random() < 0.5:
        taps = np.sort(rng.integers(0, len(space.taps), space.stages - 1))
        shares = np.sort(rng.random(space.stages - 1))
        return space.decode(space.actions(int(rng.choice(space.kinds)), taps.tolist(), shares.tolist()))
    return space.decode(random_actions(space, rng))


def _training_progress(reporter: Reporter) -> Any:
    def show(progress: Progress) -> None:
        reporter.progress(progress.step, progress.steps, f"loss {progress.loss:.3f}", progress.seconds_left)

    return show


# --- fine-tune --------------------------------------------------------------------------------------------


def finetune(job: Job, net: StagedNet, conversion: Conversion) -> Tuned:
    """The first chain, trained on its own: as a small network where it is one, else under masks that fade in."""
    job.reporter.step("fine-tune")
    chain = conversion.chains[0]
    whole = Part(job.ready.graph, job.ready.channels, chain, job.ready.weights)
    if chain.stages == 1:
        if not (job.run.path / COMPACT).exists():
            write_bytes(job.run.path / COMPACT, _compact(job.ready, net, chain))
        return _train_compact(job)
    masks = net.masks(Effective(job.ready.graph, job.ready.channels, chain))

    def choose(_step: int, progress: float) -> Sequence[Masks]:
        return (masks.faded(max(0.0, 1 - progress / FADE)),)

    _finetune(job, net, masks, choose, rate=FINETUNE_RATE, passes=1.0)
    return Tuned(net, masks, replace(whole, weights=net.weights()))


def _compact(ready: Prepared, net: StagedNet, chain: Plan) -> bytes:
    """The file of a chain of one stage with the weights of `net`, without the channels that it lacks."""
    masks = net.masks(Effective(ready.graph, ready.channels, chain))
    net.recalibrate(input_batches(ready.dataset.train, ready.device, count=STATISTICS_IMAGES), masks)
    (stage,) = build_stages([Part(ready.graph, ready.channels, chain, net.weights())])
    return stage.model.SerializeToString()


def _train_compact(job: Job) -> Tuned:
    """Train the chain of one stage that lies in the run folder.

    An epoch of it costs less than one of the static model, so it gets more of them, up to MOST_PASSES times as many.
    """
    small = read_part(job.run.path / COMPACT)
    passes = total_macs(job.ready.graph) / max(1, total_macs(small.graph))
    return train_part(job, small, passes=min(passes, MOST_PASSES))


def _alone(ready: Prepared, part: Part) -> tuple[StagedNet, Masks]:
    """A part as a network to train, with one exit, its own logits."""
    own = StagedNet(part.graph, part.channels, part.weights).to(ready.device)
    _prepare_net(own, ready)
    return own, Masks({}, (part.graph.output,), (None,))


def _train_shortly(job: Job, part: Part, steps: int) -> Part:
    """A network with one exit after so many steps of training."""
    ready, options = job.ready, job.options
    own, masks = _alone(ready, part)
    settings = train_settings(ready, options, COMPACT_RATE, 0.0, steps)
    with _threads_for(own, settings.batch_size):
        train(
            own, ready.static.logits, ready.dataset.train, lambda _step, _progress: (masks,),
            settings=settings, seed=options.seed + 2, on_step=_training_progress(job.reporter),
        )  # fmt: skip
    own.recalibrate(input_batches(ready.dataset.train, ready.device, count=STATISTICS_IMAGES), masks)
    return replace(part, weights=own.weights())


def train_part(job: Job, part: Part, *, passes: float, start: Callable[[StagedNet], None] | None = None) -> Tuned:
    """A network with one exit, its own logits, trained for `passes` times the epochs of fine-tuning; `start` may set
    the weights that it starts from."""
    own, masks = _alone(job.ready, part)
    if start is not None:
        start(own)
    _finetune(job, own, masks, lambda _step, _progress: (masks,), rate=COMPACT_RATE, passes=passes)
    return Tuned(own, masks, replace(part, weights=own.weights()))


def _finetune(job: Job, net: StagedNet, masks: Masks, choose: Choose, *, rate: float, passes: float) -> None:
    """Train `net` in place and measure its statistics anew, or load what an interrupted run has finished."""
    ready, options, run = job.ready, job.options, job.run
    done = run.path / "finetuned.pt"
    if _load_finished(net, done):
        return
    epochs, at_least = options.work.finetune_epochs * passes, options.work.finetune_min_steps
    settings = train_settings(ready, options, rate, epochs, at_least)
    with _threads_for(net, settings.batch_size):
        _train(job, net, choose, settings=settings, seed=options.seed + 1, name="finetune")
    net.recalibrate(input_batches(ready.dataset.train, ready.device, count=STATISTICS_IMAGES), masks)
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
