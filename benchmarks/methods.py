"""The methods that the stand compares; each makes models for a seed and a budget, all with the same images and recipe.

Nothing here sees the test images: plans, ratios and thresholds are chosen on the calibration images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from benchmarks import earlyon_exits, onnxsim_pruning, pruning, rivals
from benchmarks.int8 import quantised
from benchmarks.small_nets import replacement, replacement_first, small_network, two_models
from benchmarks.stand import Entry, Stand, stage_times
from s2d_convert.base.files import write_bytes
from s2d_convert.conversion.explore import search
from s2d_convert.conversion.finals import METHOD
from s2d_convert.conversion.requantize import Requantization, requantize
from s2d_convert.conversion.training_steps import MOST_PASSES, train_chain
from s2d_convert.frontend.reference import StaticModel
from s2d_convert.plans.plan import identity_plan
from s2d_convert.search.base import random_search
from s2d_convert.slicing.chain import Chain

Make = Callable[[Stand, int, float], Entry]


@dataclass(frozen=True)
class Method:
    """How a method makes its model, whether it makes one per budget, and what it is, in words.

    `missing` is the package that it needs and that is not installed. The models of `rival` methods are made by other packages
    or brought by the user; one that cannot be made is a row that says why, not the end of the run.
    """

    make: Make
    per_budget: bool
    about: str
    rival: bool = False
    missing: str | None = None


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


def _rival(make: Make, about: str, missing: str | None) -> Method:
    return Method(make, True, about, rival=True, missing=missing)


TORCH_PRUNING = None if pruning.AVAILABLE else "torch-pruning"
EARLYON = None if earlyon_exits.AVAILABLE else "earlyon"
ONNXSIM = None if onnxsim_pruning.AVAILABLE else "onnxsim"

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
        "pruned": _rival(rivals.pruned, "structured pruning by torch-pruning", TORCH_PRUNING),
        "isomorphic": _rival(rivals.isomorphic, "the same package with its isomorphic criterion", TORCH_PRUNING),
        "onnxsim": _rival(rivals.onnxsim, "structured pruning and label-free tuning by onnxsim", ONNXSIM),
        "onnxsim-tuned": _rival(rivals.onnxsim_tuned, "the same, then fine-tuned by our recipe", ONNXSIM),
        "earlyon": _rival(earlyon_exits.exits, "exits by the package earlyon, on the frozen model", EARLYON),
        "small": Method(small_network, True, "a small network trained from scratch, in place of the model"),
        "replacement": Method(replacement, False, "the smaller model of --replacement", rival=True),
        "first": Method(replacement_first, True, "the model of --replacement, then the model (--first)", rival=True),
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
