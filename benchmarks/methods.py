"""The methods that the stand compares; each makes models for a seed and a budget, all with the same images and recipe.

Nothing here sees the test images: plans, ratios and thresholds are chosen on the calibration images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import numpy as np
import torch
from torch import nn

from benchmarks import pruning
from benchmarks.int8 import quantised
from benchmarks.stand import Entry, Stand, stage_times
from s2d_convert.base.files import write_bytes
from s2d_convert.channels.analysis import AnalysedModel, analyse
from s2d_convert.conversion.explore import search
from s2d_convert.conversion.finals import METHOD
from s2d_convert.conversion.requantize import Requantization, requantize
from s2d_convert.conversion.training_steps import MOST_PASSES, train_chain
from s2d_convert.frontend.load import load_graph
from s2d_convert.frontend.reference import StaticModel
from s2d_convert.network.layers import Mixing
from s2d_convert.network.norms import all_norms
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.divisions import divide
from s2d_convert.plans.plan import Conversion, identity_plan
from s2d_convert.plans.space import CASCADE, PlanSpace
from s2d_convert.plans.weights import static_weights
from s2d_convert.search.base import random_search
from s2d_convert.slicing.chain import Chain, build_stages, read_chain

SMALL_SHARE = 0.5  # of the budget: what the first network of a two-model cascade may cost
SMALL_GROUPS = 16  # how finely its width is chosen

Make = Callable[[Stand, int, float], Entry]


@dataclass(frozen=True)
class Method:
    """How a method makes its model, whether it makes one per budget, and what it is, in words."""

    make: Make
    per_budget: bool
    about: str


def static(stand: Stand, _seed: int, _budget: float) -> Entry:
    """Return the unchanged static model."""
    path = stand.root / "files" / "static.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, stand.ready.graph.to_model().SerializeToString())
    return Entry("static", 0, "files/static.onnx")


def static_tuned(stand: Stand, seed: int, _budget: float) -> Entry:
    """Return the static model with as many more passes over the images as fine-tuning gives any model of ours, by the same
    recipe."""
    ready, passes = stand.ready, MOST_PASSES
    job = stand.job(f"work/static-tuned-s{seed}", seed)
    whole = Chain(ready.model, identity_plan(ready.model), ready.weights)
    path = stand.file(f"files/static-tuned-s{seed}.onnx", train_chain(job, whole, passes=passes))
    return Entry("static-tuned", seed, path, facts={"passes": passes})


def searched(stand: Stand, seed: int, budget: float, *, method: str, plan: str) -> Entry:
    """Return the best plan of one kind, fine-tuned and exported.

    The controller finds it (for uniform plans all are tried), and finals decide between the best.
    """
    job = stand.job(f"work/{method}-s{seed}-{budget:g}", seed, budget=budget, plan=plan)
    found = search(job, stand.space, stand.evaluator(seed, budget))
    conversion, start = stand.finalist(job, seed, budget, found)
    path = stand.folder(conversion, seed, budget, start=start)
    reward = max(line["reward"] for line in job.run.trace() if line["method"] != METHOD)
    return Entry(method, seed, path, budget, budget, facts={**stage_times(job), "reward": reward})


def by_chance(stand: Stand, seed: int, budget: float) -> Entry:
    """Return the best of random plans, of which there are as many as the controller evaluates."""
    evaluate, total = stand.evaluator(seed, budget), stand.options.work.evaluations
    best = random_search(stand.space, evaluate, evaluations=total, seed=seed).best
    path = stand.folder(best.plan, seed, budget)
    return Entry("random", seed, path, budget, budget, facts={**best.evaluation.info, "reward": best.evaluation.reward})


def pruned(stand: Stand, seed: int, budget: float) -> Entry:
    """Return structured pruning by torch-pruning down to the budget, then fine-tuned like a first chain of ours."""
    ready, name = stand.ready, f"pruned-{budget:g}"
    start = stand.root / "work" / f"{name}.onnx"
    facts = stand.known("choices", name)
    if facts is None:  # latencies measured anew might prune otherwise, and a training that was interrupted not fit
        small, ratio, latency = pruning.prune_to(ready.model, stand.meter, budget=budget, block=ready.block)
        start.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(start, small.SerializeToString())
        facts = {"ratio": ratio, "latency": latency}
        stand.keep("choices", name, facts)
    graph = load_graph(start, output=ready.graph.output)
    channels = analyse(graph)
    chain = Chain(
        AnalysedModel(graph, channels), identity_plan(AnalysedModel(graph, channels)), static_weights(graph, channels)
    )
    job = stand.job(f"work/pruned-s{seed}-{budget:g}", seed)
    path = stand.file(f"files/pruned-s{seed}-{budget:g}.onnx", train_chain(job, chain, passes=MOST_PASSES))
    return Entry("pruned", seed, path, budget, budget, facts=facts)


def two_models(stand: Stand, seed: int, budget: float) -> Entry:
    """Return a small network of the same architecture, trained from random weights with distillation, then the untouched
    model."""
    ready = stand.ready
    conversion = small_conversion(stand, budget)
    job = stand.job(f"work/two-models-s{seed}-{budget:g}", seed)
    narrow = Chain(ready.model, conversion.chains[0], ready.weights)
    (stage,) = build_stages([narrow])
    start = stand.root / "work" / f"small-{budget:g}.onnx"
    write_bytes(start, stage.model.SerializeToString())
    tuned = train_chain(job, read_chain(start), passes=MOST_PASSES, start=partial(forget, seed=seed))
    name = f"folders/two-models-s{seed}-{budget:g}"
    path = stand.folder(conversion, seed, budget, tuned=tuned, name=name)
    return Entry("two-models", seed, path, budget, budget)


def small_conversion(stand: Stand, budget: float) -> Conversion:
    """Return the widest uniformly narrowed network with at most SMALL_SHARE of the budget, followed by the unchanged model.

    It is chosen by measured latencies, and only once.
    """
    ready, name = stand.ready, f"small-{budget:g}"
    known = stand.known("choices", name)
    if known is not None:
        return Conversion.from_json(known, ready.channels)
    finer = divide(ready.model, ready.weights, groups=SMALL_GROUPS, block=max(1, ready.block // 2))
    space = PlanSpace(ready.model, finer, stages=2, kinds=(CASCADE,))
    every = dict.fromkeys(space.decode(a) for a in space.uniform())
    found = sorted(every, key=lambda c: sum(s > 0 for s in c.chains[0].stages_of_units))
    fits = found[:1]
    for conversion in found:
        (stage,) = build_stages([Chain(ready.model, conversion.chains[0], ready.weights)])
        if stand.meter.measure([stage.model.SerializeToString()]).ratios[0] <= SMALL_SHARE * budget:
            fits = [conversion]
    stand.keep("choices", name, fits[0].to_json(ready.channels))
    return fits[0]


@torch.no_grad()
def forget(net: StagedNet, *, seed: int) -> None:
    """Replace all weights by random ones (He et al., 2015) and reset the norms."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, Mixing):
            fan_in = int(np.prod(module.weight.shape[1:]))
            gain = 2.0 if module.norm is not None else 1.0
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * (gain / fan_in) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for norm in all_norms(net):
        nn.init.ones_(norm.scale)
        nn.init.zeros_(norm.shift)
        norm.running_mean.zero_()
        norm.running_var.fill_(1)


def int8(stand: Stand, _seed: int, _budget: float) -> Entry:
    """Return the static model quantised to INT8 by onnxruntime (static, calibrated on training images)."""
    path = stand.root / "files" / "int8-static.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    recipe, validation = quantised(stand.ready, path)
    return Entry("int8-static", 0, "files/int8-static.onnx", validation=validation, facts=recipe)


def int8_ours(stand: Stand, seed: int, budget: float) -> Entry:
    """Return our folder for this budget with its stages in INT8, calibrated anew."""
    ready = stand.ready
    plain = make_entry(stand, "ours", seed, budget)
    assert plain is not None, "entries are made unless only known ones are asked for"
    name = f"{plain.path}-int8"
    if not (stand.root / name).exists():
        asked = Requantization("int8", stand.options.running)
        source, target = stand.root / plain.path, stand.root / name
        static = StaticModel(ready.graph, stand.options.running)  # `ready.static` has as many as training has
        requantize(source, target, asked, dataset=ready.dataset, static=static, note=stand.reporter.note)
    return Entry("int8-ours", seed, name, budget, budget)


def _plan(method: str, plan: str) -> Make:
    return partial(searched, method=method, plan=plan)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "static": Method(static, False, "the static model"),
        "static-tuned": Method(static_tuned, False, "the static model with the same extra training"),
        "ours": Method(_plan("ours", "search"), True, "the search over all plans"),
        "depth": Method(_plan("depth", "depth"), True, "exits by depth only (Shallow-Deep, BranchyNet)"),
        "width": Method(_plan("width", "width"), True, "exits by width only (S2DNAS)"),
        "cascade": Method(_plan("cascade", "cascade"), True, "a pruned first chain, then the untouched model"),
        "uniform": Method(_plan("uniform", "uniform"), True, "the best plan that divides every class alike"),
        "random": Method(by_chance, True, "random search, as many evaluations"),
        "pruned": Method(pruned, True, "structured pruning by torch-pruning"),
        "two-models": Method(two_models, True, "a small network trained from scratch, then the model"),
        "int8-ours": Method(int8_ours, True, "the stages of ours in INT8"),
        "int8-static": Method(int8, False, "the static model in INT8 (onnxruntime)"),
    }
)


def make_entry(stand: Stand, method: str, seed: int, budget: float, *, only_known: bool = False) -> Entry | None:
    """Return the result of a method, from an earlier session if there is one. only_known: make nothing new."""
    chosen = METHODS[method]
    name = f"{method}-s{seed}" + (f"-{budget:g}" if chosen.per_budget else "")
    found = stand.known("entries", name)
    if found is not None:
        return Entry(**found)
    if only_known:
        return None
    stand.reporter.step(name)
    entry = chosen.make(stand, seed, budget)
    stand.keep("entries", name, entry.to_json())
    return entry


def at_other_budgets(entry: Entry, budgets: tuple[float, ...]) -> list[Entry]:
    """Return the same folder run at budgets that no plan was searched for."""
    return [replace(entry, budget=b) for b in budgets if b != entry.budget]


def is_folder(entry: Entry) -> bool:
    """Return whether the entry is an exported folder, which can be run at any budget."""
    return not entry.path.endswith(".onnx")
