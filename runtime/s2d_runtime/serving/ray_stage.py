"""The work of a Ray Serve deployment of one stage, without Ray: the stage's session, the exit rule, and its options.

Letters: B images of a request, S stages.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2d_runtime.dispatcher import CONFIDENCE, OUTPUT, Answer, Dispatcher, Manifest, leaves
from s2d_runtime.serving.options import RayOptions, model_name

Rows = Mapping[str, NDArray[Any]]  # tensors by name, with equal rows
Limits = tuple[np.float32, ...]
BUILDER = "s2d_runtime.serving.ray:build"


def deployment_options(options: RayOptions, number: int) -> dict[str, Any]:
    """Return the options of stage `number` for Ray Serve.

    It takes as many requests at once as fill two batches, so that one fills while the other runs. Each stage scales with its
    own load, because most traffic ends at stage 1.
    """
    user_config: dict[str, Any] = {"max_batch": options.max_batch, "wait_ms": options.wait_ms}
    found: dict[str, Any] = {
        "name": f"stage{number}",
        "max_ongoing_requests": 2 * options.max_batch,
        "autoscaling_config": {
            "min_replicas": 1,
            "max_replicas": options.replicas,
            "target_ongoing_requests": options.max_batch,
        },
        "ray_actor_options": {"num_cpus": options.cpus},
        "user_config": user_config,
    }
    if number == 1:  # only the entrance rejects requests; accepted ones are served
        user_config["budget"] = options.budget
        found["max_queued_requests"] = options.queue
    return found


def serve_config(folder: Path, options: RayOptions, stages: int) -> dict[str, Any]:
    """Return the configuration for `serve deploy`, as `serve build` would write it.

    The folder must be at the same path on every node.
    """
    name = options.name or model_name(folder)
    return {
        "proxy_location": "EveryNode",
        "http_options": http_options(options),
        "applications": [
            {
                "name": name,
                "route_prefix": "/",
                "import_path": BUILDER,
                "args": {"folder": str(folder.resolve()), **asdict(options), "name": name},
                "deployments": [deployment_options(options, number) for number in range(1, stages + 1)],
            }
        ],
    }


def http_options(options: RayOptions) -> dict[str, Any]:
    """Return the options of Ray's proxies: their address, and the time limit of a request."""
    return {"host": options.host, "port": options.port, "request_timeout_s": options.timeout_s}


class StageWorker:
    """One stage of an exported folder. `number`: from 1. Raises DispatcherError when the folder is incomplete."""

    def __init__(self, folder: str | os.PathLike[str], number: int, *, threads: int = 1) -> None:
        with Dispatcher(folder, threads=threads) as runner:  # checks all files; the other stages' sessions are released
            self.manifest, self._session = runner.manifest, runner.sessions[number - 1]
        stage, image = self.manifest.stages[number - 1], self.manifest.input.name
        self.number, self.last = number, number == len(self.manifest.stages)
        self._reads = (*((image,) if stage.image else ()), *stage.links_in)
        later = self.manifest.stages[number:]
        self._read_later = {name for s in later for name in (*s.links_in, *((image,) if s.image else ()))}
        handed_on = (link.name for link in stage.links_out if link.name in self._read_later)
        self._fetches = (OUTPUT, CONFIDENCE, *handed_on)

    def run(self, batch: Sequence[Rows]) -> list[Rows]:
        """Run several requests in one call of onnxruntime, and return the outputs of each."""
        joined = {name: np.concatenate([rows[name] for rows in batch]) for name in self._reads}
        found = self._session.run(self._fetches, joined)
        ends = np.cumsum([len(rows[self._reads[0]]) for rows in batch])[:-1]
        parts = [np.split(array, ends) for array in found]
        return [dict(zip(self._fetches, arrays, strict=True)) for arrays in zip(*parts, strict=True)]

    async def answer(
        self,
        values: Rows,
        limits: Limits,
        *,
        run: Callable[[Rows], Awaitable[Rows]],
        go_on: Callable[[Rows, Limits], Awaitable[Answer]],
    ) -> Answer:
        """Return the answers for the rows of a request that have reached this stage.

        run: like `run` for one request; the caller may batch it with others. go_on: asks the next stage for the answers of
        the rows that stay.
        """
        found = await run({name: values[name] for name in self._reads})
        output, confidence = found[OUTPUT], found[CONFIDENCE]
        stage = np.full(len(confidence), self.number, np.int64)
        staying = np.zeros(len(confidence), np.bool_) if self.last else ~leaves(confidence, limits[self.number - 1])
        if staying.any():
            kept = {name: value[staying] for name, value in {**values, **found}.items() if name in self._read_later}
            later = await go_on(kept, limits)
            output, confidence = output.copy(), confidence.copy()  # they are views of a batch that other requests read
            output[staying], stage[staying], confidence[staying] = later.output, later.stage, later.confidence
        return Answer(output, stage, confidence)


def limits_for(manifest: Manifest, budget: float | None) -> Limits:
    """Return the thresholds of a budget (None: the manifest's default), rounded for the exit rule. Raises DispatcherError."""
    policy = manifest.policy_for(manifest.default_budget if budget is None else budget)
    with np.errstate(over="ignore"):  # numbers beyond float32 become infinite
        return tuple(np.float32(threshold) for threshold in policy.thresholds)
