"""What a plan is worth with weights in closed form, beside the same cut without: `python -m benchmarks.bench_reconstruction`.

Takes a CIFAR ResNet, an .npz with `images` (float32 as the model takes them) to solve on, and one with `images` and
`labels` to measure on. Every line has CPU seconds, accuracy of all exits solved, and of the plain cut.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from s2d_convert.base.arrays import Array
from s2d_convert.channels.analysis import AnalysedModel, ChannelClass
from s2d_convert.frontend.load import load_graph
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.exit_points import candidate_taps
from s2d_convert.plans.liveness import optional_classes
from s2d_convert.plans.plan import PRUNED, Plan, identity_plan
from s2d_convert.plans.weights import Weights, static_weights
from s2d_convert.training.reconstruction.plan_solver import Settings
from s2d_convert.training.reconstruction.reconstruction import Reconstruction
from s2d_convert.training.reconstruction.selection import data_importance

BATCH = 250


def plans(model: AnalysedModel, score: Array) -> Iterator[tuple[str, Plan]]:
    """Yield the plans of the table, each with its name."""
    for share in (0.5, 0.25):
        yield f"{share} of the inner channels", divided(model, score, share, PRUNED)
    yield "every 2nd block", fewer_blocks(model, 2)
    for share in (0.5, 0.75):
        tap = candidate_taps(model)[-1]
        yield (
            f"two linked stages at {share}",
            replace(divided(model, score, share, 2), taps=(tap, model.graph.output)),
        )


def divided(model: AnalysedModel, score: Array, share: float, rest: int) -> Plan:
    """Return the best share of every class in stage 1, the others in stage `rest`; PRUNED takes from the inside of blocks
    only."""
    stages = np.ones(model.channels.units, dtype=np.int64)
    for group in model.channels.classes:
        if group.splittable and (rest != PRUNED or is_inner(group)):
            order = sorted(group.units, key=lambda unit: -score[unit])
            stages[order[round(len(order) * share) :]] = rest
    return Plan((model.graph.output,), tuple(stages.tolist()))


def is_inner(group: ChannelClass) -> bool:
    """Return whether a class is the inside of a residual block; a stream is made by several layers."""
    return len(group.producers) == 1


def fewer_blocks(model: AnalysedModel, step: int) -> Plan:
    """Return the first inner class of every width, and every `step`-th after it."""
    stages, seen = np.ones(model.channels.units, dtype=np.int64), dict[int, int]()
    for group, optional in zip(model.channels.classes, optional_classes(model), strict=True):
        if group.splittable and optional and is_inner(group):
            seen[group.width] = seen.get(group.width, -1) + 1
            if seen[group.width] % step:
                stages[list(group.units)] = PRUNED
    return Plan((model.graph.output,), tuple(stages.tolist()))


@torch.no_grad()
def accuracy(model: AnalysedModel, weights: Weights, plan: Plan, data: tuple[Array, Array]) -> list[float]:
    """Return the accuracy of every exit in percent."""
    net = StagedNet(model, weights, taps=[t for t in plan.taps if t != model.graph.output]).eval()
    masks, right = net.masks(Effective(model, plan)), np.zeros(plan.stages)
    for start in range(0, len(data[0]), BATCH):
        images, labels = (part[start : start + BATCH] for part in data)
        right += [int((y.argmax(1).numpy() == labels).sum()) for y in net(torch.from_numpy(images), masks)]
    return np.round(100 * right / len(data[0]), 2).tolist()


def main() -> None:
    """Solve every plan of the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "images", "test"):
        parser.add_argument(name)
    parser.add_argument("--count", type=int, default=1000)
    arguments = parser.parse_args()
    model = AnalysedModel.of(load_graph(arguments.model))
    weights = static_weights(model.graph, model.channels)
    images = np.load(arguments.images)["images"][: arguments.count]
    with np.load(arguments.test) as test:
        data = (test["images"], test["labels"])
    started = time.process_time()
    problem = Reconstruction(model, weights, images, settings=Settings(mirrored=True))
    prepared = time.process_time()
    score = data_importance(problem)
    print(f"prepare {prepared - started:.1f} s, select {time.process_time() - prepared:.1f} s")
    print("static", accuracy(model, weights, identity_plan(model), data), flush=True)
    for name, plan in plans(model, score):
        started = time.process_time()
        solved = problem.solve(plan)
        seconds = time.process_time() - started
        found = [accuracy(model, w, plan, data) for w in (solved.weights, weights)]
        print(f"{name}: {found[0]} (cut alone {found[1]}), {seconds:.1f} s", flush=True)
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


if __name__ == "__main__":
    main()
