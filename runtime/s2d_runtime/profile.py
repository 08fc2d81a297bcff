"""Measure the latencies of a kit's stage files on this device, relative to the static model, and write a board file.

    python -m s2d_runtime.profile KIT --save board.json     where s2d-runtime is installed
    python KIT/s2d_profile.py --save board.json             anywhere: every kit has a copy of this file

`s2d profile MODEL --kit KIT` makes the kit. Like the dispatcher, this is one file that needs numpy and onnxruntime only.

Files are timed in small groups, in turn with the static model, so that a change of the machine's speed affects all of them.
The measure is a fast call (the FAST-th percentile), because other programs can only make calls slower. Every file is timed
in several passes, each time in another order and group, and gets the median of its ratios.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import reprlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

try:
    import numpy as np
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as ort_state
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    sys.exit(f"{missing.name} is not installed for this Python; pip install numpy onnxruntime")

KIT_FORMAT, KIT_VERSION, KIT_FILE = "s2d-kit", 1, "kit.json"
BOARD_FORMAT, BOARD_VERSION = "s2d-board", 1
LAYOUTS = (1, 8, 16)  # channels per block of onnxruntime's blocked layout; 1 stands for none
GROUP, PASSES, FAST = 6, 5, 10
MIN_ROUNDS, MAX_ROUNDS, WARM_UP = 10, 400, 2
DTYPES = {"tensor(uint8)": np.uint8, "tensor(double)": np.float64, "tensor(float16)": np.float16}
CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}
# onnxruntime's own exceptions have no common base but Exception; those of C++ arrive as RuntimeError.
ORT_ERRORS: tuple[type[Exception], ...] = (
    *(e for e in vars(ort_state).values() if isinstance(e, type) and issubclass(e, Exception)),
    RuntimeError,
    KeyError,
    ValueError,
    OSError,
)
Array = np.ndarray[Any, Any]
Call = Callable[[], object]


class ProfileError(Exception):
    """The kit cannot be read or measured, or the board file cannot be written. The message is one sentence."""


@dataclass(frozen=True)
class Settings:
    """How to measure.

    `seconds` limits the time of one group in one pass, apart from the first MIN_ROUNDS rounds. `clock` is `wall`, or `cpu` for
    the calling thread's CPU time, which other programs disturb less; this works for one thread only.
    """

    threads: int = 1
    batch: int = 1
    provider: str = "CPUExecutionProvider"
    seconds: float = 0.15
    passes: int = PASSES
    clock: str = "wall"

    def __post_init__(self) -> None:
        for name in ("threads", "batch", "passes"):
            if getattr(self, name) < 1:
                raise ProfileError(f"--{name} {getattr(self, name)}: at least 1 is allowed")
        if not 0 < self.seconds <= 3600:
            raise ProfileError(f"--seconds {self.seconds:g}: above 0 and at most 3600 is allowed")
        if self.clock not in CLOCKS:
            raise ProfileError(f"--clock {self.clock}: expected one of {', '.join(CLOCKS)}")
        if self.clock == "cpu" and self.threads > 1:
            raise ProfileError("--clock cpu: sees one thread only; use --clock wall with --threads above 1")
        if self.provider not in ort.get_available_providers():
            have = ", ".join(ort.get_available_providers())
            raise ProfileError(f"--provider {self.provider}: onnxruntime here has {have}; choose one of them")


@dataclass(frozen=True)
class Timings:
    """The timings of models: fast calls relative to the static model's, float64 [F]; their spread, [F]; and the static
    model's milliseconds. Half of the passes lie within the spread, which is a share of the ratio."""

    ratios: Array
    spread: Array
    static_ms: float


# --- measuring --------------------------------------------------------------------------------------------


def measure(
    static: bytes, models: Sequence[bytes], settings: Settings, *, progress: Callable[[int, int], None] | None = None
) -> Timings:
    """Time models, relative to the static model, on made-up input."""
    reference = _call(static, settings)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(models)) for _ in range(settings.passes)]
    groups = [order[start : start + GROUP] for order in orders for start in range(0, len(order), GROUP)]
    found: list[list[float]] = [[] for _ in models]
    static_s = []
    for done, group in enumerate(groups, start=1):
        calls = [reference, *(_call(models[i], settings) for i in group)]
        fast = fast_calls(calls, seconds=settings.seconds, clock=CLOCKS[settings.clock])
        static_s.append(fast[0])
        for index, taken in zip(group, fast[1:], strict=True):
            found[index].append(float(taken / fast[0]))
        if progress is not None:
            progress(done, len(groups))
    ratios = np.array([np.median(f) for f in found])
    quartiles = np.array([np.percentile(f, (25, 75)) for f in found])
    spread = (quartiles[:, 1] - quartiles[:, 0]) / ratios
    return Timings(ratios, spread, float(1e3 * np.median(static_s)))


def fast_calls(calls: Sequence[Call], *, seconds: float, clock: Callable[[], float]) -> Array:
    """Return the seconds of a fast call of each, float64 [calls]. Every round times each call once, in turn."""
    for call in calls:
        for _ in range(WARM_UP):
            call()
    rows: list[list[float]] = []
    started = clock()
    while len(rows) < MIN_ROUNDS or (clock() - started < seconds and len(rows) < MAX_ROUNDS):
        row = []
        for call in calls:
            before = clock()
            call()
            row.append(clock() - before)
        rows.append(row)
    return np.percentile(np.array(rows), FAST, axis=0)


def _call(model: bytes, settings: Settings) -> Call:
    """Return a function that runs a model once on made-up input."""
    session = ort.InferenceSession(model, _options(settings.threads), providers=[settings.provider])
    rng = np.random.default_rng(0)
    feed = {
        i.name: np.abs(rng.normal(size=(settings.batch, *i.shape[1:]))).astype(DTYPES.get(i.type, np.float32))
        for i in session.get_inputs()
    }
    return partial(session.run, None, feed)


def _options(threads: int) -> ort.SessionOptions:
    """Return the dispatcher's session options."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if threads > 1:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def layout_block(probe: bytes, provider: str) -> int:
    """Return the channels per block of onnxruntime's layout on this machine.

    probe: a small model; the layout shows after onnxruntime has optimised it.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = _options(1)
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(probe, options, providers=[provider])
        if b"nchwc" not in Path(options.optimized_model_filepath).read_bytes():
            return 1
    wide = platform.machine().lower() in ("aarch64", "arm64") or " avx512f" in _cpuinfo()
    return 16 if wide else 8


def machine() -> str:
    """Return a description of this machine for tables."""
    keys: dict[str, str] = {}
    for line in _cpuinfo().splitlines():
        key, _, value = line.partition(":")
        keys.setdefault(key.strip(), value.strip())
    name = keys.get("Model") or keys.get("model name") or platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# --- files ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """The work in a kit's files by layout: kinds of work [Q], and the amount of each in every file [F, Q]."""

    keys: Sequence[str]
    amounts: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Kit:
    """A kit's kit.json: the static model's name and hash, the kit's files, and their work for every layout of LAYOUTS."""

    model: Mapping[str, str]
    static: str
    probe: str
    files: Sequence[str]
    work: Mapping[int, Work]


def read_kit(folder: Path) -> Kit:
    """Read a kit's kit.json. Raises ProfileError unless the kit is complete."""
    path = folder / KIT_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ProfileError(
            f"{folder}: not a kit, it has no {KIT_FILE}; make one with s2d profile MODEL --kit"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ProfileError(f"{path}: cannot be read ({error}); copy the kit again") from error
    if not isinstance(data, dict) or data.get("format") != KIT_FORMAT or data.get("version") != KIT_VERSION:
        raise ProfileError(f"{path}: expected the format '{KIT_FORMAT}', version {KIT_VERSION}; make the kit anew")
    try:
        kit = _kit(data)
    except ValueError as error:
        raise ProfileError(f"{path}: {error}; copy the kit again") from error
    names = (kit.static, kit.probe, *kit.files)
    missing = [n for n in names if Path(n).name != n or not (folder / n).is_file()]
    if missing:
        raise ProfileError(
            f"{folder}: {len(missing)} files of the kit are missing, such as {missing[0]}; copy it again"
        )
    return kit


def _kit(data: Mapping[str, Any]) -> Kit:
    """Return the kit in parsed JSON. Raises ValueError that names the place of a faulty value."""
    files = _texts(data, "files")
    if not files:
        raise ValueError("files: got none; expected at least one")
    work = {}
    for block in LAYOUTS:
        place = f"work.{block}"
        keys, amounts = _texts(data, f"{place}.keys"), _list(data, f"{place}.amounts")
        if len(amounts) != len(files) or not all(isinstance(row, list) and len(row) == len(keys) for row in amounts):
            raise ValueError(f"{place}.amounts: expected {len(files)} lists of {len(keys)} numbers, one list per file")
        if not all(type(amount) in (int, float) for row in amounts for amount in row):
            raise ValueError(f"{place}.amounts: expected numbers only")
        work[block] = Work(keys, amounts)
    model = {name: _text(data, f"model.{name}") for name in ("name", "sha256")}
    return Kit(model, _text(data, "static"), _text(data, "probe"), files, work)


def _value(data: object, place: str) -> Any:
    """Return the value at a place such as `model.name` of parsed JSON, None where there is none."""
    for key in place.split("."):
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _text(data: object, place: str) -> str:
    """Return a text. This file is copied into kits, so it cannot use the dispatcher's reader of JSON."""
    value = _value(data, place)
    if not isinstance(value, str):
        raise ValueError(f"{place}: got {reprlib.repr(value)}; expected a text")
    return value


def _list(data: object, place: str) -> list[Any]:
    value = _value(data, place)
    if not isinstance(value, list):
        raise ValueError(f"{place}: got {reprlib.repr(value)}; expected a list")
    return value


def _texts(data: object, place: str) -> list[str]:
    values = _list(data, place)
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"{place}: got {reprlib.repr(values)}; expected texts only")
    return values


def profile(
    folder: Path,
    settings: Settings,
    *,
    name: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure all files of a kit on this machine, and return the content of a board file. Raises ProfileError."""
    kit = read_kit(folder)
    try:
        block = layout_block((folder / kit.probe).read_bytes(), settings.provider)
        models = [(folder / file).read_bytes() for file in kit.files]
        found = measure((folder / kit.static).read_bytes(), models, settings, progress=progress)
    except ORT_ERRORS as error:
        raise ProfileError(f"{folder}: onnxruntime {ort.__version__} cannot run the kit ({error})") from error
    work = kit.work[block]
    rows = zip(found.ratios.tolist(), found.spread.tolist(), work.amounts, strict=True)
    return {
        "format": BOARD_FORMAT,
        "version": BOARD_VERSION,
        "model": kit.model,
        "machine": name or machine(),
        "onnxruntime": ort.__version__,
        "provider": settings.provider,
        "threads": settings.threads,
        "batch": settings.batch,
        "clock": settings.clock,
        "layout_block": block,
        "static_ms": round(found.static_ms, 5),
        "keys": work.keys,
        "files": [{"ratio": round(r, 6), "spread": round(s, 4), "amounts": a} for r, s, a in rows],
    }


def write_board(path: Path, board: Mapping[str, Any]) -> None:
    """Write the board file completely or not at all. Raises ProfileError."""
    partial_path = path.with_name(path.name + ".partial")
    head = json.dumps({k: v for k, v in board.items() if k != "files"}, indent=1, allow_nan=False)
    rows = ",\n".join("  " + json.dumps(row, allow_nan=False) for row in board["files"])
    try:
        partial_path.write_text(f'{head[:-2]},\n "files": [\n{rows}\n ]\n}}\n', encoding="utf-8")
        partial_path.replace(path)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be written ({error.strerror}); choose another --save") from error


def summary(board: Mapping[str, Any]) -> str:
    """Return a summary of the measurements in one line."""
    spread = np.median([f["spread"] for f in board["files"]])
    return (
        f"{len(board['files'])} stages on {board['machine']}: static {board['static_ms']:.3f} ms, "
        f"half of the passes within {100 * spread:.1f} % (median)"
    )


# --- command ----------------------------------------------------------------------------------------------


def _arguments(here: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure a kit on this device and write a board file.")
    is_copy = (here / KIT_FILE).is_file()
    parser.add_argument("kit", type=Path, nargs="?" if is_copy else None, default=here, help="the kit's folder")
    parser.add_argument("--save", type=Path, default=Path("board.json"), help="file to write (%(default)s)")
    parser.add_argument("--name", help="what to call this machine in tables (default: its processor)")
    parser.add_argument("--threads", type=int, default=Settings.threads, help="threads of onnxruntime (%(default)s)")
    parser.add_argument("--batch", type=int, default=Settings.batch, help="images per call (%(default)s)")
    parser.add_argument("--provider", default=Settings.provider, help="execution provider (%(default)s)")
    parser.add_argument("--seconds", type=float, default=Settings.seconds, help="per group of files (%(default)s)")
    parser.add_argument("--passes", type=int, default=Settings.passes, help="how often each is timed (%(default)s)")
    parser.add_argument("--clock", default=Settings.clock, help="wall, or cpu on a machine in use (%(default)s)")
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 for success, 2 for errors that the caller can fix."""
    given = vars(_arguments(Path(__file__).parent).parse_args(args))
    kit, save, name = given.pop("kit"), given.pop("save"), given.pop("name")

    def progress(done: int, total: int) -> None:
        if done % max(1, total // 10) == 0:
            sys.stderr.write(f"{math.floor(100 * done / total)} %\n")

    try:
        board = profile(kit, Settings(**given), name=name, progress=progress)
        write_board(save, board)
    except ProfileError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    sys.stdout.write(f"{save}: {summary(board)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
