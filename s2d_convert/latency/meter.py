"""Latency of ONNX models in onnxruntime, always as a ratio to a reference that is measured in the same run.

A machine's speed drifts. Every round times each model once, so that all of them see the same drift. Numbers are medians
over rounds. Where other programs run, a whole measurement can be off. So models that differ in nothing but their weights, such as
a chain before and after its training, share their latency: the median of the first few measurements.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from onnx import numpy_helper

from s2d_convert.base.arrays import Array
from s2d_convert.base.sessions import ONE_THREAD, Running, run_stages

MIN_ROUNDS, MAX_ROUNDS = 8, 400  # a large network's time is steady, and 30 rounds of it would take seconds
MAX_TRIES, UNSTEADY = 4, 0.04
MEASURED = 3  # of models with one structure
QUICK = 10.0  # percentile that replaces the median on a machine that is never steady

Key = tuple[bytes, ...]
Call = Callable[[], object]  # something to time
TimeRound = Callable[[Sequence[Call]], Sequence[float]]  # runs each call once, in turn; seconds that each took


@dataclass(frozen=True)
class Timing:
    """Median milliseconds per call of each model and of the reference, and the ratios of these medians.

    On a machine that is never steady, a low percentile (QUICK) replaces the medians.
    """

    median_ms: tuple[float, ...]
    reference_ms: float
    ratios: tuple[float, ...]


class Meter:
    """A stopwatch for chains of stages, against one reference model and with a fixed batch size.

    seconds: the time limit of one measurement; MIN_ROUNDS rounds are always taken.
    """

    def __init__(
        self,
        reference: bytes,
        image: Array,
        *,
        running: Running = ONE_THREAD,
        seconds: float = 0.3,
    ) -> None:
        self._running, self._seconds = running, seconds
        self._reference = running.session(reference)
        self._image_name = self._reference.get_inputs()[0].name
        self._image = image
        self._alike: dict[Key, dict[Key, Timing]] = {}  # by structure, then by content

    def measure(self, models: Sequence[bytes]) -> Timing:
        """Return the latencies of stages that run in this order. Equal models are measured once; of those with other weights
        the first MEASURED are, and the median counts for all."""
        known = self._alike.setdefault(tuple(map(structure, models)), {})
        key = tuple(hashlib.sha256(model).digest() for model in models)
        if key not in known and len(known) < MEASURED:
            known[key] = self._measure(models)
        return _median(list(known.values()))

    def _measure(self, models: Sequence[bytes]) -> Timing:
        sessions = [self._reference, *map(self._running.session, models)]
        feeds = [feed for feed, _ in run_stages(sessions, {self._image_name: self._image})]
        for session, feed in zip(sessions, feeds, strict=True):
            for _ in range(3):
                session.run(None, feed)
        calls = [partial(s.run, None, f) for s, f in zip(sessions, feeds, strict=True)]
        tries = []
        for _ in range(MAX_TRIES):
            times = interleave(calls, self._seconds)
            tries.append(times)
            medians = np.median(times, axis=0)
            by_round = np.median(times / times[:, :1], axis=0)
            # The two kinds of ratio differ where the machine changed its speed during the measurement.
            if np.abs(by_round / (medians / medians[0]) - 1).max() < UNSTEADY:
                break
        else:
            # Other processes only ever add time, so the quickest rounds are the least disturbed.
            medians = np.percentile(np.concatenate(tries), QUICK, axis=0)
        return Timing(
            median_ms=tuple((1e3 * medians[1:]).tolist()),
            reference_ms=float(1e3 * medians[0]),
            ratios=tuple((medians[1:] / medians[0]).tolist()),
        )


def structure(model: bytes) -> bytes:
    """Return a hash of what a model computes, whatever its tensors are called and its weights are."""
    graph, numbers = onnx.load_model_from_string(model).graph, dict[str, int]()

    def number(name: str) -> int:
        return numbers.setdefault(name, len(numbers))

    facts: list[object] = [(number(value.name), value.type.SerializeToString()) for value in graph.input]
    for constant in graph.initializer:
        weight = onnx.helper.tensor_dtype_to_np_dtype(constant.data_type).kind == "f"
        values = b"" if weight else numpy_helper.to_array(constant).tobytes()  # indices, shapes
        facts.append((number(constant.name), constant.data_type, tuple(constant.dims), values))
    for node in graph.node:
        attributes = sorted(attribute.SerializeToString() for attribute in node.attribute)
        facts.append((node.op_type, [*map(number, node.input)], [*map(number, node.output)], attributes))
    return hashlib.sha256(repr(facts).encode()).digest()


def _median(timings: Sequence[Timing]) -> Timing:
    if len(timings) == 1:
        return timings[0]
    middle = [
        np.median(np.array(values), axis=0)
        for values in ([t.ratios for t in timings], [t.reference_ms for t in timings])
    ]
    ratios, reference = tuple(middle[0].tolist()), float(middle[1])
    return Timing(tuple(ratio * reference for ratio in ratios), reference, ratios)


def time_round(calls: Sequence[Call]) -> list[float]:
    """Run each call once, in turn, and return the seconds that each took."""
    row = []
    for call in calls:
        before = time.perf_counter()
        call()
        row.append(time.perf_counter() - before)
    return row


def interleave(
    calls: Sequence[Call],
    seconds: float,
    *,
    rounds: int = MAX_ROUNDS,
    time_round: TimeRound = time_round,
) -> Array:
    """Return seconds per call, float64 [rounds, calls]. Every round times each call once, in turn.

    Takes at least MIN_ROUNDS rounds, then continues until `seconds` have passed or `rounds` are taken.
    """
    rows: list[Sequence[float]] = []
    started = time.perf_counter()
    while len(rows) < MIN_ROUNDS or (time.perf_counter() - started < seconds and len(rows) < rounds):
        rows.append(time_round(calls))
    return np.array(rows)
