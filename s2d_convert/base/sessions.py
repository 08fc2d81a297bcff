"""Sessions of onnxruntime: to look at a model once, and to run stages as they will be run."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime as ort
from s2d_runtime import Dispatcher
from s2d_runtime.dispatcher import default_options

from s2d_convert.base.arrays import Array
from s2d_convert.errors import UsageError

ORT_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from \S+ failed:\s*")
IN_MEMORY = 2**24  # bytes of a model that a session is made of without writing a file
MOST_THREADS, MOST_BATCH = 256, 4096
ONE_FILE = 2**31 - 2**24  # bytes; protobuf ends at 2 GiB


def first_line(error: Exception) -> str:
    """What a library's exception says, in one line, without onnxruntime's codes and the paths of our temporary files."""
    lines = ORT_PREFIX.sub("", str(error).strip()).splitlines()
    return lines[0] if lines else type(error).__name__


def quiet_options() -> ort.SessionOptions:
    """Options of a session that is made to look at a model, not to run it often."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    # Neither a copy of every weight in another layout nor the time to make it is worth while.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return options


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, its weights beside it where they are too large for one file."""
    if model.ByteSize() <= ONE_FILE:
        onnx.save(model, str(path))
        return
    onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.weights")
    onnx.load_external_data_for_model(model, str(path.parent))  # saving has taken the weights out of it


@contextmanager
def quiet_session(model: onnx.ModelProto) -> Iterator[ort.InferenceSession]:
    """A session to look at a model with; onnxruntime takes less memory for a large one when it reads a file."""
    with tempfile.TemporaryDirectory() as folder:
        source: str | bytes = str(Path(folder) / "model.onnx")
        if model.ByteSize() > IN_MEMORY:
            save(model, Path(str(source)))
        else:
            source = model.SerializeToString()
        yield ort.InferenceSession(source, quiet_options(), providers=["CPUExecutionProvider"])


def check_provider(provider: str) -> None:
    """Raise UsageError for a provider that onnxruntime does not have here."""
    available = ort.get_available_providers()
    if provider not in available:
        raise UsageError(f"--provider {provider}: onnxruntime here has {', '.join(available)}; choose one of them")


def make_session(model: bytes, *, threads: int = 1, provider: str = "CPUExecutionProvider") -> ort.InferenceSession:
    """Return an onnxruntime session with the dispatcher's options. Raises UsageError for a provider that is not installed."""
    check_provider(provider)
    return ort.InferenceSession(model, default_options(threads), providers=[provider])


@dataclass(frozen=True)
class Running:
    """How models are run and timed: threads of onnxruntime, images per call, execution provider.

    Raises UsageError for numbers out of range; the provider is looked up when something is opened.
    """

    threads: int = 1
    batch: int = 1
    provider: str = "CPUExecutionProvider"

    def __post_init__(self) -> None:
        for name, value, most in (("threads", self.threads, MOST_THREADS), ("batch", self.batch, MOST_BATCH)):
            if not 1 <= value <= most:
                raise UsageError(f"--{name} {value}: 1 to {most} is allowed")

    def session(self, model: bytes) -> ort.InferenceSession:
        """Return a session for a model."""
        return make_session(model, threads=self.threads, provider=self.provider)

    def dispatcher(self, folder: Path) -> Dispatcher:
        """Open an exported folder. Raises DispatcherError, and UsageError for the provider."""
        check_provider(self.provider)
        return Dispatcher(folder, threads=self.threads, providers=[self.provider])


ONE_THREAD = Running()


def run_stages(
    sessions: Sequence[ort.InferenceSession], values: Mapping[str, Array]
) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """Run stages in order on one batch, without exits; yield what each stage read and what it made, by name.

    values: the image, and links of stages that ran before.
    """
    known = dict(values)
    for session in sessions:
        feeds = {node.name: known[node.name] for node in session.get_inputs()}
        names = [node.name for node in session.get_outputs()]
        made = dict(zip(names, session.run(names, feeds), strict=True))
        known |= made
        yield feeds, made
