"""Run a folder that s2d-convert exported: the stages in order, stopping at the first confident one.

This one file needs numpy and onnxruntime only. Every exported folder has a copy of it.

    with Dispatcher("OUT") as classify:
        answer = classify(images)  # exactly as the static model takes them
    answer.output, answer.stage, answer.confidence

``python dispatcher.py [FOLDER]`` describes a folder (default: the one that this file lies in). docs/manifest.md explains
manifest.json. A folder is not trusted: everything is checked before onnxruntime opens a file.

Letters: B images of a batch, S stages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import os
import re
import reprlib
import subprocess
import sys
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import lru_cache, partial
from numbers import Real
from pathlib import Path
from time import perf_counter
from types import NoneType, UnionType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints, overload

try:
    import numpy as np
    import onnxruntime as ort
    from numpy.typing import NDArray
    from onnxruntime.capi import onnxruntime_pybind11_state as ort_state
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    sys.exit(f"{missing.name} is not installed for this Python; pip install numpy onnxruntime")

FORMAT, VERSION = "s2d-convert", 1
MANIFEST = "manifest.json"
MANIFEST_BYTES = 16 * 2**20  # limit for manifest.json
STAGE_BYTES = 2**31  # limit of protobuf
ELEMENTS = 2**31  # limit for the tensor of one image
OUTPUT, CONFIDENCE = "output", "confidence"  # the outputs of every stage
LABEL_KINDS = ("sigmoid", "sigmoid_logits")  # kinds of output of multi-label networks
KINDS = ("logits", "probabilities", "log_probabilities", *LABEL_KINDS)
TARGETS = ("accuracy", "agreement")
DATA = ("labelled", "unlabelled", "made-up", "none")
EQUALITIES = ("identical", "close")
BINS = 20  # bins of a histogram of confidences
ORT_TYPES = {
    "float16": "tensor(float16)",
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    "uint8": "tensor(uint8)",
}
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.onnx")
SHA256 = re.compile(r"[0-9a-f]{64}")
SHARE_SLACK = 1e-3  # shares are written rounded
BUDGET_SLACK = 1e-9  # for rounding: 0.7 - 0.1 must find the policy of 0.6
# onnxruntime's own exceptions have no common base but Exception; those of C++ arrive as RuntimeError.
ORT_ERRORS: tuple[type[Exception], ...] = (
    *(e for e in vars(ort_state).values() if isinstance(e, type) and issubclass(e, Exception)),
    RuntimeError,
    ValueError,
    OSError,
    MemoryError,
)

Array = NDArray[Any]
Shape = tuple[int | None, ...]  # axis 0 is the batch: None
# The allowed types of a manifest's fields, as types of parsed JSON and in words.
READABLE: dict[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "a text"),
    str | None: ((str, NoneType), "a text or null"),
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    int | None: ((int, NoneType), "a whole number or null"),
    float | None: ((int, float, NoneType), "a number or null"),
    Mapping[str, Any]: ((Mapping,), "an object"),
    Mapping[str, Any] | None: ((Mapping, NoneType), "an object or null"),
}


class DispatcherError(ValueError):
    """A folder, an argument or images cannot be used. The message is one sentence."""


@overload
def leaves(confidence: float, threshold: float) -> bool: ...
@overload
def leaves(confidence: Array, threshold: float | np.float32) -> NDArray[np.bool_]: ...
def leaves(confidence: Any, threshold: Any) -> Any:
    """Return which rows leave at a stage. This is the exit rule, and its only definition.

    confidence: float32 [B], which gives bool [B], or one such number, which gives a bool. threshold: a number that float32
    can represent. A threshold above 1 never fires, and a row with confidence NaN never leaves. The rule does not apply to
    the last stage, where all rows leave that reach it.
    """
    return confidence >= threshold


def histogram(confidence: Array) -> NDArray[np.int64]:
    """Return the number of confidences [B] in each of BINS bins of equal width, int64 [BINS].

    A confidence of 1 is in the last bin, NaN in the first.
    """
    bins = np.nan_to_num(np.clip(confidence, 0, 1)) * BINS
    counts: NDArray[np.int64] = np.bincount(np.minimum(bins, BINS - 1).astype(np.int64), minlength=BINS)
    return counts


# --- the manifest ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorSpec:
    """The batch of images: its name in the stage files, its shape (axis 0, the batch, is None) and its type."""

    name: str
    shape: Shape
    dtype: str

    def check(self) -> None:
        """Raise DispatcherError if a value is out of range."""
        if not self.name:
            refuse("name", self.name, "a name")
        if self.dtype not in ORT_TYPES:
            refuse("dtype", self.dtype, f"one of {', '.join(ORT_TYPES)}")
        _check_shape(self.shape, axes=2)


@dataclass(frozen=True)
class OutputSpec:
    """The output of every stage, which is like the static model's: float32 of this shape, and the meaning of the numbers."""

    shape: Shape
    kind: str

    def said(self, output: Array) -> tuple[int, ...]:
        """Return the answer in one row of an output: its class, or all labels that apply."""
        flat = output.ravel()
        if self.kind not in LABEL_KINDS:
            return (int(flat.argmax()),)
        return tuple(np.flatnonzero(flat > (0.5 if self.kind == "sigmoid" else 0)).tolist())

    def check(self) -> None:
        """Raise DispatcherError if a value is out of range."""
        if self.kind not in KINDS:
            refuse("kind", self.kind, f"one of {', '.join(KINDS)}")
        _check_shape(self.shape, axes=1 if self.kind in LABEL_KINDS else 2)


@dataclass(frozen=True)
class Link:
    """A float32 tensor that a stage hands on to later stages of its chain; axis 0 of the shape, the batch, is None."""

    name: str
    shape: Shape

    def check(self) -> None:
        """Raise DispatcherError if a value is out of range."""
        if not self.name:
            refuse("name", self.name, "a name")
        _check_shape(self.shape, axes=1)


@dataclass(frozen=True)
class Stage:
    """One stage file. `latency_ratio`: of this stage alone, relative to the static model; `macs`: per image."""

    file: str
    sha256: str
    chain: int
    image: bool
    links_in: tuple[str, ...]
    links_out: tuple[Link, ...]
    temperature: float
    latency_ratio: float
    macs: int
    parameters: int

    def check(self) -> None:
        """Raise DispatcherError if a value is out of range."""
        if not FILE_NAME.fullmatch(self.file):
            refuse("file", self.file, "a plain name of letters, digits, '.', '_' and '-' that ends in .onnx")
        if not SHA256.fullmatch(self.sha256):
            refuse("sha256", self.sha256, "64 hexadecimal digits in lower case")
        if not 0 < self.temperature < math.inf:
            refuse("temperature", self.temperature, "a finite number above 0")
        for name in ("latency_ratio", "macs", "parameters"):
            check_range(name, getattr(self, name), low=0)


@dataclass(frozen=True)
class Promise:
    """A certified bound on the risk, which is the drop of accuracy, or the disagreement if agreement is the target.

    With this `confidence`, over the draw of that many calibration `images`, the risk is at most `max_drop`.
    """

    max_drop: float
    confidence: float
    images: int

    def check(self) -> None:
        """Raise DispatcherError if a value is out of range."""
        for name in ("max_drop", "confidence"):
            if not 0 < (value := getattr(self, name)) < 1:
                refuse(name, value, "a number above 0 and below 1")
        check_range("images", self.images, low=1)


@dataclass(frozen=True)
class Policy:
    """Thresholds (S - 1) for one budget, and their results on the calibration images.

    `expected_latency`: relative to the static model; `reached`: whether it is within `budget`. `expected_accuracy`:
    accuracy or agreement, as the manifest's `target` says. `exit_share`: the share of images per stage. `disagreement`: the
    share of images whose answer differs from the last stage's, None if unknown. `confidence_histogram`: [S, BINS], of the
    rows that reached each stage (`histogram`), () if unknown.
    """

    budget: float
    thresholds: tuple[float, ...]
    expected_latency: float
    expected_accuracy: float
    exit_share: tuple[float, ...]
    reached: bool
    disagreement: float | None = None
    confidence_histogram: tuple[tuple[int, ...], ...] = ()
    promise: Promise | None = None

    def check(self) -> None:
        """Raise DispatcherError if a value is out of range."""
        _check_budget(self.budget)
        for i, threshold in enumerate(self.thresholds):
            check_range(f"thresholds[{i}]", threshold)
        check_range("expected_latency", self.expected_latency, low=0)
        check_range("expected_accuracy", self.expected_accuracy, low=0, high=1)
        for i, share in enumerate(self.exit_share):
            check_range(f"exit_share[{i}]", share, low=0, high=1)
        if abs(sum(self.exit_share) - 1) > SHARE_SLACK:
            refuse("exit_share", list(self.exit_share), "shares whose sum is 1")
        if self.disagreement is not None:
            check_range("disagreement", self.disagreement, low=0, high=1)
        _check_histogram(self.confidence_histogram)


@dataclass(frozen=True)
class Exactness:
    """How closely the last stage equals the static model: `identical` to the last bit, or `close`, with the largest measured
    difference of an output."""

    equal: str
    max_difference: float

    def check(self) -> None:
        """Raise DispatcherError if a value is out of range."""
        if self.equal not in EQUALITIES:
            refuse("equal", self.equal, f"one of {', '.join(EQUALITIES)}")
        check_range("max_difference", self.max_difference, low=0, high=0 if self.equal == "identical" else math.inf)


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json, checked on creation. `preprocess`, `measured` and `provenance` are free-form.

    `target`: whether `expected_accuracy` of the policies is accuracy or agreement with the static model. `data`: the kind of
    images for training and calibration. `exactness`: None unless the last stage is the static model.
    """

    input: TensorSpec
    output: OutputSpec
    target: str
    data: str
    exactness: Exactness | None
    stages: tuple[Stage, ...]
    policies: tuple[Policy, ...]
    default_budget: float
    preprocess: Mapping[str, Any] | None
    measured: Mapping[str, Any]
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Check every part, and that the parts fit together. Raises DispatcherError that names the place."""
        for name, allowed in (("target", TARGETS), ("data", DATA)):
            if getattr(self, name) not in allowed:
                refuse(name, getattr(self, name), f"one of {', '.join(allowed)}")
        for place, part in self._parts():
            try:
                part.check()
            except DispatcherError as error:
                raise DispatcherError(f"{place}.{error}") from None
        _check_stages(self.stages, self.input.name)
        _check_policies(self)

    @property
    def target_name(self) -> str:
        """What accuracies of this folder are called in words: an answer of several labels is right if all of them are."""
        several = self.output.kind in LABEL_KINDS and math.prod(n or 1 for n in self.output.shape[1:]) > 1
        return "exact match" if several and self.target == "accuracy" else self.target

    def _parts(self) -> Iterable[tuple[str, Any]]:
        yield from (("input", self.input), ("output", self.output))
        for i, stage in enumerate(self.stages):
            yield f"stages[{i}]", stage
            yield from ((f"stages[{i}].links_out[{k}]", link) for k, link in enumerate(stage.links_out))
        for i, policy in enumerate(self.policies):
            yield f"policies[{i}]", policy
            yield from [(f"policies[{i}].promise", policy.promise)] if policy.promise else []
        yield from [("exactness", self.exactness)] if self.exactness else []

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Manifest:
        """Read the manifest of a folder, without its stage files. Raises DispatcherError."""
        path = Path(folder) / MANIFEST
        try:
            found = _inside(Path(folder), MANIFEST)
            if found.stat().st_size > MANIFEST_BYTES:
                raise DispatcherError(f"larger than {MANIFEST_BYTES} bytes; this is no manifest")
            return cls.from_json(parse_json(found.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            raise DispatcherError(f"{path}: {_sentence(error)}") from error

    @classmethod
    def from_json(cls, data: object) -> Manifest:
        """Return the manifest in parsed JSON. Raises DispatcherError that names the place, such as `stages[1].macs`."""
        if not isinstance(data, Mapping):
            refuse("the top level", data, "an object")
        rest = dict(data)
        if (name := rest.pop("format", None)) != FORMAT:
            refuse("format", name, f"'{FORMAT}'")
        version = rest.pop("version", None)
        if not isinstance(version, int) or isinstance(version, bool) or version != VERSION:
            refuse("version", version, f"{VERSION}; use the dispatcher.py that lies beside the manifest")
        made: Manifest = read_typed(cls, rest)
        return made

    def to_json(self) -> dict[str, Any]:
        """Return the JSON-able dict that `from_json` reads. It is a copy and may be changed."""
        return {"format": FORMAT, "version": VERSION, **_plain(self)}

    @property
    def default_policy(self) -> Policy:
        """The policy of `default_budget`."""
        return next(policy for policy in self.policies if policy.budget == self.default_budget)

    def policy_for(self, budget: float) -> Policy:
        """Return the policy for a budget in (0, 1], which need not be a calibrated one. Raises DispatcherError.

        It is the policy of the largest calibrated budget up to `budget`, which of those within the budget keeps most
        accuracy. If all calibrated budgets are larger, it is that of the smallest.
        """
        policies = sorted(self.policies, key=lambda policy: policy.budget)
        return policies[_serving([policy.budget for policy in policies], budget)]


def _serving(budgets: Sequence[float], budget: float) -> int:
    """Return the index of the one of the ascending `budgets` that serves a budget, see `Manifest.policy_for`."""
    _check_budget(budget)
    return max(0, bisect_right(budgets, budget + BUDGET_SLACK) - 1)


def read_typed(kind: Any, data: object, place: str = "", *, whole: bool = True) -> Any:
    """Convert parsed JSON to the type `kind`: a dataclass, a tuple or one of READABLE. Raises DispatcherError.

    place: where the data stands in its file, for messages. whole: whether a missing or unknown field of an object is an
    error; otherwise a missing one gets its default, if there is one, and an unknown one is left out.
    """
    if get_origin(kind) is UnionType and kind not in READABLE:  # a dataclass or None
        kind = NoneType if data is None else get_args(kind)[0]
    if kind is NoneType:
        return None
    if is_dataclass(kind):
        return _read_object(kind, data, place, whole=whole)
    if get_origin(kind) is tuple:
        if not isinstance(data, list | tuple):
            refuse(place, data, "a list")
        items = enumerate(data)
        return tuple(read_typed(get_args(kind)[0], item, f"{place}[{i}]", whole=whole) for i, item in items)
    types, expected = READABLE[kind]
    if not isinstance(data, types) or (isinstance(data, bool) and kind is not bool):
        refuse(place, data, expected)
    if isinstance(data, int) and abs(data) >= 2**63:
        refuse(place, data, f"{expected} below 2**63")
    return float(data) if kind is float and isinstance(data, int) else deepcopy(data)


def _read_object(kind: Any, data: object, place: str, *, whole: bool) -> Any:
    """Convert a JSON object to the dataclass `kind`. Raises DispatcherError."""
    if not isinstance(data, Mapping):
        refuse(place or "the top level", data, "an object")
    # This file may have been loaded by its path, so that its own types are in no module that could be looked up.
    kinds = get_type_hints(kind, globals() if kind.__module__ == __name__ else None)
    prefix, needed = f"{place}." if place else "", [f.name for f in fields(kind) if whole or f.default is MISSING]
    for key in needed:
        if key not in data:
            raise DispatcherError(f"{prefix}{key}: missing; expected are {', '.join(kinds)}")
    for key in data:
        if whole and key not in kinds:
            raise DispatcherError(f"{prefix}{reprlib.repr(key)}: unknown; expected are {', '.join(kinds)}")
    given = [key for key in kinds if key in data]
    return kind(**{key: read_typed(kinds[key], data[key], prefix + key, whole=whole) for key in given})


def _plain(value: Any) -> Any:
    """Convert dataclasses, tuples and mappings to JSON-able values."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _check_stages(stages: Sequence[Stage], image: str) -> None:
    """Raise DispatcherError unless chains follow each other and links lead forward within one chain."""
    if not stages:
        refuse("stages", [], "at least one stage")
    if image in (OUTPUT, CONFIDENCE):
        refuse("input.name", image, "a name that no other tensor has")
    home = {image: 0, OUTPUT: 0, CONFIDENCE: 0}  # tensor -> the chain that it belongs to
    files: set[str] = set()
    chain = 0
    for i, stage in enumerate(stages):
        place = f"stages[{i}]"
        if stage.file.lower() in files:  # some file systems ignore case
            refuse(f"{place}.file", stage.file, "a file of its own for every stage")
        files.add(stage.file.lower())
        if stage.chain not in (chain or 1, chain + 1):
            refuse(f"{place}.chain", stage.chain, f"{' or '.join(map(str, sorted({chain or 1, chain + 1})))}")
        if stage.chain != chain and not stage.image:
            refuse(f"{place}.image", False, "true, because a chain starts from the image")
        chain = stage.chain
        if not stage.image and not stage.links_in:
            refuse(f"{place}.links_in", [], "a link, because this stage does not take the image")
        for k, name in enumerate(stage.links_in):
            if home.get(name) != chain or name in stage.links_in[:k]:
                refuse(f"{place}.links_in[{k}]", name, "a link out of an earlier stage of its chain, named once")
        for k, link in enumerate(stage.links_out):
            if link.name in home:
                refuse(f"{place}.links_out[{k}].name", link.name, "a name that no other tensor has")
            home[link.name] = chain


def _check_policies(manifest: Manifest) -> None:
    """Raise DispatcherError unless every policy fits the number of stages and the default is one of them."""
    stages, budgets = len(manifest.stages), [policy.budget for policy in manifest.policies]
    for i, policy in enumerate(manifest.policies):
        for name, count in (("thresholds", stages - 1), ("exit_share", stages)):
            values = list(getattr(policy, name))
            if len(values) != count:
                refuse(f"policies[{i}].{name}", values, f"{count} numbers for {stages} stages")
        if len(policy.confidence_histogram) not in (0, stages):
            got, expected = len(policy.confidence_histogram), f"one list for each of {stages} stages, or none at all"
            refuse(f"policies[{i}].confidence_histogram", got, expected)
        if policy.budget in budgets[:i]:
            refuse(f"policies[{i}].budget", policy.budget, "every budget once")
    if manifest.default_budget not in budgets:
        listed = ", ".join(f"{budget:g}" for budget in sorted(budgets)) or "none is there"
        refuse("default_budget", manifest.default_budget, f"the budget of a policy ({listed})")


def _check_shape(shape: Shape, *, axes: int) -> None:
    if len(shape) < axes or shape[0] is not None or any(n is None or not 0 < n < 2**31 for n in shape[1:]):
        refuse("shape", list(shape), f"null for the batch, then {axes - 1} or more lengths of at least 1")
    if math.prod(n or 1 for n in shape) > ELEMENTS:
        refuse("shape", list(shape), f"at most {ELEMENTS} elements for one image")


def check_range(place: str, value: float, *, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise DispatcherError unless a number is finite and within these limits."""
    if not (math.isfinite(value) and low <= value <= high):
        bounds = [f"at least {low:g}"] * math.isfinite(low) + [f"at most {high:g}"] * math.isfinite(high)
        refuse(place, value, ", ".join(["a finite number", *bounds]))


def _check_histogram(rows: Sequence[Sequence[int]]) -> None:
    for k, counts in enumerate(rows):
        place = f"confidence_histogram[{k}]"
        if len(counts) != BINS or min(counts) < 0:
            refuse(place, list(counts), f"{BINS} numbers of at least 0")
        if k and sum(counts) > sum(rows[k - 1]):
            refuse(place, sum(counts), f"at most the {sum(rows[k - 1])} images that reached the stage before")


def _check_budget(budget: object) -> None:
    if not isinstance(budget, Real) or not 0 < float(budget) <= 1:
        refuse("budget", budget, "a share of the static latency, above 0 and at most 1")


def refuse(place: str, got: object, expected: str) -> NoReturn:
    """Raise DispatcherError: the place, the value there, and what is expected."""
    raise DispatcherError(f"{place}: got {reprlib.repr(got)}; expected {expected}")


def _sentence(error: Exception) -> str:
    """Return an exception's message in one line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def parse_json(text: str) -> object:
    """Parse JSON. Raises ValueError, also for duplicate keys, NaN and infinities, or RecursionError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise DispatcherError(f"the key {reprlib.repr(key)} stands twice in one object")
            found[key] = value
        return found

    def finite(number: str) -> float:
        value = float(number)
        if not math.isfinite(value):
            raise DispatcherError(f"{reprlib.repr(number)} is not a finite number")
        return value

    return json.loads(text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite)


def _inside(folder: Path, name: str) -> Path:
    """Return the real path of a file in a folder. Raises DispatcherError, also for a link that leads out of the folder."""
    try:
        root, path = folder.resolve(strict=True), (folder / name).resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise DispatcherError(f"{_sentence(error)}; give a whole folder that s2d-convert wrote") from error
    if not path.is_relative_to(root):
        raise DispatcherError("a link out of the folder is not followed; put the file itself there")
    if not path.is_file():
        raise DispatcherError("not a file; give a whole folder that s2d-convert wrote")
    return path


# --- stage files ----------------------------------------------------------------------------------------------------

DOMAINS = ("", "ai.onnx", "com.microsoft")  # domains of onnxruntime's own operators
NOT_ONNX = "not an ONNX file; copy the folder again or convert again"
MOST_FIELDS = 2**22  # more than any honest ONNX file has
# The parts of an ONNX file that are read: (message, number of the field) -> the message in that field.
NESTED = {
    ("model", 7): "graph",
    ("graph", 1): "node",
    ("graph", 5): "tensor",
    ("node", 5): "attribute",
    ("attribute", 5): "tensor",
    ("attribute", 6): "graph",
    ("attribute", 10): "tensor",
    ("attribute", 11): "graph",
}
REFUSED = {
    ("model", 20): "instructions for training",
    ("model", 25): "functions of its own",
    ("graph", 15): "sparse weights",
    ("attribute", 22): "sparse weights",
    ("attribute", 23): "sparse weights",
    ("tensor", 13): "weights in another file",
    ("tensor", 14): "weights in another file",
}


def _check_model(data: bytes) -> None:
    """Raise DispatcherError if a stage file refers to other files or could run forever.

    onnxruntime would read weights from any file that the model names, and a loop may never end. No stage file has either.
    Only the outline of the protobuf message is read; onnxruntime checks its meaning.
    """
    if data[4:8] == b"ORTM":  # onnxruntime's own format, which it would also load
        raise DispatcherError(NOT_ONNX)
    stack, left = [("model", memoryview(data))], MOST_FIELDS
    while stack:
        kind, message = stack.pop()
        for number, value in _protobuf_fields(message):
            left -= 1
            place = (kind, number)
            if left < 0:
                raise DispatcherError(f"more than {MOST_FIELDS} fields; this is no stage of a network")
            if place in REFUSED and value != 0:  # value 0 is the default location of weights, inside the file
                raise DispatcherError(f"it has {REFUSED[place]}, and no stage file has that; convert again")
            if not isinstance(value, memoryview):
                continue
            if place == ("node", 4) and bytes(value) == b"Loop":
                raise DispatcherError("it has a loop, which need not end, and no stage file has that; convert again")
            if place == ("node", 7) and (domain := str(value, "utf-8", "replace")) not in DOMAINS:
                refuse("an operator's domain", domain, f"one of {', '.join(map(repr, DOMAINS))}")
            if place in NESTED:
                stack.append((NESTED[place], value))


def _protobuf_fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield number and value of every field of a protobuf message. Raises DispatcherError for anything else.

    Integers are int, bytes memoryview, all other values None. Source: https://protobuf.dev/programming-guides/encoding.
    """
    place = 0

    def whole() -> int:
        nonlocal place
        value = shift = 0
        while shift < 70 and place < len(message):
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
        raise DispatcherError(NOT_ONNX)

    while place < len(message):
        key = whole()
        wire = key & 7
        value: Any = None
        if wire == 0:
            value = whole()
        elif wire in (1, 2, 5):
            size = whole() if wire == 2 else {1: 8, 5: 4}[wire]
            value = message[place : place + size] if wire == 2 else None
            place += size
        if wire not in (0, 1, 2, 5) or key >= 2**32 or place > len(message):
            raise DispatcherError(NOT_ONNX)
        yield key >> 3, value


# --- sessions -------------------------------------------------------------------------------------------------------


def default_options(threads: int, *, shared: bool = False) -> Any:
    """Return onnxruntime's session options with the dispatcher's defaults. Raises DispatcherError.

    Every stage has a pool of threads - 1 threads, which spin while they wait for work. Spinning pools disturb each other. So
    a pool stops spinning when its stage ends, and on a `shared` machine, where others need the cores, it never spins.
    """
    if not isinstance(threads, int) or threads < 1:
        refuse("threads", threads, "a whole number of at least 1")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    if threads > 1:
        entry = ("session.intra_op.allow_spinning", "0") if shared else ("session.force_spinning_stop", "1")
        options.add_session_config_entry(*entry)
    return options


def _wanted_providers(providers: Sequence[Any] | None) -> dict[str, Any]:
    """Return the execution providers with their options, by name. Raises DispatcherError where onnxruntime would only warn."""
    wanted = ["CPUExecutionProvider"] if providers is None else list(providers)
    named = {str(p[0] if isinstance(p, tuple) else p): p for p in wanted}
    here = ort.get_available_providers()
    if not named or not set(named) <= set(here):
        refuse("providers", list(named), f"one or more that onnxruntime has here ({', '.join(here)})")
    return named


def _open(path: Path, stage: Stage, manifest: Manifest, *, options: Any, providers: Mapping[str, Any]) -> Any:
    """Open the session of a stage file, and check it against the manifest. Raises DispatcherError."""
    try:
        # onnxruntime gets the bytes, not the path, so that it runs exactly what was hashed.
        found = _inside(path.parent, path.name)
        if found.stat().st_size >= STAGE_BYTES:
            raise DispatcherError(f"larger than {STAGE_BYTES} bytes; no ONNX file is")
        data = found.read_bytes()
        if hashlib.sha256(data).hexdigest() != stage.sha256:
            raise DispatcherError("its sha256 is not the one in the manifest; copy the folder again or convert again")
        _check_model(data)
        session = ort.InferenceSession(data, options, providers=list(providers.values()), enable_fallback=0)
        session.disable_fallback()  # a failing provider is an error; onnxruntime 1.17 needs this call
        if hasattr(session, "_model_bytes"):  # kept only for the fallback, and as large as the weights
            session._model_bytes = None
        if lost := [name for name in providers if name not in session.get_providers()]:
            raise DispatcherError(f"onnxruntime could not start {lost[0]}; leave it out or mend its installation")
        _check_session(session, stage, manifest)
    except ORT_ERRORS as error:
        raise DispatcherError(f"{path}: {_sentence(error)}") from error
    return session


def _check_session(session: Any, stage: Stage, manifest: Manifest) -> None:
    """Raise DispatcherError unless inputs and outputs have the names, types and shapes of the manifest."""
    shapes = _shapes(manifest)
    inputs = [*([manifest.input.name] if stage.image else []), *stage.links_in]
    outputs = [OUTPUT, CONFIDENCE, *(link.name for link in stage.links_out)]
    for side, names, found in (("inputs", inputs, session.get_inputs()), ("outputs", outputs, session.get_outputs())):
        if sorted(node.name for node in found) != sorted(names):
            refuse(side, [node.name for node in found], f"{names}, as the manifest says")
        for node in found:
            dtype = manifest.input.dtype if node.name == manifest.input.name else "float32"
            if node.type != ORT_TYPES[dtype] or not _fits(node.shape, shapes[node.name]):
                expected = f"{ORT_TYPES[dtype]} {_shape_text(shapes[node.name])}, as the manifest says"
                raise DispatcherError(f"{node.name!r}: got {node.type} {node.shape}; expected {expected}")


def _shapes(manifest: Manifest) -> dict[str, Shape]:
    """Return the shapes of all inputs and outputs of stages, by name."""
    links = {link.name: link.shape for stage in manifest.stages for link in stage.links_out}
    own = {manifest.input.name: manifest.input.shape, OUTPUT: manifest.output.shape, CONFIDENCE: (None,)}
    return {**links, **own}


def _fits(found: Sequence[int | str | None], shape: Shape) -> bool:
    """Return whether a session's shape has a free batch and contradicts no length. onnxruntime may not know all lengths."""
    known = [n if isinstance(n, int) else None for n in found]
    return (
        len(known) == len(shape)
        and known[0] is None
        and all(n in (None, wanted) for n, wanted in zip(known, shape, strict=True))
    )


def _shape_text(shape: Shape) -> str:
    return f"[{', '.join('B' if n is None else str(n) for n in shape)}]"


# --- the dispatcher -------------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)  # not frozen, which would cost 5 us per single image
class Answer:
    """Answers in the order of the images. Do not write into them, because calls may share arrays.

    output: float32 [B, ...], like the static model's. stage: int64 [B], the stage that answered, from 1. confidence: float32
    [B], the confidence of that stage. stage_ms: if requested with `timings`, onnxruntime's milliseconds per stage, 0 for a
    stage that did not run.
    """

    output: Array
    stage: NDArray[np.int64]
    confidence: NDArray[np.float32]
    stage_ms: tuple[float, ...] | None = field(default=None, kw_only=True)

    def put(self, rows: NDArray[np.int64], stage: int, output: Array, confidence: Array) -> None:
        """Write the answers of some rows into this answer, which is for all rows."""
        self.output[rows], self.stage[rows], self.confidence[rows] = output, stage, confidence


class _File:
    """A stage file, which is hashed and opened on first use, by one thread while the others wait."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.session: Any = None
        self._make, self._lock = make, threading.Lock()

    def open(self) -> Any:
        """Return the session, opening it if necessary."""
        with self._lock:
            if self.session is None:
                self.session = self._make()
            return self.session

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> Any:
        """Run the session and return its outputs."""
        return (self.session or self.open()).run(names, feeds)


_Limits = tuple[float, ...]  # thresholds, rounded to float32
_NOBODY = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class _Step:
    """A stage on a route: its inputs, the outputs to fetch, and the tensors that later steps read."""

    number: int  # the stage, from 1
    stage: NDArray[np.int64]  # the same, [1], read-only
    run: Any  # the session's method, or that of a file that is not open yet
    reads: tuple[str, ...]
    fetches: tuple[str, ...]
    read_later: tuple[str, ...]


def _shared(number: int) -> NDArray[np.int64]:
    """Return the number of a stage as an array [1], for the answer of a single image. It is read-only, as calls share it."""
    stage = np.array([number], np.int64)
    stage.flags.writeable = False
    return stage


def _route(manifest: Manifest, files: Sequence[_File], *, exits: bool) -> tuple[_Step, ...]:
    """Return the steps to run. They are determined backwards, so that each knows the tensors that are read after it.

    With exits, all stages are included. Without exits, only those are that the last stage depends on; others, such as a
    whole earlier chain, are left out.
    """
    steps: list[_Step] = []
    needed: set[str] = set()
    for number, stage in reversed(list(enumerate(manifest.stages, start=1))):
        answers = (OUTPUT, CONFIDENCE) if exits or not steps else ()
        fetches = (*answers, *(link.name for link in stage.links_out if link.name in needed))
        if fetches:
            reads = (*((manifest.input.name,) if stage.image else ()), *stage.links_in)
            run = (files[number - 1].session or files[number - 1]).run
            steps.append(_Step(number, _shared(number), run, reads, fetches, tuple(sorted(needed))))
            needed = needed.difference(fetches).union(reads)
    return tuple(reversed(steps))


@dataclass(frozen=True)
class _Loaded:
    """The stage files, and the two routes over them."""

    files: tuple[_File, ...]
    with_exits: tuple[_Step, ...]
    straight: tuple[_Step, ...]


@dataclass(frozen=True)
class _Choice:
    """A policy, and its thresholds rounded for the exit rule."""

    policy: Policy
    limits: _Limits


class Dispatcher:
    """An exported folder as one classifier. Many threads may use a dispatcher at once.

    threads: onnxruntime's threads per stage. shared: whether other programs need the cores too (see `default_options`).
    session_options: onnxruntime's session options, instead of these two. providers: onnxruntime's execution providers, None
    for the CPU. budget: see `set_budget`. lazy: hash and open every stage after the first only when an image needs it.
    Raises DispatcherError when the folder is incomplete or inconsistent; with `lazy`, calls may raise it too.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        threads: int = 1,
        shared: bool = False,
        providers: Sequence[Any] | None = None,
        session_options: Any = None,
        budget: float | None = None,
        lazy: bool = False,
    ) -> None:
        if session_options is not None and (threads != 1 or shared):
            raise DispatcherError("threads, shared: session_options says both; give it alone")
        options = default_options(threads, shared=shared) if session_options is None else session_options
        named = _wanted_providers(providers)
        self.manifest = manifest = Manifest.load(folder)
        self._input, self._dtype = manifest.input.name, np.dtype(manifest.input.dtype)
        self._lengths = manifest.input.shape[1:]
        self._row_shapes = {name: shape[1:] for name, shape in _shapes(manifest).items()}
        self._answer_shape = self._row_shapes[OUTPUT]
        ascending = sorted(manifest.policies, key=lambda policy: policy.budget)
        self._choices = [_Choice(policy, _limits(policy.thresholds)) for policy in ascending]
        self._budgets = [policy.budget for policy in ascending]
        self.set_budget(budget)
        root = Path(folder).absolute()  # so that lazily opened files are found after a change of the working directory
        files = tuple(
            _File(partial(_open, root / stage.file, stage, manifest, options=options, providers=named))
            for stage in manifest.stages
        )
        for file in files[:1] if lazy else files:
            file.open()
        with_exits, straight = (_route(manifest, files, exits=exits) for exits in (True, False))
        self._loaded: _Loaded | None = _Loaded(files, with_exits, straight)
        self._monitor: Monitor | None = None

    def __call__(
        self,
        images: Array,
        *,
        exits: bool = True,
        budget: float | None = None,
        policy: Policy | None = None,
        thresholds: Sequence[float] | None = None,
        timings: bool = False,
    ) -> Answer:
        """Return the answers for images [B, ...], in exactly the form that the static model takes. B may be 0.

        exits: False lets the last stage answer every row. budget (see `set_budget`), policy (one of the manifest's or the
        caller's own) and thresholds (S - 1 numbers; above 1 never fires) apply to this call only, and at most one of them
        may be given. timings: fill in `Answer.stage_ms`. Raises DispatcherError.
        """
        loaded = self._loaded
        if loaded is None:
            raise DispatcherError("the dispatcher is closed; make a new one")
        if not (type(images) is np.ndarray and images.dtype is self._dtype and images.shape[1:] == self._lengths):
            self._check_images(images)
        choice: _Choice | None  # the calibrated policy of this call, if there is one
        if exits and budget is None and policy is None and thresholds is None:
            choice = mine = self._choice
            limits = mine.limits
        else:
            choice, limits = self._asked(budget, policy, thresholds, exits=exits)
        steps = loaded.with_exits if exits else loaded.straight
        if timings:
            spent = [0.0] * len(loaded.files)
            answer = self._run([_timed(step, spent) for step in steps], images, limits)
            return replace(answer, stage_ms=tuple(spent))
        monitor = self._monitor
        if monitor is None or choice is None:
            return self._run(steps, images, limits)
        seen: list[Array] = []
        answer = self._run(steps, images, limits, seen)
        monitor._take(choice.policy, images, answer, seen)
        return answer

    def _asked(self, budget: Any, policy: Any, thresholds: Any, *, exits: bool) -> tuple[_Choice | None, _Limits]:
        """Return the calibrated policy of a call's own options, if there is one, and the thresholds, () without exits."""
        asked = (budget is not None) + (policy is not None) + (thresholds is not None)
        if not exits and asked:
            raise DispatcherError("exits=False: budget, policy and thresholds have no meaning then; leave them out")
        if asked > 1:
            raise DispatcherError("budget, policy and thresholds exclude each other; give one of them")
        if not exits:
            return None, ()
        if budget is not None:
            choice = self._choices[_serving(self._budgets, budget)]
            return choice, choice.limits
        if policy is not None and not isinstance(policy, Policy):
            refuse("policy", policy, "a Policy, such as one of manifest.policies")
        return None, self._own_limits(thresholds if policy is None else policy.thresholds)

    def _run(
        self,
        steps: Sequence[_Step],
        images: Array,
        limits: _Limits,
        seen: list[Array] | None = None,
    ) -> Answer:
        """Run a route. limits: a threshold for every stage but the last, or () if only the last step answers.

        seen: receives the confidences of every stage that ran. For a single image, the time between two stages matters, and
        caches are cold there. So nothing is copied, and a single row is compared without numpy, which would cost as much as
        everything else.
        """
        rows = len(images)
        if not rows:  # old versions of onnxruntime fail on empty tensors
            return self._blank(0)
        values: dict[str, Array] = {self._input: images}
        merged: Answer | None = None  # made when some rows leave and others stay for the first time
        here = _NOBODY  # from then on: the images of the rows
        last = steps[-1]
        for step in steps:
            try:
                found = step.run(step.fetches, {name: values[name] for name in step.reads})
            except ORT_ERRORS as error:
                raise DispatcherError(f"stage {step.number}: {_sentence(error)}") from error
            if step is not last and not limits:
                values.update(zip(step.fetches, found, strict=True))
                continue
            confidence = found[1]
            if confidence.shape != (rows,):
                self._check_rows(step, found, rows)
            if seen is not None:
                seen.append(confidence)
            if step is last:
                break
            leaving = leaves(confidence.item() if rows == 1 else confidence, limits[step.number - 1])
            count = leaving if rows == 1 else leaving.tolist().count(True)
            if count == rows:
                break
            values.update(zip(step.fetches, found, strict=True))
            if count:
                self._check_rows(step, found, rows)
                if merged is None:
                    merged, here = self._blank(rows), np.arange(rows)
                gone, staying = np.flatnonzero(leaving), np.flatnonzero(~leaving)
                merged.put(here[gone], step.number, found[0][gone], confidence[gone])
                values = {name: values[name][staying] for name in step.read_later}
                here, rows = here[staying], len(staying)
        if found[0].shape != (rows, *self._answer_shape):
            self._check_rows(step, found, rows)
        if merged is None:
            return Answer(found[0], step.stage if rows == 1 else step.stage.repeat(rows), confidence)
        merged.put(here, step.number, found[0], confidence)
        return merged

    def _check_rows(self, step: _Step, found: Sequence[Array], rows: int) -> None:
        """Raise DispatcherError if an output's shape differs from the manifest, which onnxruntime may allow."""
        for name, tensor in zip(step.fetches, found, strict=True):
            if tensor.shape != (rows, *self._row_shapes[name]):
                expected = f"{[rows, *self._row_shapes[name]]}; convert again"
                refuse(f"stage {step.number}: {reprlib.repr(name)}", list(tensor.shape), expected)

    def warm_up(self, batch: int = 1) -> None:
        """Run every stage on black images, so that the first answer is as fast as later ones. Opens all stages.

        Raises DispatcherError.
        """
        if not isinstance(batch, int) or batch < 1:
            refuse("batch", batch, "a whole number of at least 1")
        black = np.zeros((batch, *(n or 0 for n in self._lengths)), self._dtype)
        for _ in range(2):  # onnxruntime plans its memory in the first run
            self(black, thresholds=[math.inf] * (len(self.manifest.stages) - 1))

    def _blank(self, rows: int) -> Answer:
        lengths = [n or 0 for n in self.manifest.output.shape[1:]]
        return Answer(np.empty((rows, *lengths), np.float32), np.empty(rows, np.int64), np.empty(rows, np.float32))

    def _check_images(self, images: Array) -> None:
        if isinstance(images, np.ndarray) and images.shape[1:] == self._lengths and images.dtype == self._dtype:
            return
        got, hint = type(images).__name__, "as the static model takes it"
        if isinstance(images, np.ndarray):
            got = f"{images.dtype} {list(images.shape)}"
            hint = "the batch axis first, as images[None] adds it" if images.shape == self._lengths else hint
        wanted = f"{self._dtype} {_shape_text(self.manifest.input.shape)}"
        raise DispatcherError(f"images: got {got}; expected a numpy array, {wanted}, {hint}")

    def _own_limits(self, thresholds: Any) -> _Limits:
        count = len(self.manifest.stages) - 1
        values: list[Any] = list(thresholds) if isinstance(thresholds, Iterable) else [None]
        if len(values) != count or not all((type(t) is float or isinstance(t, Real)) and t == t for t in values):
            refuse("thresholds", thresholds, f"a list of {count} numbers, one for every stage but the last")
        return _limits(tuple(values))

    @property
    def sessions(self) -> tuple[Any, ...]:
        """The onnxruntime session of every stage, in order, None for a stage that is not open yet; () after `close`."""
        return () if self._loaded is None else tuple(file.session for file in self._loaded.files)

    @property
    def policy(self) -> Policy:
        """The policy of calls without a budget, policy or thresholds of their own."""
        return self._choice.policy

    def set_budget(self, budget: float | None) -> Policy:
        """Use the policy for a budget from now on, and return it. None: the manifest's default budget.

        `Manifest.policy_for` chooses the policy. Running calls finish with the policy that they began with.
        """
        wanted = self.manifest.default_budget if budget is None else budget
        self._choice = self._choices[
            _serving(self._budgets, wanted)
        ]  # one assignment, which is atomic for other threads
        return self._choice.policy

    def monitor(
        self, *, sample: float = 0.002, window: int = 1000, false_alarm: float = 0.01, background: bool = True
    ) -> Monitor:
        """Count answers from now on, and warn through `logging` when they drift from calibration.

        sample: the share of images that are audited, which means that the last stage answers them too, to see how often it
        disagrees. A background thread does this, or `Monitor.audit` if `background` is False. window: images between two
        checks. false_alarm: the probability of ever warning without drift. A new monitor replaces the old one.
        """
        self._monitor = found = Monitor(
            self, sample=sample, window=window, false_alarm=false_alarm, background=background
        )
        return found

    def close(self) -> None:
        """Release the sessions as soon as running calls have finished. May be called more than once."""
        self._loaded = self._monitor = None

    def __enter__(self) -> Dispatcher:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@lru_cache(maxsize=64)  # rounding takes microseconds, which calls with thresholds of their own must not cost
def _limits(thresholds: tuple[float, ...]) -> _Limits:
    """Return thresholds rounded to float32, so that the exit rule compares numbers of the same type."""
    with np.errstate(over="ignore"):  # numbers beyond float32 become infinite
        return tuple(float(np.float32(threshold)) for threshold in thresholds)


def _timed(step: _Step, spent: list[float]) -> _Step:
    """Return the step with timing. spent: milliseconds per stage, to which a run adds its own."""

    def run(names: Sequence[str], feeds: Mapping[str, Array]) -> Any:
        began = perf_counter()
        found = step.run(names, feeds)
        spent[step.number - 1] += 1e3 * (perf_counter() - began)
        return found

    return replace(step, run=run)


# --- drift ----------------------------------------------------------------------------------------------------------

LOG = logging.getLogger("s2d_runtime")
COUNTED = 256  # calls whose confidences are counted together, because numpy is slow for single ones
WAITING = 64  # images that may wait for an audit; the oldest are dropped
EXPECTED = 5  # least expected number of images in a cell of a chi-square test


@dataclass(frozen=True)
class MonitorReport:
    """The counts of a monitor for the policy of `budget`.

    Images; their share per exit [S]; `confidence_histogram` as in Policy; the number of `audited` images, and the share of
    them whose answer differs from the last stage's (None without any); and the warnings.
    """

    budget: float
    images: int
    exit_share: tuple[float, ...]
    confidence_histogram: tuple[tuple[int, ...], ...]
    audited: int
    disagreement: float | None
    warnings: tuple[str, ...]


class _Tally:
    """The counters of one policy: histograms [S, BINS] of the current window and of all earlier ones, and audited images."""

    def __init__(self, policy: Policy, stages: int) -> None:
        self.policy = policy
        self.calibrated = np.array(policy.confidence_histogram, np.int64)
        self.window, self.past = np.zeros((2, stages, BINS), np.int64)
        self.audited = self.parted = 0
        self.warnings: dict[str, str] = {}

    def chances(self) -> Iterator[tuple[str, float]]:
        """Yield the name and the p-value of every comparison with calibration."""
        if not self.calibrated.size:
            return
        there, now = _exit_counts(self.calibrated), _exit_counts(self.window)
        text = " / ".join(f"{_shares(counts)}" for counts in (there, now))
        yield f"share of images per exit (calibration / now: {text})", chance_of_counts(there, now)
        for k, (old, new) in enumerate(zip(self.calibrated, self.window, strict=True), start=1):
            yield f"confidence of stage {k}", chance_of_counts(old, new)
        if self.policy.disagreement is not None and self.audited:
            images = int(there.sum())
            before = round(self.policy.disagreement * images)
            shares = f"{before / images:.1%} / {self.parted / self.audited:.1%} of {self.audited}"
            chance = chance_of_more(self.parted, self.audited, before, images)
            yield f"disagreement with the last stage (calibration / now: {shares})", chance

    def report(self) -> MonitorReport:
        """Return the current counts."""
        total = self.window + self.past
        exits, images = _exit_counts(total), int(total[0].sum())
        return MonitorReport(
            budget=self.policy.budget,
            images=images,
            exit_share=tuple((exits / max(1, images)).tolist()),
            confidence_histogram=tuple(map(tuple, total.tolist())),
            audited=self.audited,
            disagreement=self.parted / self.audited if self.audited else None,
            warnings=tuple(self.warnings.values()),
        )


class Monitor:
    """A monitor, which counts a dispatcher's answers and warns when they drift from calibration; see `Dispatcher.monitor`.

    It counts calls that use a policy of the manifest, chosen by budget, and no `timings`. Images are compared in windows.
    The check of a window makes S + 2 comparisons: Pearson's chi-square test of homogeneity on the shares per exit and on
    every stage's histogram, and Fisher's exact test whether audited images disagree with the last stage more often than at
    calibration. Check j uses the level false_alarm / (j (j + 1) (S + 2)). Over all checks, the levels add up to false_alarm.
    By Bonferroni's inequality this bounds the probability of ever warning while independent images have the same
    distribution as the calibration images.
    """

    def __init__(
        self, dispatcher: Dispatcher, *, sample: float, window: int, false_alarm: float, background: bool
    ) -> None:
        check_range("sample", sample, low=0, high=1)
        check_range("window", window, low=1)
        check_range("false_alarm", false_alarm, low=0, high=1)
        self._dispatcher, self._stages = dispatcher, len(dispatcher.manifest.stages)
        self._output = dispatcher.manifest.output
        self._sample, self._window, self._false_alarm, self._background = sample, window, false_alarm, background
        self._random = np.random.default_rng()
        self._lock, self._auditing = threading.Lock(), threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Set all counters to zero, as after a new calibration."""
        with self._lock:
            self._tallies: dict[float, _Tally] = {}
            self._pending: list[tuple[Policy, list[Array]]] = []
            self._waiting: deque[tuple[Policy, tuple[int, ...], Array | None]] = deque(maxlen=WAITING)
            self._looks = 0
            self._gap = self._next_gap()

    def _next_gap(self) -> float:
        """Draw the number of images until the next audit. It is geometric, as if each image were drawn independently."""
        return float(self._random.geometric(self._sample)) if self._sample else math.inf

    def _take(self, policy: Policy, images: Array, answer: Answer, seen: list[Array]) -> None:
        """Record a call. seen: the confidences of every stage that ran. This must be quick, as it is part of the request."""
        with self._lock:
            self._pending.append((policy, seen))
            counted = len(self._pending) >= COUNTED
            self._gap -= len(images)
            if drawn := self._gap <= 0:
                self._draw(policy, images, answer)
        if counted:
            self._settle()
        if drawn and self._background and self._auditing.acquire(blocking=False):
            try:
                threading.Thread(target=self._audit_alone, name="s2d-audit").start()
            except RuntimeError:  # no thread can be started: the images wait for the next attempt
                self._auditing.release()

    def _draw(self, policy: Policy, images: Array, answer: Answer) -> None:
        while self._gap <= 0:
            row = len(images) - 1 + int(self._gap)
            image = None if answer.stage[row] == self._stages else images[row].copy()
            self._waiting.append((policy, self._output.said(answer.output[row]), image))
            self._gap += self._next_gap()

    def _settle(self) -> None:
        """Count the recorded calls, check full windows, and warn."""
        with self._lock:
            by_policy: dict[float, tuple[Policy, list[list[Array]]]] = {}
            for policy, seen in self._pending:
                _, lists = by_policy.setdefault(policy.budget, (policy, [[] for _ in range(self._stages)]))
                for found, confidence in zip(lists, seen, strict=False):
                    found.append(confidence)
            self._pending = []
            warnings: list[str] = []
            for policy, lists in by_policy.values():
                tally = self._tally(policy)
                for counts, found in zip(tally.window, lists, strict=True):
                    counts += histogram(np.concatenate(found)) if found else 0
                if tally.window[0].sum() >= self._window:
                    warnings += self._look(tally)
        for text in warnings:
            LOG.warning("%s", text)

    def _tally(self, policy: Policy) -> _Tally:
        return self._tallies.setdefault(policy.budget, _Tally(policy, self._stages))

    def _look(self, tally: _Tally) -> list[str]:
        """Check a full window, begin a new one, and return the warnings. Every kind of warning is given once."""
        self._looks += 1
        level = self._false_alarm / (self._looks * (self._looks + 1) * (self._stages + 2))
        fresh = []
        for what, chance in tally.chances():
            kind = what.partition(" (")[0]
            if chance < level and kind not in tally.warnings:
                fresh.append(
                    f"budget {tally.policy.budget:g}: {what} is not as it was at calibration (by chance: {chance:.1e}); "
                    "see what has changed about the images, and calibrate again"
                )
                tally.warnings[kind] = fresh[-1]
        tally.past += tally.window
        tally.window[:] = 0
        return fresh

    def audit(self) -> int:
        """Audit the waiting images and return their number. Raises DispatcherError."""
        with self._lock:
            waiting = list(self._waiting)
            self._waiting.clear()
        early = [image for _, _, image in waiting if image is not None]
        found = self._dispatcher(np.stack(early), exits=False).output if early else ()
        last = iter([self._output.said(output) for output in found])
        with self._lock:
            for policy, said, image in waiting:
                tally = self._tally(policy)
                tally.audited += 1
                tally.parted += image is not None and said != next(last)
        return len(waiting)

    def _audit_alone(self) -> None:
        try:
            self.audit()
        except DispatcherError as error:  # such as a closed dispatcher; nobody waits for this answer
            LOG.info("an audit was given up: %s", error)
        finally:
            self._auditing.release()

    def report(self) -> tuple[MonitorReport, ...]:
        """Return the counts so far, one report for every policy that was used."""
        self._settle()
        with self._lock:
            return tuple(tally.report() for tally in self._tallies.values())


def _exit_counts(reached: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of images per exit [S], given the histograms [S, BINS] of the images that reached each stage."""
    rows = reached.sum(axis=1)
    return rows - np.append(rows[1:], 0)


def _shares(counts: NDArray[np.int64]) -> str:
    return ", ".join(f"{share:.1%}" for share in counts / max(1, int(counts.sum())))


def chance_of_counts(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Return the p-value of Pearson's test of homogeneity on two samples [BINS].

    Neighbouring bins are merged until EXPECTED images of both samples are expected in each.
    """
    table, cell = [], np.zeros(2)
    rows = np.array([first.sum(), second.sum()])
    least = EXPECTED * rows.sum() / max(1, rows.min())
    for pair in np.stack([first, second], axis=1):
        cell = cell + pair
        if cell.sum() >= least:
            table.append(cell)
            cell = np.zeros(2)
    if len(table) < 2 or not rows.min():
        return 1.0
    table[-1] = table[-1] + cell
    found = np.array(table)
    wanted = found.sum(axis=1, keepdims=True) * rows / rows.sum()
    return _chi_square_tail(float((np.square(found - wanted) / wanted).sum()), len(table) - 1)


def _chi_square_tail(value: float, freedom: int) -> float:
    """Return P(X >= value) of the chi-square distribution, which is a finite sum for integer degrees of freedom."""
    half = value / 2
    odd = freedom % 2
    tail = math.erfc(math.sqrt(half)) if odd else 0.0
    term = math.exp(-half) * (math.sqrt(half) / math.gamma(1.5) if odd else 1.0)
    for i in range(freedom // 2):
        tail += term
        term *= half / (i + (1.5 if odd else 1))
    return min(1.0, tail)


def chance_of_more(hits: int, drawn: int, hits_before: int, drawn_before: int) -> float:
    """Return the one-sided p-value of Fisher's exact test for `hits` among `drawn` against an earlier sample.

    It is the upper tail of the hypergeometric distribution.
    """
    both, all_drawn = hits + hits_before, drawn + drawn_before

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    base = log_choose(all_drawn, drawn)
    terms = (
        math.exp(log_choose(both, k) + log_choose(all_drawn - both, drawn - k) - base)
        for k in range(max(hits, drawn - all_drawn + both), min(both, drawn) + 1)
    )
    return min(1.0, sum(terms))


# --- the command ----------------------------------------------------------------------------------------------------


def describe(manifest: Manifest) -> str:
    """Return a short text: what goes in and comes out, the stages, the policies."""
    image, output = manifest.input, manifest.output
    lines = [
        f"in:  {image.name!r} {image.dtype} {_shape_text(image.shape)}",
        f"out: {output.kind} float32 {_shape_text(output.shape)}",
        f"calibrated for {manifest.target_name} on images: {manifest.data}",
        "",
        f"{'stage':20}{'chain':>6}{'MACs':>16}{'parameters':>14}{'latency':>9}",
    ]
    for stage in manifest.stages:
        numbers = f"{stage.chain:6}{stage.macs:16,}{stage.parameters:14,}{stage.latency_ratio:9.3f}"
        lines.append(f"{stage.file:20}{numbers}")
    lines += ["", f"{'budget':20}{'latency':>9}{manifest.target_name:>13}  share of images per exit"]
    for policy in manifest.policies:
        notes = [" default"] * (policy.budget == manifest.default_budget) + [" not reached"] * (not policy.reached)
        shares = ", ".join(f"{share:.1%}" for share in policy.exit_share)
        budget = f"{policy.budget:g}{','.join(notes)}"
        lines.append(f"{budget:20}{policy.expected_latency:9.3f}{policy.expected_accuracy:13.4f}  {shares}")
    return "\n".join([*lines, "", "budgets and latencies are shares of the static model's latency"])


def trial(folder: str | os.PathLike[str], *, seconds: float = 60.0) -> None:
    """Raise DispatcherError unless a folder opens and answers in a process of its own within `seconds`.

    A hash says that a file is whole, not who made it; and a model that was made for it can take onnxruntime down, and with
    it the process that it runs in. So try a folder from a stranger before a process that matters opens it, with this
    package's dispatcher.py and not the one in that folder, which is as strange as the rest.
    """
    command = [sys.executable, __file__, "--trial", os.fspath(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise DispatcherError(f"{folder}: did not answer within {seconds:g} seconds; do not use it") from None
    if done.returncode == 1:
        raise DispatcherError(_sentence(DispatcherError(done.stderr.splitlines()[-1] if done.stderr else "no answer")))
    if done.returncode:
        raise DispatcherError(f"{folder}: took the process down that tried it ({done.returncode}); do not use it")


def main(arguments: Sequence[str] | None = None) -> None:
    """Describe a folder that could be opened; one that could not ends the program with a sentence and code 1."""
    parser = argparse.ArgumentParser(description="Describe a folder that s2d-convert exported, and check its files.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent, help="default: this file's own")
    parser.add_argument("--trial", action="store_true", help="also run every stage, for one and for three black images")
    asked = parser.parse_args(arguments)
    try:
        with Dispatcher(asked.folder) as dispatcher:
            for batch in (1, 3) if asked.trial else ():
                dispatcher.warm_up(batch)
            sys.stdout.write(f"{describe(dispatcher.manifest)}\n")
    except DispatcherError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
