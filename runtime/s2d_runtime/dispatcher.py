"""Runs a folder that s2d-convert exported: the stages in order, stopping at the first confident one.

One file that needs numpy and onnxruntime only; every export carries a copy of it.

    with Dispatcher("OUT") as classify:
        answer = classify(images)  # exactly as the static model takes them
    answer.output, answer.stage, answer.confidence

``python dispatcher.py [FOLDER]`` describes a folder (the one that this file lies in). docs/manifest.md tells what
manifest.json says. A folder is not trusted: everything is checked before onnxruntime opens a file.

Letters: B images of a batch, S stages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import reprlib
import sys
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass
from numbers import Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

FORMAT, VERSION = "s2d-convert", 1
MANIFEST = "manifest.json"
MANIFEST_BYTES = 16 * 2**20  # more is no manifest
OUTPUT, CONFIDENCE = "output", "confidence"  # what every stage answers with
KINDS = ("logits", "probabilities", "log_probabilities")
TARGETS = ("accuracy", "agreement")
DATA = ("labelled", "unlabelled", "made-up", "none")
EQUALITIES = ("identical", "close")
BINS = 20  # of a histogram of confidences
ORT_TYPES = {
    "float16": "tensor(float16)",
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    "uint8": "tensor(uint8)",
}
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.onnx")
SHA256 = re.compile(r"[0-9a-f]{64}")
SHARE_SLACK = 1e-3  # shares are written rounded
BUDGET_SLACK = 1e-9  # 0.7 - 0.1 is to find the policy of 0.6
# onnxruntime's own exceptions have no common base but Exception; those of C++ arrive as RuntimeError.
ORT_ERRORS: tuple[type[Exception], ...] = (
    *(e for e in vars(ort_state).values() if isinstance(e, type) and issubclass(e, Exception)),
    RuntimeError,
    ValueError,
    OSError,
)

Array = NDArray[Any]
Shape = tuple[int | None, ...]  # axis 0 is the batch: None
# What a field of the manifest may be: parsed JSON's types, and the same in words.
READABLE: dict[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "a text"),
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    int | None: ((int, NoneType), "a whole number or null"),
    float | None: ((int, float, NoneType), "a number or null"),
    Mapping[str, Any]: ((Mapping,), "an object"),
    Mapping[str, Any] | None: ((Mapping, NoneType), "an object or null"),
}


class DispatcherError(ValueError):
    """A folder, an argument or images cannot be used; the message is one sentence."""


def leaves(confidence: Array, threshold: np.float32) -> NDArray[np.bool_]:
    """Which rows leave at a stage, bool [B]: the exit rule, and the only place that has it.

    confidence: float32 [B]. A threshold above 1 never fires, and NaN confidence never leaves. The last stage does not
    ask: whoever gets there, leaves there.
    """
    result: NDArray[np.bool_] = confidence >= threshold
    return result


def histogram(confidence: Array) -> NDArray[np.int64]:
    """How many confidences [B] lie in each of BINS bins of equal width, int64 [BINS]; 1 is in the last, NaN in the first."""
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
            _refuse("name", self.name, "a name")
        if self.dtype not in ORT_TYPES:
            _refuse("dtype", self.dtype, f"one of {', '.join(ORT_TYPES)}")
        _check_shape(self.shape, axes=2)


@dataclass(frozen=True)
class OutputSpec:
    """What every stage answers, as the static model does: float32 of this shape, and what the numbers mean."""

    shape: Shape
    kind: str

    def check(self) -> None:
        """Raise DispatcherError if a value is out of range."""
        if self.kind not in KINDS:
            _refuse("kind", self.kind, f"one of {', '.join(KINDS)}")
        _check_shape(self.shape, axes=2)


@dataclass(frozen=True)
class Link:
    """A float32 tensor that a stage hands on to later stages of its chain; axis 0 of the shape, the batch, is None."""

    name: str
    shape: Shape

    def check(self) -> None:
        """Raise DispatcherError if a value is out of range."""
        if not self.name:
            _refuse("name", self.name, "a name")
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
            _refuse("file", self.file, "a plain name of letters, digits, '.', '_' and '-' that ends in .onnx")
        if not SHA256.fullmatch(self.sha256):
            _refuse("sha256", self.sha256, "64 hexadecimal digits in lower case")
        if not 0 < self.temperature < math.inf:
            _refuse("temperature", self.temperature, "a finite number above 0")
        for name in ("latency_ratio", "macs", "parameters"):
            _check_range(name, getattr(self, name), low=0)


@dataclass(frozen=True)
class Promise:
    """A bound on the risk that was certified: with this `confidence`, over the draw of that many calibration `images`,
    the risk (drop of accuracy, or disagreement where that is the target) is at most `max_drop`."""

    max_drop: float
    confidence: float
    images: int

    def check(self) -> None:
        """Raise DispatcherError if a value is out of range."""
        for name in ("max_drop", "confidence"):
            if not 0 < (value := getattr(self, name)) < 1:
                _refuse(name, value, "a number above 0 and below 1")
        _check_range("images", self.images, low=1)


@dataclass(frozen=True)
class Policy:
    """Thresholds (S - 1) for one budget, and what they did on the images that they were calibrated on.

    `expected_latency` is relative to the static model, `expected_accuracy` what the manifest's `target` says,
    `exit_share` the share of images per stage; `reached` says whether `expected_latency` is within `budget`.
    `disagreement`: share of images whose answer is another one than the last stage's; `confidence_histogram`: [S, BINS],
    the rows that reached each stage (`histogram`). None and () where they are not known.
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
            _check_range(f"thresholds[{i}]", threshold)
        _check_range("expected_latency", self.expected_latency, low=0)
        _check_range("expected_accuracy", self.expected_accuracy, low=0, high=1)
        for i, share in enumerate(self.exit_share):
            _check_range(f"exit_share[{i}]", share, low=0, high=1)
        if abs(sum(self.exit_share) - 1) > SHARE_SLACK:
            _refuse("exit_share", list(self.exit_share), "shares whose sum is 1")
        if self.disagreement is not None:
            _check_range("disagreement", self.disagreement, low=0, high=1)
        _check_histogram(self.confidence_histogram)


@dataclass(frozen=True)
class Exactness:
    """How the last stage relates to the static model: `identical` to the last bit, or `close`, with the largest
    difference of an output that was measured."""

    equal: str
    max_difference: float

    def check(self) -> None:
        """Raise DispatcherError if a value is out of range."""
        if self.equal not in EQUALITIES:
            _refuse("equal", self.equal, f"one of {', '.join(EQUALITIES)}")
        _check_range("max_difference", self.max_difference, low=0, high=0 if self.equal == "identical" else math.inf)


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says, checked when it is made. `preprocess`, `measured` and `provenance` are free-form.

    `target`: what `expected_accuracy` of the policies is, right answers or agreement with the static model; `data`: the
    kind of images that it was trained and calibrated on; `exactness`: None unless the last stage is the static model.
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
        """Check every part, and that the parts fit. Raises DispatcherError that names the place."""
        for name, allowed in (("target", TARGETS), ("data", DATA)):
            if getattr(self, name) not in allowed:
                _refuse(name, getattr(self, name), f"one of {', '.join(allowed)}")
        for place, part in self._parts():
            try:
                part.check()
            except DispatcherError as error:
                raise DispatcherError(f"{place}.{error}") from None
        _check_stages(self.stages, self.input.name)
        _check_policies(self)

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
        """The manifest of a folder. Raises DispatcherError; the stage files are not looked at."""
        path = Path(folder) / MANIFEST
        try:
            found = _inside(Path(folder), MANIFEST)
            if found.stat().st_size > MANIFEST_BYTES:
                raise DispatcherError(f"larger than {MANIFEST_BYTES} bytes; this is no manifest")
            return cls.from_json(_parse(found.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            raise DispatcherError(f"{path}: {_sentence(error)}") from error

    @classmethod
    def from_json(cls, data: object) -> Manifest:
        """The manifest in parsed JSON. Raises DispatcherError that names the place, like `stages[1].macs`."""
        if not isinstance(data, Mapping):
            _refuse("the top level", data, "an object")
        rest = dict(data)
        if (name := rest.pop("format", None)) != FORMAT:
            _refuse("format", name, f"'{FORMAT}'")
        version = rest.pop("version", None)
        if not isinstance(version, int) or isinstance(version, bool) or version != VERSION:
            _refuse("version", version, f"{VERSION}; use the dispatcher.py that lies beside the manifest")
        made: Manifest = _read(cls, rest, "")
        return made

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads: dicts, lists, texts and numbers, a copy that may be changed."""
        return {"format": FORMAT, "version": VERSION, **_plain(self)}

    def policy_for(self, budget: float) -> Policy:
        """The policy that serves a budget in (0, 1], calibrated or not. Raises DispatcherError.

        It is the one with the largest calibrated budget that is not above the asked one: of the policies that keep the
        promise, the one that keeps most accuracy. Below all calibrated budgets the smallest one has to do.
        """
        _check_budget(budget)
        policies = sorted(self.policies, key=lambda policy: policy.budget)
        not_above = bisect_right([policy.budget for policy in policies], budget + BUDGET_SLACK)
        return policies[max(0, not_above - 1)]


def _read(kind: Any, data: object, place: str) -> Any:
    """Parsed JSON as the type `kind`: a dataclass, a tuple or one of READABLE. Raises DispatcherError."""
    if get_origin(kind) is UnionType and kind not in READABLE:  # a dataclass or None
        kind = NoneType if data is None else get_args(kind)[0]
    if kind is NoneType:
        return None
    if is_dataclass(kind):
        return _read_object(kind, data, place)
    if get_origin(kind) is tuple:
        if not isinstance(data, list | tuple):
            _refuse(place, data, "a list")
        return tuple(_read(get_args(kind)[0], item, f"{place}[{i}]") for i, item in enumerate(data))
    types, expected = READABLE[kind]
    if not isinstance(data, types) or (isinstance(data, bool) and kind is not bool):
        _refuse(place, data, expected)
    if isinstance(data, int) and abs(data) >= 2**63:
        _refuse(place, data, f"{expected} below 2**63")
    return float(data) if kind is float and isinstance(data, int) else deepcopy(data)


def _read_object(kind: Any, data: object, place: str) -> Any:
    """A JSON object that has the fields of the dataclass `kind`, all of them and no others."""
    if not isinstance(data, Mapping):
        _refuse(place, data, "an object")
    prefix, kinds = f"{place}." if place else "", get_type_hints(kind, globals())
    for key in kinds:
        if key not in data:
            raise DispatcherError(f"{prefix}{key}: missing; expected are {', '.join(kinds)}")
    for key in data:
        if key not in kinds:
            raise DispatcherError(f"{prefix}{reprlib.repr(key)}: unknown; expected are {', '.join(kinds)}")
    return kind(**{key: _read(kinds[key], data[key], prefix + key) for key in kinds})


def _plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as JSON has them."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _check_stages(stages: Sequence[Stage], image: str) -> None:
    """Raise DispatcherError unless chains follow each other and links go forward inside one chain."""
    if not stages:
        _refuse("stages", [], "at least one stage")
    if image in (OUTPUT, CONFIDENCE):
        _refuse("input.name", image, "a name that no other tensor has")
    home = {image: 0, OUTPUT: 0, CONFIDENCE: 0}  # tensor -> the chain that it belongs to
    files: set[str] = set()
    chain = 0
    for i, stage in enumerate(stages):
        place = f"stages[{i}]"
        if stage.file.lower() in files:  # some file systems take a and A for the same
            _refuse(f"{place}.file", stage.file, "a file of its own for every stage")
        files.add(stage.file.lower())
        if stage.chain not in (chain or 1, chain + 1):
            _refuse(f"{place}.chain", stage.chain, f"{' or '.join(map(str, sorted({chain or 1, chain + 1})))}")
        if stage.chain != chain and not stage.image:
            _refuse(f"{place}.image", False, "true, because a chain starts from the image")
        chain = stage.chain
        if not stage.image and not stage.links_in:
            _refuse(f"{place}.links_in", [], "a link, because this stage does not take the image")
        for k, name in enumerate(stage.links_in):
            if home.get(name) != chain or name in stage.links_in[:k]:
                _refuse(f"{place}.links_in[{k}]", name, "a link out of an earlier stage of its chain, named once")
        for k, link in enumerate(stage.links_out):
            if link.name in home:
                _refuse(f"{place}.links_out[{k}].name", link.name, "a name that no other tensor has")
            home[link.name] = chain


def _check_policies(manifest: Manifest) -> None:
    """Raise DispatcherError unless every policy fits the number of stages and the default is one of them."""
    stages, budgets = len(manifest.stages), [policy.budget for policy in manifest.policies]
    for i, policy in enumerate(manifest.policies):
        for name, count in (("thresholds", stages - 1), ("exit_share", stages)):
            values = list(getattr(policy, name))
            if len(values) != count:
                _refuse(f"policies[{i}].{name}", values, f"{count} numbers for {stages} stages")
        if len(policy.confidence_histogram) not in (0, stages):
            got, expected = len(policy.confidence_histogram), f"one list for each of {stages} stages, or none at all"
            _refuse(f"policies[{i}].confidence_histogram", got, expected)
        if policy.budget in budgets[:i]:
            _refuse(f"policies[{i}].budget", policy.budget, "every budget once")
    if manifest.default_budget not in budgets:
        listed = ", ".join(f"{budget:g}" for budget in sorted(budgets)) or "none is there"
        _refuse("default_budget", manifest.default_budget, f"the budget of a policy ({listed})")


def _check_shape(shape: Shape, *, axes: int) -> None:
    if len(shape) < axes or shape[0] is not None or any(n is None or not 0 < n < 2**31 for n in shape[1:]):
        _refuse("shape", list(shape), f"null for the batch, then {axes - 1} or more lengths of at least 1")


def _check_range(place: str, value: float, *, low: float = -math.inf, high: float = math.inf) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        bounds = [f"at least {low:g}"] * math.isfinite(low) + [f"at most {high:g}"] * math.isfinite(high)
        _refuse(place, value, ", ".join(["a finite number", *bounds]))


def _check_histogram(rows: Sequence[Sequence[int]]) -> None:
    for k, counts in enumerate(rows):
        place = f"confidence_histogram[{k}]"
        if len(counts) != BINS or min(counts) < 0:
            _refuse(place, list(counts), f"{BINS} numbers of at least 0")
        if k and sum(counts) > sum(rows[k - 1]):
            _refuse(place, sum(counts), f"at most the {sum(rows[k - 1])} images that reached the stage before")


def _check_budget(budget: object) -> None:
    if not isinstance(budget, Real) or not 0 < float(budget) <= 1:
        _refuse("budget", budget, "a share of the static latency, above 0 and at most 1")


def _refuse(place: str, got: object, expected: str) -> NoReturn:
    raise DispatcherError(f"{place}: got {reprlib.repr(got)}; expected {expected}")


def _sentence(error: Exception) -> str:
    """What an exception says, in one line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())


def _parse(text: str) -> object:
    """JSON without duplicate keys, NaN and infinities. Raises ValueError or RecursionError."""

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
    """The real path of a file that lies in a folder. Raises DispatcherError, also for a link that leads out of it."""
    try:
        root, path = folder.resolve(strict=True), (folder / name).resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise DispatcherError(f"{_sentence(error)}; give a whole folder that s2d-convert wrote") from error
    if not path.is_relative_to(root):
        raise DispatcherError("a link out of the folder is not followed; put the file itself there")
    if not path.is_file():
        raise DispatcherError("not a file; give a whole folder that s2d-convert wrote")
    return path


# --- sessions -------------------------------------------------------------------------------------------------------


def default_options(threads: int) -> Any:
    """onnxruntime's session options as the dispatcher sets them. Raises DispatcherError."""
    if not isinstance(threads, int) or threads < 1:
        _refuse("threads", threads, "a whole number of at least 1")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    if threads > 1:  # or the pool of one stage would spin while the next one works
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _wanted_providers(providers: Sequence[Any] | None) -> dict[str, Any]:
    """Name -> what onnxruntime is told. Raises DispatcherError where onnxruntime would only warn."""
    wanted = ["CPUExecutionProvider"] if providers is None else list(providers)
    named = {str(p[0] if isinstance(p, tuple) else p): p for p in wanted}
    here = ort.get_available_providers()
    if not named or not set(named) <= set(here):
        _refuse("providers", list(named), f"one or more that onnxruntime has here ({', '.join(here)})")
    return named


def _open(path: Path, stage: Stage, manifest: Manifest, *, options: Any, providers: Mapping[str, Any]) -> Any:
    """The session of a stage file that is what the manifest says. Raises DispatcherError."""
    try:
        # onnxruntime gets the bytes, not the path: what was hashed is what runs.
        data = _inside(path.parent, path.name).read_bytes()
        if hashlib.sha256(data).hexdigest() != stage.sha256:
            raise DispatcherError("its sha256 is not the one in the manifest; copy the folder again or convert again")
        session = ort.InferenceSession(data, options, providers=list(providers.values()), enable_fallback=0)
        session.disable_fallback()  # a failing provider is an error, no reason to go on elsewhere; 1.17 needs the call
        if hasattr(session, "_model_bytes"):  # kept for the fallback alone: as much memory again as the weights
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
            _refuse(side, [node.name for node in found], f"{names}, as the manifest says")
        for node in found:
            dtype = manifest.input.dtype if node.name == manifest.input.name else "float32"
            if node.type != ORT_TYPES[dtype] or not _fits(node.shape, shapes[node.name]):
                expected = f"{ORT_TYPES[dtype]} {_shape_text(shapes[node.name])}, as the manifest says"
                raise DispatcherError(f"'{node.name}': got {node.type} {node.shape}; expected {expected}")


def _shapes(manifest: Manifest) -> dict[str, Shape]:
    """The shape of everything that goes into or comes out of a stage, by name."""
    links = {link.name: link.shape for stage in manifest.stages for link in stage.links_out}
    own = {manifest.input.name: manifest.input.shape, OUTPUT: manifest.output.shape, CONFIDENCE: (None,)}
    return {**links, **own}


def _fits(found: Sequence[int | str | None], shape: Shape) -> bool:
    """Whether a session's shape has a free batch and contradicts no length; onnxruntime need not know them all."""
    known = [n if isinstance(n, int) else None for n in found]
    return (
        len(known) == len(shape)
        and known[0] is None
        and all(n in (None, wanted) for n, wanted in zip(known, shape, strict=True))
    )


def _shape_text(shape: Shape) -> str:
    return f"[{', '.join('B' if n is None else str(n) for n in shape)}]"


# --- the dispatcher -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Answer:
    """Answers in the order of the images.

    output: float32 [B, ...], what the static model would give; stage: int64 [B], which stage answered, from 1;
    confidence: float32 [B], how sure that stage was.
    """

    output: Array
    stage: NDArray[np.int64]
    confidence: NDArray[np.float32]


_NOBODY = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class _Step:
    """A stage on a route: what it reads, what is fetched from it, and which tensors are read after it."""

    number: int  # of the stage, from 1
    run: Any  # the session's
    reads: tuple[str, ...]
    fetches: tuple[str, ...]
    read_later: tuple[str, ...]


def _route(manifest: Manifest, sessions: Sequence[Any], *, exits: bool) -> tuple[_Step, ...]:
    """The steps to run, found from the back, so that each knows what is read after it.

    Without exits a stage is there only for what it hands to the last one; all others, such as a whole earlier chain,
    are left out. With exits every stage is there, whatever the thresholds are.
    """
    steps: list[_Step] = []
    needed: set[str] = set()
    for number, stage in reversed(list(enumerate(manifest.stages, start=1))):
        answers = (OUTPUT, CONFIDENCE) if exits or not steps else ()
        fetches = (*answers, *(link.name for link in stage.links_out if link.name in needed))
        if fetches:
            reads = (*((manifest.input.name,) if stage.image else ()), *stage.links_in)
            steps.append(_Step(number, sessions[number - 1].run, reads, fetches, tuple(sorted(needed))))
            needed = needed.difference(fetches).union(reads)
    return tuple(reversed(steps))


@dataclass(frozen=True)
class _Loaded:
    """The sessions, and the two routes over them."""

    sessions: tuple[Any, ...]
    with_exits: tuple[_Step, ...]
    straight: tuple[_Step, ...]


@dataclass(frozen=True)
class _Choice:
    """A policy, and its thresholds as the exit rule wants them."""

    policy: Policy
    limits: tuple[np.float32, ...]


class Dispatcher:
    """Runs an exported folder as one classifier. One dispatcher may serve many threads at once.

    threads: of onnxruntime, per stage. providers: as onnxruntime takes them; the CPU where None. budget: see
    `set_budget`. session_options: onnxruntime's, in place of `default_options(threads)`. Raises DispatcherError when
    the folder is not whole or does not fit together.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        threads: int = 1,
        providers: Sequence[Any] | None = None,
        budget: float | None = None,
        session_options: Any = None,
    ) -> None:
        if session_options is not None and threads != 1:
            raise DispatcherError("threads: session_options says how many; give one of the two")
        options = default_options(threads) if session_options is None else session_options
        named = _wanted_providers(providers)
        self.manifest = manifest = Manifest.load(folder)
        self._input, self._dtype = manifest.input.name, np.dtype(manifest.input.dtype)
        self._lengths = manifest.input.shape[1:]
        self._row_shapes = {name: shape[1:] for name, shape in _shapes(manifest).items()}
        self._choices = {policy: _Choice(policy, _limits(policy.thresholds)) for policy in manifest.policies}
        self.set_budget(budget)
        files = [Path(folder) / stage.file for stage in manifest.stages]
        sessions = tuple(
            _open(file, stage, manifest, options=options, providers=named)
            for file, stage in zip(files, manifest.stages, strict=True)
        )
        with_exits, straight = (_route(manifest, sessions, exits=exits) for exits in (True, False))
        self._loaded: _Loaded | None = _Loaded(sessions, with_exits, straight)

    def __call__(
        self,
        images: Array,
        *,
        exits: bool = True,
        budget: float | None = None,
        thresholds: Sequence[float] | None = None,
    ) -> Answer:
        """The answers for images [B, ...], given exactly as the static model takes them; B may be 0.

        exits=False: the last stage answers every row. budget (as in `set_budget`) or thresholds (S - 1 numbers; above 1
        never fires) hold for this call only. Raises DispatcherError.
        """
        loaded = self._loaded
        if loaded is None:
            raise DispatcherError("the dispatcher is closed; make a new one")
        self._check_images(images)
        if not exits:
            if budget is not None or thresholds is not None:
                raise DispatcherError("exits=False: budget and thresholds have no meaning then; leave them out")
            return self._run(loaded.straight, images, None)
        if thresholds is None:
            choice = self._choice if budget is None else self._choices[self.manifest.policy_for(budget)]
            return self._run(loaded.with_exits, images, choice.limits)
        if budget is not None:
            raise DispatcherError("budget and thresholds exclude each other; give one of the two")
        return self._run(loaded.with_exits, images, self._own_limits(thresholds))

    def _run(self, steps: Sequence[_Step], images: Array, limits: Sequence[np.float32] | None) -> Answer:
        """Run a route; limits: a threshold for every stage but the last, or None where only the last step answers.

        For a single image the time between two stages counts, and there the caches are cold: this loop copies nothing
        and stays off numpy's slower doors (count_nonzero, full).
        """
        rows = len(images)
        if not rows:  # older versions of onnxruntime fail on empty tensors
            return self._blank(0)
        values: dict[str, Array] = {self._input: images}
        merged: Answer | None = None  # made when the first rows leave and others stay
        here = _NOBODY  # from then on: which images the rows are
        for step in steps:
            try:
                found = step.run(step.fetches, {name: values[name] for name in step.reads})
            except ORT_ERRORS as error:
                raise DispatcherError(f"stage {step.number}: {_sentence(error)}") from error
            values.update(zip(step.fetches, found, strict=True))
            if step is steps[-1]:
                break
            if limits is None:
                continue
            leaving = leaves(values[CONFIDENCE], limits[step.number - 1])
            count = leaving.tolist().count(True)
            if count == rows:
                break
            if count:
                self._check_rows(values, (OUTPUT, CONFIDENCE, *step.read_later), rows, step.number)
                if merged is None:
                    merged, here = self._blank(rows), np.arange(rows)
                gone, staying = np.flatnonzero(leaving), np.flatnonzero(~leaving)
                _place(merged, here[gone], step.number, values[OUTPUT][gone], values[CONFIDENCE][gone])
                values = {name: values[name][staying] for name in step.read_later}
                here, rows = here[staying], len(staying)
        self._check_rows(values, (OUTPUT, CONFIDENCE), rows, step.number)
        if merged is None:
            return Answer(values[OUTPUT], np.array([step.number] * rows, np.int64), values[CONFIDENCE])
        _place(merged, here, step.number, values[OUTPUT], values[CONFIDENCE])
        return merged

    def _check_rows(self, values: Mapping[str, Array], names: Iterable[str], rows: int, stage: int) -> None:
        """Raise DispatcherError if a tensor has another shape than the manifest says, which onnxruntime may allow."""
        for name in names:
            if values[name].shape != (rows, *self._row_shapes[name]):
                expected = f"{[rows, *self._row_shapes[name]]}; convert again"
                _refuse(f"stage {stage}: '{name}'", list(values[name].shape), expected)

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

    def _own_limits(self, thresholds: Any) -> tuple[np.float32, ...]:
        count = len(self.manifest.stages) - 1
        values: list[Any] = list(thresholds) if isinstance(thresholds, Iterable) else [None]
        if len(values) != count or not all(isinstance(t, Real) and not math.isnan(t) for t in values):
            _refuse("thresholds", thresholds, f"a list of {count} numbers, one for every stage but the last")
        return _limits(values)

    @property
    def sessions(self) -> tuple[Any, ...]:
        """onnxruntime's session of every stage, in order; empty once the dispatcher is closed."""
        return () if self._loaded is None else self._loaded.sessions

    @property
    def policy(self) -> Policy:
        """The policy of calls that bring no budget and no thresholds of their own."""
        return self._choice.policy

    def set_budget(self, budget: float | None) -> Policy:
        """Use another calibrated policy from now on, and return it; None is the manifest's default.

        Which policy serves a budget between two calibrated ones: `Manifest.policy_for`. Calls that are under way end
        with the policy that they began with.
        """
        wanted = self.manifest.default_budget if budget is None else budget
        self._choice = self._choices[self.manifest.policy_for(wanted)]  # one assignment: no thread sees half of it
        return self._choice.policy

    def close(self) -> None:
        """Let go of the sessions as soon as the calls under way are through; more than once does no harm."""
        self._loaded = None

    def __enter__(self) -> Dispatcher:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _limits(thresholds: Sequence[float]) -> tuple[np.float32, ...]:
    """Thresholds in the confidence's type, so that the rule compares float32 with float32."""
    with np.errstate(over="ignore"):  # beyond float32 is as good as infinite
        return tuple(np.float32(threshold) for threshold in thresholds)


def _place(answer: Answer, rows: NDArray[np.int64], stage: int, output: Array, confidence: Array) -> None:
    """Write the answers of some rows into an answer for all of them."""
    answer.output[rows], answer.stage[rows], answer.confidence[rows] = output, stage, confidence


# --- the command ----------------------------------------------------------------------------------------------------


def describe(manifest: Manifest) -> str:
    """A short text: what goes in and comes out, the stages, the policies."""
    image, output = manifest.input, manifest.output
    lines = [
        f"in:  '{image.name}' {image.dtype} {_shape_text(image.shape)}",
        f"out: {output.kind} float32 {_shape_text(output.shape)}",
        "",
        f"{'stage':20}{'chain':>6}{'MACs':>16}{'parameters':>14}{'latency':>9}",
    ]
    for stage in manifest.stages:
        numbers = f"{stage.chain:6}{stage.macs:16,}{stage.parameters:14,}{stage.latency_ratio:9.3f}"
        lines.append(f"{stage.file:20}{numbers}")
    lines += ["", f"{'budget':20}{'latency':>9}{'accuracy':>10}  share of images per exit"]
    for policy in manifest.policies:
        notes = [" default"] * (policy.budget == manifest.default_budget) + [" not reached"] * (not policy.reached)
        shares = ", ".join(f"{share:.1%}" for share in policy.exit_share)
        budget = f"{policy.budget:g}{','.join(notes)}"
        lines.append(f"{budget:20}{policy.expected_latency:9.3f}{policy.expected_accuracy:10.4f}  {shares}")
    return "\n".join([*lines, "", "budgets and latencies are shares of the static model's latency"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Describe a folder that could be opened; one that could not ends the program with a sentence and code 1."""
    parser = argparse.ArgumentParser(description="Describe a folder that s2d-convert exported, and check its files.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent, help="default: this file's own")
    folder = parser.parse_args(arguments).folder
    try:
        with Dispatcher(folder) as dispatcher:
            sys.stdout.write(f"{describe(dispatcher.manifest)}\n")
    except DispatcherError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
