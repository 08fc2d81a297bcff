"""Small networks instead of stages: the same architecture made narrower, or a file that the user brings.

As the only network (`small`, `replacement`) or as the first of a cascade before the untouched model (`two-models`, `first`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.stand import Entry, Stand
from s2d_convert.base.files import write_bytes
from s2d_convert.conversion.context import Tuned
from s2d_convert.conversion.exact import own_candidate
from s2d_convert.conversion.finish import finish
from s2d_convert.conversion.prepare import read_first
from s2d_convert.conversion.training_steps import MOST_PASSES, train_chain
from s2d_convert.errors import ModelError
from s2d_convert.exporting.provenance import model_sha256
from s2d_convert.frontend.load import load_graph
from s2d_convert.network.layers import Mixing
from s2d_convert.network.norms import all_norms
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.divisions import divide
from s2d_convert.plans.plan import Conversion
from s2d_convert.plans.space import CASCADE, PlanSpace
from s2d_convert.slicing.chain import Chain, build_stages, read_chain

SMALL_SHARE = 0.5  # of the budget: what the first network of a two-model cascade may cost
SMALL_GROUPS = 16  # how finely its width is chosen


def two_models(stand: Stand, seed: int, budget: float) -> Entry:
    """Return a small network of the same architecture, trained from random weights with distillation, then the untouched
    model."""
    conversion = small_conversion(stand, SMALL_SHARE * budget)
    tuned = _trained_anew(stand, conversion, seed, name=f"two-models-s{seed}-{budget:g}")
    name = f"folders/two-models-s{seed}-{budget:g}"
    path = stand.folder(conversion, seed, budget, tuned=tuned, name=name)
    return Entry("two-models", seed, path, budget, budget)


def small_network(stand: Stand, seed: int, budget: float) -> Entry:
    """Return a small network of the same architecture that meets the budget, trained as in `two_models`, and nothing after
    it."""
    name = f"small-s{seed}-{budget:g}"
    tuned = _trained_anew(stand, small_conversion(stand, budget), seed, name=name)
    return Entry("small", seed, stand.file(f"files/{name}.onnx", tuned), budget, budget)


def replacement(stand: Stand, _seed: int, _budget: float) -> Entry:
    """Return the user's own smaller model of `--replacement`, as it is.

    Raises ModelError where there is none, or where it does not take the same images or has other classes.
    """
    path, graph = _given(stand), stand.ready.graph
    smaller = load_graph(path)
    expected = (graph.shapes[graph.image], graph.classes, graph.output_kind)
    got = (smaller.shapes[smaller.image], smaller.classes, smaller.output_kind)
    if got != expected:
        raise ModelError(f"{path}: image, classes and kind of output are {got}, expected {expected}")
    target = stand.root / "files" / "replacement.onnx"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, smaller.to_model().SerializeToString())
    return Entry("replacement", 0, "files/replacement.onnx")


def replacement_first(stand: Stand, _seed: int, budget: float) -> Entry:
    """Return the model of `--replacement` as the first chain before the untouched model, as `s2d convert --first` has it; with no
    training.

    Raises ModelError where there is none, or where it answers something else.
    """
    path, name = _given(stand), f"folders/first-{budget:g}"
    if not (stand.root / name).exists():
        job = stand.job(name, 0, budget=budget)
        own = read_first(stand.ready, path, stand.options, stand.reporter)
        job = replace(job, ready=replace(job.ready, own=own))
        made = own_candidate(job, own)
        provenance = {"model_sha256": model_sha256(stand.options.model)}
        finish(job, made.tuned, made.conversion, provenance=provenance)
        job.run.remove()
    return Entry("first", 0, name, budget, budget)


def _given(stand: Stand) -> Path:
    """Return the path of the user's own smaller model. Raises ModelError where there is none."""
    if stand.options.replacement is None:
        raise ModelError("no smaller model was given; --replacement FILE.onnx gives one")
    return stand.options.replacement


def _trained_anew(stand: Stand, conversion: Conversion, seed: int, *, name: str) -> Tuned:
    """Return the first chain of the conversion, trained from random weights with distillation."""
    ready = stand.ready
    job = stand.job(f"work/{name}", seed)
    (stage,) = build_stages([Chain(ready.model, conversion.chains[0], ready.weights)])
    start = stand.root / "work" / f"{name}.onnx"
    write_bytes(start, stage.model.SerializeToString())
    return train_chain(job, read_chain(start), passes=MOST_PASSES, start=partial(forget, seed=seed))


def small_conversion(stand: Stand, most: float) -> Conversion:
    """Return the widest uniformly narrowed network of a latency of at most `most`, followed by the unchanged model.

    It is chosen by measured latencies, and only once.
    """
    ready, name = stand.ready, f"small-{most:g}"
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
        if stand.meter.measure([stage.model.SerializeToString()]).ratios[0] <= most:
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
