"""Structured pruning by other packages, as methods of the stand: each down to the budget, then fine-tuned like a first chain of
ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import onnxsim_pruning, pruning
from benchmarks.stand import Entry, Stand
from s2d_convert.base.files import write_bytes
from s2d_convert.channels.analysis import AnalysedModel, analyse
from s2d_convert.conversion.training_steps import MOST_PASSES, train_chain
from s2d_convert.frontend.load import load_graph
from s2d_convert.plans.plan import identity_plan
from s2d_convert.plans.weights import static_weights
from s2d_convert.slicing.chain import Chain

Smaller = tuple[bytes, dict[str, Any]]  # an ONNX model, and what is worth knowing about it


def pruned(stand: Stand, seed: int, budget: float) -> Entry:
    """Return structured pruning by torch-pruning with its group norms, every layer by the same ratio, and fine-tuned."""
    return _fine_tuned(stand, seed, budget, "pruned", lambda: _by_torch_pruning(stand, budget, isomorphic=False))


def isomorphic(stand: Stand, seed: int, budget: float) -> Entry:
    """Return structured pruning by torch-pruning with its isomorphic criterion, and fine-tuned."""
    return _fine_tuned(stand, seed, budget, "isomorphic", lambda: _by_torch_pruning(stand, budget, isomorphic=True))


def onnxsim(stand: Stand, _seed: int, budget: float) -> Entry:
    """Return structured pruning by onnxsim, tuned by its own label-free means and by nothing else."""
    name = f"onnxsim-{budget:g}"
    facts = _chosen(stand, name, lambda: _by_onnxsim(stand, budget))
    target = stand.root / "files" / f"{name}.onnx"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, (stand.root / "work" / f"{name}.onnx").read_bytes())
    return Entry("onnxsim", 0, f"files/{name}.onnx", budget, budget, facts=facts)


def onnxsim_tuned(stand: Stand, seed: int, budget: float) -> Entry:
    """Return what `onnxsim` returns, and fine-tuned."""
    name = f"onnxsim-{budget:g}"
    return _fine_tuned(stand, seed, budget, "onnxsim-tuned", lambda: _by_onnxsim(stand, budget), choice=name)


def _by_torch_pruning(stand: Stand, budget: float, *, isomorphic: bool) -> Smaller:
    ready = stand.ready
    small, ratio, latency = pruning.prune_to(
        ready.model, stand.meter, budget=budget, block=ready.block, isomorphic=isomorphic
    )
    return small.SerializeToString(), {"ratio": ratio, "latency": latency}


def _by_onnxsim(stand: Stand, budget: float) -> Smaller:
    images = stand.ready.dataset.train
    made = onnxsim_pruning.prune_to(stand.ready.graph, images, stand.meter, budget=budget)
    return made.model.SerializeToString(), made.facts


def _chosen(stand: Stand, name: str, make: Callable[[], Smaller]) -> dict[str, Any]:
    """Return the facts of a pruned model, which lies in the folder `work` from then on.

    It is pruned once: latencies measured anew might prune otherwise, and a training that was interrupted not fit.
    """
    facts: dict[str, Any] | None = stand.known("choices", name)
    if facts is None:
        model, facts = make()
        path = stand.root / "work" / f"{name}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, model)
        stand.keep("choices", name, facts)
    return facts


def _fine_tuned(
    stand: Stand, seed: int, budget: float, method: str, make: Callable[[], Smaller], *, choice: str = ""
) -> Entry:
    """Return a pruned model after the training that every network with one exit gets."""
    choice = choice or f"{method}-{budget:g}"
    facts = _chosen(stand, choice, make)
    graph = load_graph(stand.root / "work" / f"{choice}.onnx", output=stand.ready.graph.output)
    channels = analyse(graph)
    model = AnalysedModel(graph, channels)
    chain = Chain(model, identity_plan(model), static_weights(graph, channels))
    name = f"{method}-s{seed}-{budget:g}"
    tuned = train_chain(stand.job(f"work/{name}", seed), chain, passes=MOST_PASSES)
    return Entry(method, seed, stand.file(f"files/{name}.onnx", tuned), budget, budget, facts=facts)
