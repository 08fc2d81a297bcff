"""The search on a Ray cluster: the cluster computes the candidates' logits, this machine measures their latencies.

Latencies are those of the machine that runs the command, so it must be of the kind that the result is for. It is kept
quiet: where the cluster has other machines, this one computes nothing else; where it has not, the cluster is idle during
a measurement. Rewards do not depend on where logits are computed, so the search proposes the same plans as without a
cluster. Where the cluster fails, the logits are computed on this machine.
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
    """A Ray actor with one core and one copy of the statistics."""

    def __init__(self, logits: SolvedLogits) -> None:
        torch.set_num_threads(1)
        self._logits = logits

    def many(self, conversions: Sequence[Conversion]) -> list[Array]:
        """Compute the logits of several conversions."""
        return [self._logits(conversion) for conversion in conversions]


class _Idle:
    """A Ray actor that reserves cores and leaves them idle."""

    def ready(self) -> bool:
        """Return True, as soon as the cores are reserved."""
        return True


class ClusterLogits:
    """The logits that `local` would compute, from the workers of a cluster.

    wait: block in `ahead` until the workers have finished, so that they are idle while latencies are measured.
    """

    def __init__(self, ray: Any, local: SolvedLogits, workers: Sequence[Any], *, wait: bool) -> None:
        self._ray, self._local, self._workers, self._wait = ray, local, workers, wait
        self._asked: dict[Conversion, tuple[Any, int]] = {}

    def ahead(self, conversions: Sequence[Conversion]) -> None:
        """Divide the new conversions evenly among the workers, one chunk per worker."""
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
            logits: list[Array] = self._ray.get(future)
        except self._ray.exceptions.RayError as error:
            LOG.warning("the cluster did not answer (%s); computed here", type(error).__name__)
            return self._local(conversion)
        return logits[index]


@contextmanager
def on_cluster(address: str | None, evaluator: Evaluator, *, threads: int) -> Iterator[None]:
    """Let the Ray cluster at `address` compute the evaluator's logits within the block; None changes nothing.

    address: auto, local or HOST:PORT, as for ray.init. threads: onnxruntime's; this thread is pinned to as many cores.
    Raises UsageError if Ray is not installed or no cluster answers.
    """
    local = evaluator.logits
    if address is None or not isinstance(local, SolvedLogits):
        yield
        return
    ray = _connect(address)
    try:
        with _workers(ray, local) as logits, _pinned(threads):
            evaluator.logits = logits
            yield
    finally:
        evaluator.logits = local
        ray.shutdown()


def _connect(address: str) -> Any:
    """Connect to a cluster and return the module `ray`. Raises UsageError."""
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
def _workers(ray: Any, local: SolvedLogits) -> Iterator[ClusterLogits]:
    """Start one worker per core of the other machines (of this one if there are no others) and yield their logits."""
    this_node = ray.get_runtime_context().get_node_id()
    cores = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}
    other_cores = sum(count for node, count in cores.items() if node != this_node)
    actors = []
    if other_cores and cores[this_node]:  # an idle actor on all cores of this machine keeps it quiet
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        on_this_node = strategies.NodeAffinitySchedulingStrategy(this_node, soft=False)
        actors.append(ray.remote(num_cpus=cores[this_node], scheduling_strategy=on_this_node)(_Idle).remote())
        ray.get(actors[0].ready.remote())
    stored, worker_class = _put(ray, local), ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(_Worker)
    workers = [worker_class.remote(stored) for _ in range(other_cores or max(1, cores[this_node]))]
    try:
        yield ClusterLogits(ray, local, workers, wait=not other_cores)
    finally:  # the list also keeps the handles: Ray ends an actor as soon as nobody holds one
        for actor in (*actors, *workers):
            ray.kill(actor)


def _put(ray: Any, logits: SolvedLogits) -> Any:
    """Put a copy of `logits` into the cluster's object store: only the images that are used, and all tensors on the CPU."""
    images = logits.images
    used_images = replace(images, pixels=images.raw(slice(None)), rows=np.arange(len(images)))
    return ray.put(replace(logits, images=used_images, reconstruction=logits.reconstruction.on("cpu")))


@contextmanager
def _pinned(threads: int) -> Iterator[None]:
    """Pin this thread to the last `threads` of its cores within the block, where the system supports it."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[-threads:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
