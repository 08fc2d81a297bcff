"""A Triton model repository from an exported folder: a front model with one model per stage, or the single file.

::

    REPO/
      NAME/         the model that clients call: images in; output, stage and confidence out
      NAME_stage1/  the stage files as they are, in Triton's onnxruntime backend
      NAME_stage2/

Every model uses dynamic batching, so that rows of different requests that reach stage 2 are batched again. A confidence is
[B] in the stage file but [B, 1] for Triton, where a tensor has at least one axis besides the batch.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_encoding
from s2d_runtime import Dispatcher, Manifest, dispatcher
from s2d_runtime.serving import __file__ as serving_package

from s2d_convert.base.files import whole_folder
from s2d_convert.errors import UsageError
from s2d_convert.exporting.folder import MANIFEST
from s2d_convert.exporting.single import write_single

MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
FRONT_MODEL = Path(serving_package).parent / "triton_model.py"
TYPES = {
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "uint8": "TYPE_UINT8",
    "int64": "TYPE_INT64",
}


@dataclass(frozen=True)
class TritonOptions:
    """How the models are served; see the help texts of `s2d export`.

    `queue`: the largest number of requests that wait at the front model; further ones are rejected. `delay_us`: how long a
    batch waits for more rows. `threads`: onnxruntime's threads per stage.
    """

    name: str
    max_batch: int = 32
    delay_us: int = 100
    queue: int = 1024
    threads: int = 1

    def check(self) -> None:
        """Raise UsageError if a value is out of range."""
        if not MODEL_NAME.fullmatch(self.name):
            raise UsageError(f"--name {self.name}: a name of letters, digits, '.', '_' and '-' is allowed")
        bounds = {"max_batch": (1, 65536), "delay_us": (0, 10_000_000), "queue": (1, 1_000_000), "threads": (1, 1024)}
        for field, (low, high) in bounds.items():
            if not low <= getattr(self, field) <= high:
                option = field.replace("_", "-")
                raise UsageError(f"--{option} {getattr(self, field)}: {low} to {high} is allowed")


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model. `lengths`: its shape without the batch."""

    name: str
    dtype: str
    lengths: tuple[int | None, ...]

    def text(self, side: str) -> str:
        """Return the entry in config.pbtxt. side: input or output."""
        dims = ", ".join(map(str, self.lengths or (1,)))
        scalar = "" if self.lengths else " reshape { shape: [ ] }"
        return f"{side} {{ name: {quoted(self.name)} data_type: {TYPES[self.dtype]} dims: [ {dims} ]{scalar} }}"


def write_repository(folder: Path, repository: Path, options: TritonOptions) -> tuple[str, ...]:
    """Write the repository of an exported folder, completely or not at all, and return the names of its models.

    Raises DispatcherError for a faulty folder, UsageError for a faulty option, and OutputError.
    """
    options.check()
    with Dispatcher(folder) as runner:
        manifest = runner.manifest
    with whole_folder(repository, option="--triton") as partial:
        front = _new_model(partial, options.name, front_config(manifest, options))
        shutil.copyfile(FRONT_MODEL, front / "model.py")
        shutil.copyfile(dispatcher.__file__, front / "dispatcher.py")
        shutil.copyfile(folder / MANIFEST, front / MANIFEST)
        names = [f"{options.name}_stage{number}" for number in range(1, len(manifest.stages) + 1)]
        for number, (name, stage) in enumerate(zip(names, manifest.stages, strict=True), start=1):
            model = _new_model(partial, name, stage_config(manifest, number, options))
            shutil.copyfile(folder / stage.file, model / "model.onnx")
    return (options.name, *names)


def write_single_repository(
    folder: Path, repository: Path, options: TritonOptions, *, budget: float | None = None
) -> tuple[str, ...]:
    """Write a repository with the single file as its one model, completely or not at all, and return the model's name.

    The thresholds of the budget (None: the manifest's default) are fixed in the file, because all requests in one of
    Triton's batches would have to agree on them. Raises the errors of `write_repository` and `write_single`.
    """
    options.check()
    with Dispatcher(folder) as runner:
        manifest = runner.manifest
    with whole_folder(repository, option="--triton-single") as partial:
        version = _new_model(partial, options.name, single_config(manifest, options))
        write_single(folder, version / "model.onnx", bake=manifest.default_budget if budget is None else budget)
    return (options.name,)


def _new_model(repository: Path, name: str, config: str) -> Path:
    """Make the folder of a new model with its configuration, and return the folder of its version 1."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(config, encoding="utf-8")
    return version


def front_config(manifest: Manifest, options: TritonOptions) -> str:
    """Return config.pbtxt of the model that clients call."""
    image = Tensor(manifest.input.name, manifest.input.dtype, manifest.input.shape[1:])
    answers = (
        Tensor("output", "float32", manifest.output.shape[1:]),
        Tensor("stage", "int64", (1,)),
        Tensor("confidence", "float32", (1,)),
    )
    return _config(
        [
            "# Calls the stages. A request may bring the parameter `budget`; below stands the one of those that do not.",
            f"name: {quoted(options.name)}",
            'backend: "python"',
            f"max_batch_size: {options.max_batch}",
            image.text("input"),
            *(answer.text("output") for answer in answers),
            _batching(options, queue=True),
            "instance_group { kind: KIND_CPU count: 2 }",
            _parameter("budget", f"{manifest.default_budget!r}"),
        ]
    )


def single_config(manifest: Manifest, options: TritonOptions) -> str:
    """Return config.pbtxt of the single file."""
    outputs = (
        Tensor("output", "float32", manifest.output.shape[1:]),
        Tensor("stage", "int64", ()),
        Tensor("confidence", "float32", ()),
    )
    image = Tensor(manifest.input.name, manifest.input.dtype, manifest.input.shape[1:])
    return _onnx_config(options.name, [image], outputs, options, queue=True)


def stage_config(manifest: Manifest, number: int, options: TritonOptions) -> str:
    """Return config.pbtxt of a stage; `number` counts from 1."""
    stage = manifest.stages[number - 1]
    links = {link.name: link.shape[1:] for one in manifest.stages for link in one.links_out}
    image = Tensor(manifest.input.name, manifest.input.dtype, manifest.input.shape[1:])
    inputs = [*([image] if stage.image else []), *(Tensor(name, "float32", links[name]) for name in stage.links_in)]
    outputs = (
        Tensor("output", "float32", manifest.output.shape[1:]),
        Tensor("confidence", "float32", ()),
        *(Tensor(link.name, "float32", link.shape[1:]) for link in stage.links_out),
    )
    return _onnx_config(f"{options.name}_stage{number}", inputs, outputs, options)


def _onnx_config(
    name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], options: TritonOptions, *, queue: bool = False
) -> str:
    """Return config.pbtxt of a model in Triton's onnxruntime backend. queue: limit its queue, because clients call it."""
    return _config(
        [
            f"name: {quoted(name)}",
            'backend: "onnxruntime"',
            'platform: "onnxruntime_onnx"',
            f"max_batch_size: {options.max_batch}",
            *(tensor.text("input") for tensor in inputs),
            *(tensor.text("output") for tensor in outputs),
            _batching(options, queue=queue),
            _parameter("intra_op_thread_count", f"{options.threads}"),
        ]
    )


def _batching(options: TritonOptions, *, queue: bool) -> str:
    limit = f" default_queue_policy {{ max_queue_size: {options.queue} allow_timeout_override: true }}" if queue else ""
    return f"dynamic_batching {{ max_queue_delay_microseconds: {options.delay_us}{limit} }}"


def _config(lines: Sequence[str]) -> str:
    return "\n".join([*lines, ""])


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {quoted(key)} value {{ string_value: {quoted(value)} }} }}"


def quoted(text: str) -> str:
    """Return a text as a quoted string in protobuf's text format."""
    return f'"{text_encoding.CEscape(text, as_utf8=True)}"'
