"""onnxruntime sessions: to examine a model once, and to run stages as the dispatcher will run them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import onnx
import onnxruntime as ort
from s2d_runtime import Dispatcher
from s2d_runtime.dispatcher import default_options

from s2d_convert.base.arrays import Array
from s2d_convert.base.files import naming
from s2d_convert.errors import UsageError

ORT_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from \S+ failed:\s*")
IN_MEMORY = 2**24  # bytes up to which a session is made from memory, without writing a file
MOST_THREADS, MOST_BATCH = 256, 4096
# The options of execution providers that set the number of their own threads.
THREADS_OF: Mapping[str, str] = MappingProxyType(
    {"OpenVINOExecutionProvider": "num_of_threads", "XnnpackExecutionProvider": "intra_op_num_threads"}
)
ONE_FILE = 2**31 - 2**24  # bytes; a protobuf message is limited to 2 GiB


def first_line(error: Exception) -> str:
    """Return the first line of a library's error message, without onnxruntime's codes and the paths of temporary files."""
    lines = ORT_PREFIX.sub("", str(error).strip()).splitlines()
    return lines[0] if lines else type(error).__name__


def quiet_options() -> ort.SessionOptions:
    """Return options for a session that examines a model and runs only a few times."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    # Copying every weight into another layout costs memory and time that a few runs do not win back.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return options


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model to `path`. Where it is too large for one file, its weights go into a second file beside it."""
    small = model.ByteSize() <= ONE_FILE
    with naming(path):
        onnx.save(model, str(path), save_as_external_data=not small, location=None if small else f"{path.name}.weights")
    if small:
        return
    onnx.load_external_data_for_model(model, str(path.parent))  # saving moved the weights out of `model`


@contextmanager
def quiet_session(model: onnx.ModelProto) -> Iterator[ort.InferenceSession]:
    """Yield a session that examines a model. A large model goes through a file, which takes less of onnxruntime's memory."""
    with tempfile.TemporaryDirectory() as folder:
        source: str | bytes = str(Path(folder) / "model.onnx")
        if model.ByteSize() > IN_MEMORY:
            save(model, Path(str(source)))
        else:
            source = model.SerializeToString()
        yield ort.InferenceSession(source, quiet_options(), providers=["CPUExecutionProvider"])


def check_provider(provider: str) -> None:
    """Raise UsageError if the installed onnxruntime lacks an execution provider."""
    available = ort.get_available_providers()
    if provider not in available:
        raise UsageError(f"--provider {provider}: onnxruntime here has {', '.join(available)}; choose one of them")


def make_session(model: bytes, *, threads: int = 1, provider: str = "CPUExecutionProvider") -> ort.InferenceSession:
    """Return an onnxruntime session with the dispatcher's options. Raises UsageError for a provider that is not installed."""
    check_provider(provider)
    return ort.InferenceSession(model, default_options(threads), providers=with_threads(provider, threads))


def with_threads(provider: str, threads: int) -> list[str | tuple[str, dict[str, str]]]:
    """Return what onnxruntime is told of a provider: some have threads of their own, which the options of a session do not
    limit."""
    option = THREADS_OF.get(provider)
    return [provider if option is None else (provider, {option: str(threads)})]


@dataclass(frozen=True)
class Running:
    """How models are run and timed: onnxruntime threads, images per call, execution provider.

    Raises UsageError for numbers out of range. The provider is checked when a session or folder is opened.
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
        return Dispatcher(folder, threads=self.threads, providers=with_threads(self.provider, self.threads))


ONE_THREAD = Running()


@dataclass(frozen=True, kw_only=True)
class RunningOptions:
    """The options of a command that measures latency. Raises UsageError for numbers out of range."""

    threads: int = 1
    batch: int = 1
    provider: str = "CPUExecutionProvider"

    def __post_init__(self) -> None:
        _ = self.running

    @property
    def running(self) -> Running:
        """How stages are run when their latency is measured. Raises UsageError."""
        return Running(self.threads, self.batch, self.provider)


def run_stages(
    sessions: Sequence[ort.InferenceSession], values: Mapping[str, Array]
) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """Run stages in order on one batch, without exits. Yield each stage's inputs and outputs by name.

    values: the image, and the links of stages that ran before.
    """
    known = dict(values)
    for session in sessions:
        feeds = {node.name: known[node.name] for node in session.get_inputs()}
        names = [node.name for node in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, feeds), strict=True))
        known |= outputs
        yield feeds, outputs
