"""The search on a Ray cluster: what a candidate answers is computed there, how long it takes is measured here.

Latency is measured on the machine where the command runs, which so has to be of the kind that the result is for. It is kept
quiet: where the cluster has other machines, nothing else is sent to this one; where it has not, the cluster is idle while a
latency is measured. The search proposes the same plans as without a cluster, as rewards do not depend on where they come from.
What the cluster does not answer is computed here.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from s2d_convert.base.arrays import Array
from s2d_convert.errors import UsageError
from s2d_convert.plans.plan import Conversion
from s2d_convert.search.evaluate import Evaluator, SolvedLogits

LOG = logging.getLogger(__name__)


class _Worker:
    """An actor of the cluster: one core, one copy of the statistics."""

    def __init__(self, logits: SolvedLogits) -> None:
        torch.set_num_threads(1)
        self._logits = logits

    def many(self, conversions: Sequence[Conversion]) -> list[Array]:
        """The logits of several conversions."""
        return [self._logits(conversion) for conversion in conversions]


class _Idle:
    """An actor that holds cores and does nothing with them."""

    def ready(self) -> bool:
        """Whether it holds them."""
        return True


class ClusterLogits:
    """Logits as `local` computes them, on the workers of a cluster; `wait`: until all are there, whenever some are asked for."""

    def __init__(self, ray: Any, local: SolvedLogits, workers: Sequence[Any], *, wait: bool) -> None:
        self._ray, self._local, self._workers, self._wait = ray, local, workers, wait
        self._asked: dict[Conversion, tuple[Any, int]] = {}

    def ahead(self, conversions: Sequence[Conversion]) -> None:
        """Hand out the conversions in as few and as even chunks as there are workers."""
        new = [c for c in conversions if c not in self._asked]
        chunks = [new[i :: len(self._workers)] for i in range(len(self._workers))]
        futures = []
        for worker, chunk in zip(self._workers, chunks, strict=True):
            if chunk:
                futures.append(worker.many.remote(chunk))
                self._asked |= {conversion: (futures[-1], i) for i, conversion in enumerate(chunk)}
        if futures and self._wait:
            self._ray.wait(futures, num_returns=len(futures))

    def __call__(self, conversion: Conversion) -> Array:
        self.ahead([conversion])
        future, index = self._asked.pop(conversion)
        try:
            found: list[Array] = self._ray.get(future)
        except self._ray.exceptions.RayError as error:
            LOG.warning("the cluster did not answer (%s); computed here", type(error).__name__)
            return self._local(conversion)
        return found[index]


@contextmanager
def on_cluster(address: str | None, evaluator: Evaluator, *, threads: int) -> Iterator[None]:
    """Within the block the evaluator's logits come from the Ray cluster at `address` (None: from here, as ever).

    address: as ray.init takes it: auto, local or HOST:PORT. threads: of onnxruntime; this thread is pinned to as many
    cores. Raises UsageError where there is no Ray or no cluster.
    """
    local = evaluator.logits
    if address is None or not isinstance(local, SolvedLogits):
        yield
        return
    ray = _connect(address)
    try:
        with _hired(ray, local) as logits, _pinned(threads):
            evaluator.logits = logits
            yield
    finally:
        evaluator.logits = local
        ray.shutdown()


def _connect(address: str) -> Any:
    """Ray's module, connected. Raises UsageError."""
    try:
        ray = importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise UsageError("--ray: Ray is missing; pip install 'ray>=2.50' here and on the cluster") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError) as error:  # Ray's own errors among them
        reason = " ".join(str(error).split())
        raise UsageError(f"--ray {address}: no cluster there ({reason}); give auto, local or HOST:PORT") from error
    return ray


@contextmanager
def _hired(ray: Any, local: SolvedLogits) -> Iterator[ClusterLogits]:
    """Logits by a worker for every core of the other machines, or of this one if it is alone."""
    here = ray.get_runtime_context().get_node_id()
    cores = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}
    elsewhere = sum(count for node, count in cores.items() if node != here)
    actors = []
    if elsewhere and cores[here]:  # whoever holds all cores of this machine keeps it quiet
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        place = strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        actors.append(ray.remote(num_cpus=cores[here], scheduling_strategy=place)(_Idle).remote())
        ray.get(actors[0].ready.remote())
    told, hired = _told(ray, local), ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(_Worker)
    workers = [hired.remote(told) for _ in range(elsewhere or max(1, cores[here]))]
    try:
        yield ClusterLogits(ray, local, workers, wait=not elsewhere)
    finally:  # of an actor nobody has a handle of, Ray would make an end at once
        for actor in (*actors, *workers):
            ray.kill(actor)


def _told(ray: Any, logits: SolvedLogits) -> Any:
    """The same, in the cluster's store; without the other images of the data set, and off the accelerator."""
    images = logits.images
    own = replace(images, pixels=images.raw(slice(None)), rows=np.arange(len(images)))
    return ray.put(replace(logits, images=own, reconstruction=logits.reconstruction.on("cpu")))


@contextmanager
def _pinned(threads: int) -> Iterator[None]:
    """Keeps this thread on the last `threads` of its cores, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[-threads:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
