"""One function per step of a conversion; the only place that wires the modules together.

prepare -> supernet -> search -> fine-tune -> export. Every step leaves its result in the run folder, so that a
run that was interrupted or killed takes up where it was.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
import torch
from s2d_runtime import Dispatcher

from s2d_convert import calibrate
from s2d_convert.candidates import Evaluator, is_untouched, reference_answers
from s2d_convert.channels import Channels, analyse
from s2d_convert.data import Dataset, Images, Level, load_data
from s2d_convert.errors import ModelError, StaticCheckError, UsageError, VerifyError
from s2d_convert.export import (
    build_stages,
    check_out,
    draft_manifest,
    stage_logits,
    whole_folder,
    write_json,
    write_manifest,
    write_stages,
)
from s2d_convert.graph import Graph, load_graph
from s2d_convert.latency import Array, Meter
from s2d_convert.measure import Measured, measure, path_costs
from s2d_convert.options import ConvertOptions
from s2d_convert.plan import Conversion, Effective
from s2d_convert.preprocess import PRESETS, Preprocess, make_preprocess
from s2d_convert.runfolder import TRACE, RunFolder
from s2d_convert.search import Evaluation, SearchResult, Trial, evaluate_all, random_actions, random_search, reinforce
from s2d_convert.space import PlanSpace, divide, layout_block, node_macs
from s2d_convert.staged import Masks, StagedNet, unsupported_nodes
from s2d_convert.static import StaticModel, slices
from s2d_convert.synthetic import made_up_dataset
from s2d_convert.train import Progress, TrainSettings, exit_logits, input_batches, save_state, train
from s2d_convert.weights import Weights, static_weights

logger = logging.getLogger(__name__)

STATISTICS_IMAGES = 2000
CHECK_IMAGES = 2000
VERIFY_IMAGES = 64
VERIFY_TOLERANCE = 2e-3
FADE = 0.3  # the share of fine-tuning over which forbidden links fade out
SUPERNET_RATE, FINETUNE_RATE = 0.02, 0.03
MIN_TEST_FOR_CLASSES = 200


class Reporter(Protocol):
    """Where a conversion tells how it is going."""

    def step(self, name: str) -> None:
        """A new step begins."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def warn(self, text: str) -> None:
        """Something the user should mind."""

    def progress(self, done: int, total: int, detail: str, seconds_left: float) -> None:
        """The running step has done so much."""


@dataclass(frozen=True)
class Prepared:
    """What every later step needs."""

    graph: Graph
    channels: Channels
    weights: Weights
    preprocess: Preprocess
    dataset: Dataset
    static: StaticModel
    calib_logits: Array
    answers: Array
    device: torch.device


@dataclass(frozen=True)
class Result:
    """The outcome of a conversion: where it is, what was measured on unseen images, whether the budget was reached."""

    out: Path
    manifest: Mapping[str, Any]
    measured: Measured
    reached: bool


def convert(options: ConvertOptions, reporter: Reporter) -> Result:
    """Convert a model from file to folder. Raises S2DError for everything that is the caller's to mend."""
    check_out(options.out)
    run = RunFolder(options.out)
    ready = prepare(options, reporter)
    digest = hashlib.sha256(options.model.read_bytes()).hexdigest()
    run.open({**options.fingerprint(), "model_sha256": digest}, resume=options.resume)
    seconds = run.read_json("seconds.json") or {}

    def timed(name: str, started: float) -> None:
        seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - started, 1)
        run.write_json("seconds.json", seconds)

    started = time.monotonic()
    space = plan_space(ready, options)
    net = train_supernet(ready, space, options, run, reporter)
    timed("supernet", started)
    started = time.monotonic()
    conversion = search(ready, space, net, options, run, reporter)
    timed("search", started)
    started = time.monotonic()
    finetune(ready, net, conversion, options, run, reporter)
    timed("fine-tune", started)
    result = export(
        ready, net, conversion, options, run, reporter, provenance={"model_sha256": digest, "seconds": seconds}
    )
    run.remove()
    return result


# --- prepare ----------------------------------------------------------------------------------------------


def read_graph(
    model: Path, *, size: tuple[int, int] | None = None, output: str | None = None, strict: bool = True
) -> tuple[Graph, Channels]:
    """The graph of a model file and its channels. Raises ModelError naming every node that is not supported,
    unless `strict` is off."""
    graph = load_graph(model, size=size, output=output)
    missing = unsupported_nodes(graph) if strict else ()
    if missing:
        raise ModelError(f"{model}: {len(missing)} nodes have no torch counterpart: {', '.join(map(str, missing))}")
    return graph, analyse(graph)


def preprocess_of(graph: Graph, options: ConvertOptions) -> Preprocess:
    """The preprocessing that the options ask for, in the shape and layout that the model takes."""
    shape = graph.shapes[graph.image]
    nhwc = shape[2] in (1, 3) and shape[0] not in (1, 3)
    height, width, channels = shape if nhwc else (shape[1], shape[2], shape[0])
    return make_preprocess(
        options.preprocess,
        size=(height, width),
        channels=channels,
        layout="NHWC" if nhwc else "NCHW",
        mean=options.mean,
        std=options.std,
    )


def prepare(options: ConvertOptions, reporter: Reporter) -> Prepared:
    """Load, analyse and check: no training happens before the static model has shown that it works on the data."""
    reporter.step("load")
    device = torch_device(options.device)
    graph, channels = read_graph(options.model, size=options.size, output=options.output)
    preprocess = preprocess_of(graph, options)
    static = StaticModel(graph, threads=torch.get_num_threads(), provider=options.provider)
    reporter.step("data")
    dataset = read_dataset(graph, preprocess, options, reporter)
    reporter.step("static check")
    logits = static_logits(static, dataset.calib)
    static_check(graph, dataset.calib, logits, preprocess, static, reporter)
    answers = reference_answers(dataset.calib, logits)
    return Prepared(
        graph, channels, static_weights(graph, channels), preprocess, dataset, static, logits, answers, device
    )


def torch_device(name: str) -> torch.device:
    """The torch device behind --device. Raises UsageError when cuda is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device here; use --device auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def read_dataset(graph: Graph, preprocess: Preprocess, options: ConvertOptions, reporter: Reporter) -> Dataset:
    """The user's images, or made-up ones."""
    if options.data is None:
        reporter.warn(
            "no --data: images are made up and labelled by the static model. Thresholds then rest on agreement with the "
            "static model on made-up images; on real images both accuracy and latency will differ. "
            "Give --data with some real images, labelled or not, to be sure."
        )
        return made_up_dataset(options.work.made_up_images, preprocess, seed=options.seed)
    dataset = load_data(
        options.data,
        preprocess=preprocess,
        classes=graph.classes,
        seed=options.seed,
        progress=lambda done, total: reporter.progress(done, total, "images read", math.nan),
    )
    sizes = f"{len(dataset.train)} to train, {len(dataset.calib)} to calibrate, {len(dataset.test)} to report"
    reporter.note(f"{dataset.kind} images: {sizes}")
    if dataset.kind == "unlabelled":
        reporter.note("no labels: the target is agreement with the static model")
    return dataset


def static_logits(static: StaticModel, images: Images) -> Array:
    """The static model's logits [B, K] on images without augmentation."""
    return np.concatenate([static.logits(np.ascontiguousarray(images.batch(p))) for p in slices(len(images), 100)])


def static_check(
    graph: Graph, images: Images, logits: Array, preprocess: Preprocess, static: StaticModel, reporter: Reporter
) -> None:
    """Print the static model's accuracy; raise StaticCheckError when it is near chance or not finite."""
    said = logits.argmax(axis=1)
    if not np.isfinite(logits).all():
        raise StaticCheckError(
            "the static model answers NaN or infinity on the data; check the images and the preprocessing"
        )
    if images.labels is None:
        if len(np.unique(said)) == 1 and images.kind == "unlabelled":
            raise StaticCheckError(
                f"the static model answers class {said[0]} for every image; check --mean, --std, --preprocess and the images"
            )
        reporter.note(f"static model: {len(np.unique(said))} of {graph.classes} classes occur among its answers")
        return
    accuracy, chance = float((said == images.labels).mean()), 1 / graph.classes
    reporter.note(f"static model: accuracy {100 * accuracy:.2f} % on {len(images)} held-out images")
    limit = chance + max(3 * math.sqrt(chance * (1 - chance) / len(images)), 0.5 * chance)
    if accuracy <= min(limit, 0.9):
        raise StaticCheckError(
            f"the static model's accuracy is {100 * accuracy:.1f} %, near chance ({100 * chance:.1f} %): check the "
            "preprocessing (--preprocess, --mean, --std, --size), the channel order (RGB or BGR) and the order of the "
            f"class folders{_hint(graph, images, preprocess, static)}"
        )


def _hint(graph: Graph, images: Images, preprocess: Preprocess, static: StaticModel) -> str:
    """A preset that would do better, if the images are pixels and there is one."""
    if images.is_model_input or images.labels is None:
        return ""
    some = np.arange(min(200, len(images)))
    best, name = 0.0, ""
    for preset in PRESETS:
        other = make_preprocess(preset, size=preprocess.size, channels=preprocess.channels, layout=preprocess.layout)
        accuracy = float((static.logits(other(images.raw(some))).argmax(axis=1) == images.labels[some]).mean())
        if accuracy > best:
            best, name = accuracy, preset
    if best < 2 / graph.classes:
        return "; no preset of --preprocess does better"
    return f"; with --preprocess {name} it would be {100 * best:.0f} %"


# --- supernet ---------------------------------------------------------------------------------------------


def plan_space(ready: Prepared, options: ConvertOptions) -> PlanSpace:
    """The search space of the model. Raises ModelError when there is nowhere to put an exit."""
    divisions = divide(ready.graph, ready.channels, ready.weights, groups=options.work.groups, block=layout_block())
    space = PlanSpace(ready.graph, ready.channels, divisions, stages=options.stages)
    if not space.taps:
        raise ModelError("the model has no tensor at which an exit could be put; `s2d inspect` shows why")
    return space


def new_net(ready: Prepared, space: PlanSpace) -> StagedNet:
    """The staged network with the static model's weights, norms put back, and a head for every tap."""
    net = StagedNet(ready.graph, ready.channels, ready.weights, taps=space.taps).to(ready.device)
    net.insert_norms(input_batches(ready.dataset.train, ready.device, count=STATISTICS_IMAGES))
    # Convolutions of training run faster with channels last, on CPU and GPU.
    if _is_2d(net):
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


def _is_2d(net: StagedNet) -> bool:
    return all(p.ndim <= 4 for p in net.parameters())


def train_settings(
    dataset: Dataset, options: ConvertOptions, rate: float, epochs: float, at_least: int
) -> TrainSettings:
    """Settings for so many passes over the training images, and at least so many steps."""
    steps = max(at_least, round(epochs * len(dataset.train) / TrainSettings.batch_size))
    level: Level = "strong" if dataset.kind == "made-up" else "light"
    return TrainSettings(steps=steps, learning_rate=rate, level=level, flip=options.flip)


def train_supernet(
    ready: Prepared, space: PlanSpace, options: ConvertOptions, run: RunFolder, reporter: Reporter
) -> StagedNet:
    """One network whose weights serve every plan of the space: all exits at full width, and a random plan, at every step."""
    reporter.step("supernet")
    net = new_net(ready, space)
    done = run.path / "supernet.pt"
    if done.exists():
        net.load_state_dict(torch.load(done, weights_only=True))
        net.eval()
        return net
    work = options.work
    settings = train_settings(ready.dataset, options, SUPERNET_RATE, work.supernet_epochs, work.supernet_min_steps)
    everything = Masks({}, (*space.taps, ready.graph.output), (None,) * (len(space.taps) + 1))

    def choose(step: int, _progress: float) -> Sequence[Masks]:
        plan = random_plan(space, np.random.default_rng([options.seed, 3, step]))
        return everything, net.masks(Effective(ready.graph, ready.channels, plan.chains[0]))

    train(
        net,
        ready.static.logits,
        ready.dataset.train,
        choose,
        settings=settings,
        seed=options.seed,
        checkpoint=run.path / "supernet.part.pt",
        on_step=_training_progress(reporter),
    )
    save_state(done, net.state_dict())
    return net


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


# --- search -----------------------------------------------------------------------------------------------


def search(
    ready: Prepared, space: PlanSpace, net: StagedNet, options: ConvertOptions, run: RunFolder, reporter: Reporter
) -> Conversion:
    """The conversion with the highest reward; the trace goes to the run folder, one line per candidate."""
    reporter.step("search")
    found = run.read_json("plan.json")
    if found is not None:
        return Conversion.from_json(found, ready.channels)
    run.rewrite_trace()
    known = {Conversion.from_json(t["plan"], ready.channels): _evaluation(t) for t in run.trace()}
    traced = {(t["method"], t["index"]) for t in run.trace()}
    evaluate = make_evaluator(ready, net, options)
    total = options.work.evaluations

    def on_trial(trial: Trial[Conversion]) -> None:
        known[trial.plan] = trial.evaluation
        if (trial.method, trial.index) not in traced:
            run.append_trace(_trace_line(trial, ready.channels))
        best = f"{trial.method}: reward {trial.evaluation.reward:.4f}"
        reporter.progress(min(total, sum(1 for _ in known)), total, best, math.nan)

    starts = space.starts()
    some = tuple(
        starts[i] for i in np.unique(np.linspace(0, len(starts) - 1, min(len(starts), total // 3)).round().astype(int))
    )
    results = [
        reinforce(
            space, evaluate, evaluations=total, seed=options.seed, on_trial=on_trial, known=known, warm_start=some
        )
    ]
    if options.work.baselines:
        results += baselines(space, evaluate, total, options.seed, on_trial, known)
    for result in results:
        value = result.best.evaluation
        reporter.note(
            f"{result.method}: reward {value.reward:.4f} (accuracy {value.accuracy:.4f}, latency {value.latency:.3f})"
        )
    best = max(results, key=lambda r: r.best.evaluation.reward).best
    run.write_json("baselines.json", {r.method: _summary(r) for r in results})
    run.write_json("plan.json", best.plan.to_json(ready.channels))
    return best.plan


def baselines(
    space: PlanSpace, evaluate: Any, total: int, seed: int, on_trial: Any, known: Mapping[Conversion, Evaluation]
) -> list[SearchResult[Conversion]]:
    """Random search with as many evaluations, and uniform plans."""
    by_chance = random_search(space, evaluate, evaluations=total, seed=seed, on_trial=on_trial, known=known)
    uniform = evaluate_all(space, evaluate, space.uniform()[:total], method="uniform", on_trial=on_trial, known=known)
    return [by_chance, uniform]


def make_evaluator(ready: Prepared, net: StagedNet, options: ConvertOptions) -> Evaluator:
    """The evaluation of candidates with latency measured next to the static model."""
    image = np.ascontiguousarray(ready.dataset.calib.batch(np.arange(options.batch) % len(ready.dataset.calib)))
    meter = Meter(ready.graph.model.SerializeToString(), image, threads=options.threads, provider=options.provider)
    return Evaluator(
        ready.graph,
        ready.channels,
        net,
        meter=meter,
        images=ready.dataset.calib,
        static_logits=ready.calib_logits,
        answers=ready.answers,
        budget=options.budget,
        weights=ready.weights,
    )


def _trace_line(trial: Trial[Conversion], channels: Channels) -> dict[str, Any]:
    value = trial.evaluation
    return {
        "method": trial.method,
        "index": trial.index,
        "digest": trial.plan.digest(),
        "accuracy": round(value.accuracy, 5),
        "latency": round(value.latency, 5),
        "reward": round(value.reward, 5),
        "repeated": trial.repeated,
        "seconds": round(trial.seconds, 2),
        **value.info,
        "plan": trial.plan.to_json(channels),
    }


def _evaluation(line: Mapping[str, Any]) -> Evaluation:
    info = {k: line[k] for k in ("stage_latency", "exit_share", "exit_accuracy") if k in line}
    return Evaluation(accuracy=line["accuracy"], latency=line["latency"], reward=line["reward"], info=info)


def _summary(result: SearchResult[Conversion]) -> dict[str, Any]:
    value = result.best.evaluation
    return {"reward": value.reward, "accuracy": value.accuracy, "latency": value.latency, "plan": result.best.plan.digest(),
            "evaluations": len({t.plan for t in result.trials})}  # fmt: skip


# --- fine-tune --------------------------------------------------------------------------------------------


def finetune(
    ready: Prepared, net: StagedNet, conversion: Conversion, options: ConvertOptions, run: RunFolder, reporter: Reporter
) -> None:
    """Train the chosen plan in place, its forbidden links fading out, then measure its statistics anew."""
    reporter.step("fine-tune")
    done = run.path / "finetuned.pt"
    if done.exists():
        net.load_state_dict(torch.load(done, weights_only=True))
        net.eval()
        return
    masks = net.masks(Effective(ready.graph, ready.channels, conversion.chains[0]))
    work = options.work
    settings = train_settings(ready.dataset, options, FINETUNE_RATE, work.finetune_epochs, work.finetune_min_steps)

    def choose(_step: int, progress: float) -> Sequence[Masks]:
        return (masks.faded(max(0.0, 1 - progress / FADE)),)

    train(
        net,
        ready.static.logits,
        ready.dataset.train,
        choose,
        settings=settings,
        seed=options.seed + 1,
        checkpoint=run.path / "finetune.part.pt",
        on_step=_training_progress(reporter),
    )
    net.recalibrate(input_batches(ready.dataset.train, ready.device, count=STATISTICS_IMAGES), masks)
    save_state(done, net.state_dict())


# --- export -----------------------------------------------------------------------------------------------


def export(
    ready: Prepared,
    net: StagedNet,
    conversion: Conversion,
    options: ConvertOptions,
    run: RunFolder,
    reporter: Reporter,
    *,
    provenance: Mapping[str, Any],
) -> Result:
    """Calibrate, write, verify and measure; everything that the manifest says is measured from the files themselves."""
    reporter.step("export")
    trained = net.weights()
    weights = [ready.weights if is_untouched(ready.graph, c) else trained for c in conversion.chains]
    models = build_stages(ready.graph, ready.channels, conversion, weights)
    logits = stage_logits(ready.graph, models, ready.dataset.calib)
    verify(ready, net, conversion, logits)
    temperatures = tuple(calibrate.fit_temperature(row, ready.answers) for row in logits)
    weights = [Weights(w.mix, w.operands, w.heads, temperatures) for w in weights]
    models = build_stages(ready.graph, ready.channels, conversion, weights)
    with whole_folder(options.out) as folder:
        manifest = draft_manifest(ready.graph, conversion, models, temperatures)
        manifest |= {
            "preprocess": ready.preprocess.to_json(),
            "measured": {},
            "provenance": _provenance(ready, options, provenance),
        }
        write_stages(folder, manifest["stages"], models)
        write_manifest(folder, manifest)
        confidence = calibrate.confidences(logits, temperatures)
        correct = logits.argmax(axis=2) == ready.answers
        with Dispatcher(folder, threads=options.threads, providers=[options.provider]) as runner:
            manifest |= choose_policies(ready, options, runner, confidence, correct)
        write_manifest(folder, manifest)
        reporter.step("measure")
        timing_static = StaticModel(ready.graph, threads=options.threads, provider=options.provider)
        with Dispatcher(folder, threads=options.threads, providers=[options.provider]) as runner:
            measured = measure(runner, timing_static, ready.dataset.test, threads=options.threads, batch=options.batch)
        manifest["measured"] = {**measured.to_json(), "data": ready.dataset.kind, "machine": machine()}
        manifest["provenance"]["search"] = run.read_json("baselines.json") or {}
        write_manifest(folder, manifest)
        write_json(folder / "plan.json", conversion.to_json(ready.channels))
        if (run.path / TRACE).exists():
            (folder / TRACE).write_bytes((run.path / TRACE).read_bytes())
    asked = next(p for p in manifest["policies"] if p["budget"] == options.budget)
    return Result(options.out, manifest, measured, bool(asked["reached"]))


def choose_policies(
    ready: Prepared, options: ConvertOptions, runner: Dispatcher, confidence: Array, correct: Array
) -> dict[str, Any]:
    """The manifest's policies for a row of budgets, from latencies of the finished files.

    Thresholds aim one standard error below the budget, so that the budget also holds on images that were not
    calibrated on; where that cannot be reached, at the budget itself.
    """
    image = np.ascontiguousarray(ready.dataset.calib.batch(np.arange(options.batch) % len(ready.dataset.calib)))
    timing_static = StaticModel(ready.graph, threads=options.threads, provider=options.provider)
    costs = path_costs(runner, timing_static, image)
    cost = costs.per_stage
    budgets = calibrate.budget_grid(confidence, cost, include=[options.budget])
    policies = [safe_policy(confidence, correct, cost, budget) for budget in budgets]
    stages = [{**s, "latency_ratio": round(c, 5)} for s, c in zip(_stage_dicts(runner), cost, strict=True)]
    return {
        "stages": stages,
        "policies": [_policy_json(p) for p in policies],
        "default_budget": options.budget,
    }


def _stage_dicts(runner: Dispatcher) -> list[dict[str, Any]]:
    plain = runner.manifest.to_json()
    stages: list[dict[str, Any]] = plain["stages"]
    return stages


def safe_policy(confidence: Array, correct: Array, cost: Sequence[float], budget: float) -> calibrate.Policy:
    """The best policy one standard error of the mean cost below the budget, or at the budget where that is out of reach."""
    best = calibrate.best_policy(confidence, correct, cost=cost, budget=budget)
    paid = np.cumsum(cost)[calibrate.exits(confidence, best.thresholds)]
    margin = float(paid.std() / math.sqrt(len(paid)))
    careful = calibrate.best_policy(confidence, correct, cost=cost, budget=budget - margin)
    chosen = careful if careful.reached else best
    return calibrate.policy_at(confidence, correct, cost=cost, budget=budget, thresholds=chosen.thresholds)


def _policy_json(policy: calibrate.Policy) -> dict[str, Any]:
    return {
        "budget": policy.budget,
        "thresholds": [round(float(t), 7) for t in policy.thresholds],
        "expected_latency": round(policy.expected_latency, 5),
        "expected_accuracy": round(policy.expected_accuracy, 5),
        "exit_share": [round(float(s), 5) for s in policy.exit_share],
        "reached": policy.reached,
    }


def verify(ready: Prepared, net: StagedNet, conversion: Conversion, logits: Array) -> None:
    """Compare the exported stages with the torch module on real images. Raises VerifyError when they part."""
    images = ready.dataset.calib.take(slice(0, min(VERIFY_IMAGES, len(ready.dataset.calib))))
    stage = 0
    for chain in conversion.chains:
        if is_untouched(ready.graph, chain):
            expected = ready.calib_logits[None, : len(images)]
        else:
            expected = exit_logits(net, images, net.masks(Effective(ready.graph, ready.channels, chain)))
        for own in expected:
            got = logits[stage, : len(images)]
            error = float(np.abs(got - own).max() / max(1.0, float(np.abs(own).max())))
            stage += 1
            if not error <= VERIFY_TOLERANCE:
                raise VerifyError(
                    f"stage {stage}: the exported file differs from the trained module by {error:.1e} "
                    f"(relative; at most {VERIFY_TOLERANCE:.0e} is allowed); please report this model"
                )


def _provenance(ready: Prepared, options: ConvertOptions, extra: Mapping[str, Any]) -> dict[str, Any]:
    plain = options.fingerprint()
    return {
        "model": plain.pop("model"),
        "options": plain,
        **model_facts(ready.graph, ready.channels),
        "data": ready.dataset.kind,
        "target": "accuracy" if ready.dataset.calib.labels is not None else "agreement with the static model",
        "versions": versions(),
        **extra,
    }


def model_facts(graph: Graph, channels: Channels) -> dict[str, int]:
    """The static model's multiply-accumulates per image and its number of parameters."""
    parameters = sum(int(v.size) for v in graph.constants.values() if v.dtype == np.float32 and v.ndim)
    return {"static_macs": sum(node_macs(graph, channels).values()), "static_parameters": parameters}


def versions() -> dict[str, str]:
    """Versions of the packages that the numbers depend on."""
    names = ("s2d-convert", "onnx", "onnxruntime", "torch", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


def machine() -> str:
    """The processor in words, for tables."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, onnxruntime {ort.__version__}"
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()}, onnxruntime {ort.__version__}"
