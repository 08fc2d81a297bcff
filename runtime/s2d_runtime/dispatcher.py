"""Run the stages of a converted model in order and stop, row by row, at the first confident answer.

This one file is the whole runtime: it needs numpy and onnxruntime and nothing else, and it is copied into every exported
folder. ``Dispatcher(folder)(images)`` takes images exactly as the static model takes them.

Letters: B images in a call, S stages. A folder is not trusted: its manifest is checked (types, ranges, names inside the
folder, hashes of the files, links) before onnxruntime opens anything.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnxruntime as ort

FORMAT, VERSION = "s2d-convert", 1
MANIFEST = "manifest.json"
OUTPUT, CONFIDENCE = "output", "confidence"
KINDS = ("logits", "probabilities", "log_probabilities")
MAX_MANIFEST_BYTES = 16 * 2**20
Array = np.ndarray[Any, Any]


class DispatcherError(ValueError):
    """A folder or an input that cannot be run; the message is one sentence that says where and why."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that crosses a stage's border: name and shape, whose first axis (null) is the batch."""

    name: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Stage:
    """One stage file. `chain` counts from 1; links only go forward inside a chain."""

    file: str
    sha256: str
    chain: int
    image: bool
    links_in: tuple[str, ...]
    links_out: tuple[TensorSpec, ...]
    temperature: float
    latency_ratio: float
    macs: int
    parameters: int


@dataclass(frozen=True)
class Policy:
    """Thresholds for one budget and what they gave on the images that they were calibrated on."""

    budget: float
    thresholds: tuple[float, ...]
    expected_latency: float
    expected_accuracy: float
    exit_share: tuple[float, ...]
    reached: bool


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says, checked. `output_kind` is the meaning of the static model's output."""

    input: TensorSpec
    output_shape: tuple[int | None, ...]
    output_kind: str
    stages: tuple[Stage, ...]
    policies: tuple[Policy, ...]
    default_budget: float
    preprocess: Mapping[str, Any] | None
    measured: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @staticmethod
    def load(folder: str | Path) -> Manifest:
        """The manifest of a folder, its stage files compared with their hashes. Raises DispatcherError."""
        root = Path(folder)
        path = root / MANIFEST
        try:
            if path.stat().st_size > MAX_MANIFEST_BYTES:
                raise DispatcherError(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes; this is no manifest")
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise DispatcherError(f"{path}: cannot be read ({error.strerror}); give a folder that s2d-convert wrote") from error
        except UnicodeDecodeError as error:
            raise DispatcherError(f"{path}: is not UTF-8 text; give a folder that s2d-convert wrote") from error
        try:
            manifest = Manifest.from_json(text)
        except DispatcherError as error:
            raise DispatcherError(f"{path}: {error}") from None
        for stage in manifest.stages:
            _stage_bytes(root, stage)
        return manifest

    @staticmethod
    def from_json(text: str) -> Manifest:
        """The manifest in a JSON text. Raises DispatcherError naming the first thing that is wrong."""
        try:
            data = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DispatcherError(f"not valid JSON ({error})") from None
        return _read_manifest(data)

    def to_json(self) -> dict[str, Any]:
        """The JSON-able form, as it stands in manifest.json."""
        plain = asdict(self)
        source = {**plain.pop("input"), "dtype": "float32"}
        output = {"shape": plain.pop("output_shape"), "kind": plain.pop("output_kind")}
        return {"format": FORMAT, "version": VERSION, "input": source, "output": output, **plain}


@dataclass(frozen=True)
class Answer:
    """Answers in the order of the images: `output` [B, ...] as the static model gives it, `stage` int64 [B] (1-based) and
    `confidence` float32 [B] of the stage that answered."""

    output: Array
    stage: Array
    confidence: Array


def leaves(confidence: Array, threshold: float) -> Array:
    """THE exit rule, bool [B]: a row leaves when its confidence reaches the threshold. NaN never does."""
    left: Array = confidence >= threshold
    return left


class Dispatcher:
    """The stages of a folder, ready to run. Calls are thread-safe.

    `threads` is per onnxruntime session; `budget` picks a calibrated policy (default: the one converted for).
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        threads: int = 1,
        providers: Sequence[str] | None = None,
        budget: float | None = None,
        session_options: ort.SessionOptions | None = None,
    ) -> None:
        self.manifest = Manifest.load(folder)
        options = session_options or _session_options(threads)
        chosen = list(providers or ["CPUExecutionProvider"])
        self._runs = tuple(_StageRun(Path(folder), s, self.manifest, options, chosen) for s in self.manifest.stages)
        self._last_chain = next(
            k for k, s in enumerate(self.manifest.stages) if s.chain == self.manifest.stages[-1].chain
        )
        self._shape = self.manifest.input.shape[1:]
        self._policy = self.policy(budget)

    def policy(self, budget: float | None = None) -> Policy:
        """The calibrated policy for a budget; None: the default one.

        Between two calibrated budgets it is the lower one, which keeps the latency that was asked for; below all of them it
        is the lowest. Raises DispatcherError for a budget outside (0, 1].
        """
        wanted = self.manifest.default_budget if budget is None else budget
        if not (isinstance(wanted, (int, float)) and 0 < wanted <= 1):
            raise DispatcherError(f"budget {wanted!r}: a share of the static latency above 0 and at most 1 is allowed")
        policies = sorted(self.manifest.policies, key=lambda p: p.budget)
        below = [p for p in policies if p.budget <= wanted + 1e-9]
        return below[-1] if below else policies[0]

    def set_budget(self, budget: float | None) -> Policy:
        """Use another calibrated policy from now on; returns it."""
        self._policy = self.policy(budget)
        return self._policy

    def __call__(
        self, images: Array, *, exits: bool = True, budget: float | None = None, thresholds: Sequence[float] | None = None
    ) -> Answer:
        """Answer a batch of images [B, ...]; rows that are confident leave, the rest go on.

        With `exits` off every row is answered by the last stage. `thresholds` (S - 1 of them) go before `budget`.
        """
        if images.dtype != np.float32 or images.shape[1:] != self._shape:
            raise DispatcherError(
                f"images: got {images.dtype} of shape {images.shape}; float32 of shape {('B', *self._shape)} is expected"
            )
        if thresholds is None:
            thresholds = (self._policy if budget is None else self.policy(budget)).thresholds
        elif len(thresholds) != len(self._runs) - 1:
            raise DispatcherError(f"thresholds: got {len(thresholds)}, {len(self._runs) - 1} are expected")
        if len(images) == 1 and exits:
            return self._one(images, thresholds)
        return self._many(images, thresholds, exits)

    def _one(self, image: Array, thresholds: Sequence[float]) -> Answer:
        """The short way for a single image: nothing is copied or indexed."""
        values = {self.manifest.input.name: image}
        last = len(self._runs) - 1
        for k, run in enumerate(self._runs):
            output, confidence = run(values)
            if k == last or leaves(confidence, thresholds[k])[0]:
                break
        return Answer(output, np.array([k + 1]), confidence)

    def _many(self, images: Array, thresholds: Sequence[float], exits: bool) -> Answer:
        values = {self.manifest.input.name: images}
        rows = np.arange(len(images))
        stage = np.zeros(len(images), dtype=np.int64)
        output = confidence = np.zeros(0, dtype=np.float32)
        last = len(self._runs) - 1
        for k in range(0 if exits else self._last_chain, last + 1):
            found, certain = self._runs[k](values)
            if len(rows) == len(images):
                output, confidence = found, certain
                stage[:] = k + 1
            else:
                output[rows], confidence[rows], stage[rows] = found, certain, k + 1
            if k == last:
                break
            stay = ~leaves(certain, thresholds[k]) if exits else np.ones(len(rows), dtype=bool)
            if not stay.any():
                break
            if not stay.all():
                if len(rows) == len(images):  # the first rows leave: from here on answers are scattered
                    output, confidence = output.copy(), confidence.copy()
                rows = rows[stay]
                wanted = self._runs[k].read_later
                values = {name: value[stay] for name, value in values.items() if name in wanted}
        return Answer(output, stage, confidence)

    def close(self) -> None:
        """Give the sessions back; the dispatcher cannot be called afterwards."""
        self._runs = ()

    def __enter__(self) -> Dispatcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _StageRun:
    """One stage's session; calling it adds the stage's links to `values` and returns (output, confidence)."""

    def __init__(
        self, folder: Path, stage: Stage, manifest: Manifest, options: ort.SessionOptions, providers: Sequence[str]
    ) -> None:
        try:
            self._session = ort.InferenceSession(_stage_bytes(folder, stage), options, providers=providers)
        except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions share no public base class
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DispatcherError(f"{folder / stage.file}: onnxruntime cannot load it ({first})") from None
        self._inputs = [*([manifest.input.name] if stage.image else []), *stage.links_in]
        self._links = [link.name for link in stage.links_out]
        self._names = [OUTPUT, CONFIDENCE, *self._links]
        place = manifest.stages.index(stage)
        later = manifest.stages[place + 1 :]
        self.read_later = {name for s in later for name in s.links_in} | {manifest.input.name}
        _check_session(folder / stage.file, self._session, self._inputs, stage, manifest)

    def __call__(self, values: dict[str, Array]) -> tuple[Array, Array]:
        output, confidence, *links = self._session.run(self._names, {name: values[name] for name in self._inputs})
        if links:
            values.update(zip(self._links, links, strict=True))
        return output, confidence


def _session_options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if threads > 1:  # the pools of alternating sessions would spin against each other
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _stage_bytes(folder: Path, stage: Stage) -> bytes:
    """The bytes of a stage file that lies in the folder itself and has the hash that the manifest says."""
    path = folder / stage.file
    try:
        if path.is_symlink() and path.resolve().parent != folder.resolve():
            raise DispatcherError(f"{path}: points out of the folder; copy the file there")
        data = path.read_bytes()
    except OSError as error:
        raise DispatcherError(f"{path}: cannot be read ({error.strerror}); the export is not whole, convert again") from error
    if hashlib.sha256(data).hexdigest() != stage.sha256:
        raise DispatcherError(f"{path}: its sha256 is not the one in the manifest; the file was changed, convert again")
    return data


def _check_session(path: Path, session: ort.InferenceSession, inputs: Sequence[str], stage: Stage, manifest: Manifest) -> None:
    """Compare a session's inputs and outputs with the manifest."""
    links = {link.name: link.shape for s in manifest.stages for link in s.links_out}
    expected_in = {n: manifest.input.shape if n == manifest.input.name and stage.image else links[n] for n in inputs}
    expected_out = {OUTPUT: manifest.output_shape, CONFIDENCE: (None,), **{link.name: link.shape for link in stage.links_out}}
    for what, found, expected in (
        ("inputs", session.get_inputs(), expected_in),
        ("outputs", session.get_outputs(), expected_out),
    ):
        names = sorted(t.name for t in found)
        if names != sorted(expected):
            raise DispatcherError(f"{path}: has {what} {names}, the manifest says {sorted(expected)}")
        for tensor in found:
            want = expected[tensor.name]
            shape = tensor.shape
            fits = len(shape) == len(want) and all(isinstance(g, str) or g is None or w is None or g == w for g, w in zip(shape, want, strict=True))
            if tensor.type != "tensor(float)" or not fits:
                raise DispatcherError(f"{path}: '{tensor.name}' is {tensor.type} {shape}, the manifest says float32 {list(want)}")


# --- reading the manifest -----------------------------------------------------------------------------------


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise DispatcherError(f"the key '{key}' stands twice in one object")
        found[key] = value
    return found


def _no_constant(text: str) -> float:
    raise DispatcherError(f"{text} is not allowed as a number")


def _field(data: Any, key: str, kind: type | tuple[type, ...], place: str) -> Any:
    if not isinstance(data, dict):
        raise DispatcherError(f"{place}: an object is expected, got {type(data).__name__}")
    if key not in data:
        raise DispatcherError(f"{place}: '{key}' is missing")
    value = data[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise DispatcherError(f"{place}: '{key}' has the wrong type, {type(value).__name__}")
    return value


def _number(data: Any, key: str, place: str, *, low: float = 0.0, high: float = math.inf) -> float:
    value = _field(data, key, (int, float), place)
    if not (math.isfinite(value) and low <= value <= high):
        raise DispatcherError(f"{place}: '{key}' is {value}, allowed is {low:g} to {high:g}")
    return float(value)


def _whole(data: Any, key: str, place: str, *, low: int = 0) -> int:
    value = _field(data, key, int, place)
    if not low <= value < 2**63:
        raise DispatcherError(f"{place}: '{key}' is {value}, allowed is {low} and more")
    return int(value)


def _shape(data: Any, place: str) -> tuple[int | None, ...]:
    shape = _field(data, "shape", list, place)
    sound = shape and shape[0] is None and all(isinstance(n, int) and not isinstance(n, bool) and 0 < n < 2**31 for n in shape[1:])
    if not sound:
        raise DispatcherError(f"{place}: 'shape' is {shape}, expected [null, ...] with positive whole numbers")
    return tuple(shape)


def _read_manifest(data: Any) -> Manifest:
    if _field(data, "format", str, "manifest") != FORMAT:
        raise DispatcherError(f"'format' is {data['format']!r}, expected {FORMAT!r}")
    if _field(data, "version", int, "manifest") != VERSION:
        raise DispatcherError(f"'version' is {data['version']}, this runtime reads {VERSION}; update s2d-runtime")
    source, output = _field(data, "input", dict, "manifest"), _field(data, "output", dict, "manifest")
    if _field(source, "dtype", str, "input") != "float32":
        raise DispatcherError(f"input: 'dtype' is {source['dtype']!r}, expected 'float32'")
    kind = _field(output, "kind", str, "output")
    if kind not in KINDS:
        raise DispatcherError(f"output: 'kind' is {kind!r}, expected one of {', '.join(KINDS)}")
    stages = tuple(_read_stage(s, f"stage {k}") for k, s in enumerate(_field(data, "stages", list, "manifest"), start=1))
    _check_links(stages)
    rows = _field(data, "policies", list, "manifest")
    policies = tuple(_read_policy(p, len(stages), f"policy {k}") for k, p in enumerate(rows, start=1))
    default = _number(data, "default_budget", "manifest")
    if default not in [p.budget for p in policies]:
        raise DispatcherError(f"'default_budget' is {default:g}, but no policy has this budget")
    preprocess = data.get("preprocess")
    if not (preprocess is None or isinstance(preprocess, dict)):
        raise DispatcherError("'preprocess' must be an object or null")
    return Manifest(
        input=TensorSpec(_field(source, "name", str, "input"), _shape(source, "input")),
        output_shape=_shape(output, "output"),
        output_kind=kind,
        stages=stages,
        policies=policies,
        default_budget=default,
        preprocess=preprocess,
        measured=_field(data, "measured", dict, "manifest"),
        provenance=_field(data, "provenance", dict, "manifest"),
    )


def _read_stage(data: Any, place: str) -> Stage:
    file = _field(data, "file", str, place)
    if not file or file != Path(file).name or "\\" in file or "\0" in file or file in (".", ".."):
        raise DispatcherError(f"{place}: 'file' is {file!r}, expected the plain name of a file in the folder")
    links_in = _field(data, "links_in", list, place)
    if not all(isinstance(name, str) for name in links_in) or len(set(links_in)) != len(links_in):
        raise DispatcherError(f"{place}: 'links_in' must be a list of different names")
    links_out = _field(data, "links_out", list, place)
    specs = tuple(TensorSpec(_field(x, "name", str, f"{place}: link"), _shape(x, f"{place}: link")) for x in links_out)
    if len({s.name for s in specs}) != len(specs) or {OUTPUT, CONFIDENCE} & {s.name for s in specs}:
        raise DispatcherError(f"{place}: 'links_out' must have different names, and not '{OUTPUT}' or '{CONFIDENCE}'")
    return Stage(
        file=file,
        sha256=_field(data, "sha256", str, place),
        chain=_whole(data, "chain", place, low=1),
        image=_field(data, "image", bool, place),
        links_in=tuple(links_in),
        links_out=specs,
        temperature=_number(data, "temperature", place, low=1e-6),
        latency_ratio=_number(data, "latency_ratio", place),
        macs=_whole(data, "macs", place),
        parameters=_whole(data, "parameters", place),
    )


def _check_links(stages: Sequence[Stage]) -> None:
    """Chains come in order, each starts from the image, and links come from earlier stages of the same chain."""
    if not stages:
        raise DispatcherError("'stages' is empty; at least one is expected")
    made: dict[str, int] = {}
    for k, stage in enumerate(stages, start=1):
        before = stages[k - 2].chain if k > 1 else 0
        if stage.chain not in (before, before + 1):
            raise DispatcherError(f"stage {k}: chain {stage.chain} does not follow chain {before}")
        if stage.chain != before and not stage.image:
            raise DispatcherError(f"stage {k}: the first stage of a chain must take the image")
        for name in stage.links_in:
            if made.get(name) != stage.chain:
                raise DispatcherError(f"stage {k}: link '{name}' is not made by an earlier stage of chain {stage.chain}")
        for link in stage.links_out:
            if link.name in made:
                raise DispatcherError(f"stage {k}: link '{link.name}' is made twice")
            made[link.name] = stage.chain


def _read_policy(data: Any, stages: int, place: str) -> Policy:
    thresholds, share = _field(data, "thresholds", list, place), _field(data, "exit_share", list, place)
    for name, values, count in (("thresholds", thresholds, stages - 1), ("exit_share", share, stages)):
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values)
        if len(values) != count or not numbers:
            raise DispatcherError(f"{place}: '{name}' must be {count} finite numbers")
    budget = _number(data, "budget", place, high=1.0)
    if budget == 0:
        raise DispatcherError(f"{place}: 'budget' is 0, allowed is above 0 and at most 1")
    return Policy(
        budget=budget,
        thresholds=tuple(map(float, thresholds)),
        expected_latency=_number(data, "expected_latency", place),
        expected_accuracy=_number(data, "expected_accuracy", place, high=1.0),
        exit_share=tuple(map(float, share)),
        reached=_field(data, "reached", bool, place),
    )


def describe(folder: str | Path) -> str:
    """A few lines about a folder: its stages and its calibrated budgets."""
    manifest = Manifest.load(folder)
    lines = [f"input {manifest.input.name} {list(manifest.input.shape)}, output {manifest.output_kind} {list(manifest.output_shape)}"]
    lines += [f"{s.file}: chain {s.chain}, latency {s.latency_ratio:.3f} of static, {s.parameters} parameters" for s in manifest.stages]
    lines += [f"budget {p.budget:g}: expected latency {p.expected_latency:.3f}, thresholds {list(p.thresholds)}" for p in manifest.policies]
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        print(describe(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent))  # noqa: T201
    except DispatcherError as problem:
        sys.exit(f"error: {problem}")
