"""The board file of a device: its measurements of a kit's stage files, which `s2d_runtime.profile` writes.

Letters: F files, Q kinds of work.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from s2d_runtime import DispatcherError
from s2d_runtime.dispatcher import check_range, parse_json, read_typed, refuse
from s2d_runtime.profile import BOARD_FORMAT, BOARD_VERSION, LAYOUTS

from s2d_convert.base.arrays import Array
from s2d_convert.errors import UsageError

LEAST_FILES = 20
MOST_BYTES = 64 * 2**20
MOST_LETTERS = 1000  # of a text
MOST_COUNT, MOST_NUMBER, MOST_AMOUNT = 10**6, 1e9, 1e15
KEY = re.compile(r"[^|]+\|[^|]*\|(calls|mmac|kin|kout)")


@dataclass(frozen=True)
class BoardModel:
    """The model of the kit."""

    name: str
    sha256: str


@dataclass(frozen=True)
class BoardRow:
    """The measurement of one file: its latency relative to the static model's, and how much of every kind of work it has, [Q]."""

    ratio: float
    amounts: tuple[float, ...]


@dataclass(frozen=True)
class Board:
    """The measurements of one device, as a board file has them.

    keys: the Q kinds of work; files: one row for each of F files; static_ms: the static model's latency on the device. Raises
    DispatcherError that names the place of a value out of range.
    """

    format: str
    version: int
    model: BoardModel
    machine: str
    onnxruntime: str
    provider: str
    threads: int
    batch: int
    clock: str
    layout_block: int
    static_ms: float
    keys: tuple[str, ...]
    files: tuple[BoardRow, ...]

    def __str__(self) -> str:
        return f"{self.machine}, onnxruntime {self.onnxruntime}"

    @cached_property
    def amounts(self) -> Array:
        """The work in every file, float64 [F, Q]."""
        return np.array([row.amounts for row in self.files])

    @cached_property
    def ratios(self) -> Array:
        """The latency of every file relative to the static model's, float64 [F]."""
        return np.array([row.ratio for row in self.files])

    def __post_init__(self) -> None:
        texts = {"model.name": self.model.name, "model.sha256": self.model.sha256, "machine": self.machine,
                 "onnxruntime": self.onnxruntime, "provider": self.provider, "clock": self.clock}  # fmt: skip
        for place, text in texts.items():
            if not 0 < len(text) <= MOST_LETTERS:
                refuse(place, text, f"a text of 1 to {MOST_LETTERS} letters")
        check_range("threads", self.threads, low=1, high=MOST_COUNT)
        check_range("batch", self.batch, low=1, high=MOST_COUNT)
        _check_positive("static_ms", self.static_ms)
        if self.layout_block not in LAYOUTS:
            refuse("layout_block", self.layout_block, f"one of {', '.join(map(str, LAYOUTS))}")
        if not self.keys or len(set(self.keys)) < len(self.keys) or not all(map(KEY.fullmatch, self.keys)):
            refuse("keys", self.keys, "texts kind|geometry|quantity, each once")
        if len(self.files) < LEAST_FILES:
            refuse("files", len(self.files), f"at least {LEAST_FILES}")
        for number, row in enumerate(self.files):
            _check_positive(f"files[{number}].ratio", row.ratio)
            if len(row.amounts) != len(self.keys):
                refuse(f"files[{number}].amounts", len(row.amounts), f"{len(self.keys)} numbers, one per key")
            for amount in row.amounts:
                check_range(f"files[{number}].amounts", amount, low=0, high=MOST_AMOUNT)


def _check_positive(place: str, value: float) -> None:
    if not 0 < value <= MOST_NUMBER:
        refuse(place, value, f"a number above 0 and at most {MOST_NUMBER:g}")


def read_board(path: Path) -> Board:
    """Read a board file. Raises UsageError that names the first problem."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"--latency {path}: larger than {MOST_BYTES // 2**20} MiB; not a board file")
        return _board(parse_json(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UsageError(f"--latency {path}: no such file; make it with s2d profile on the device") from error
    except DispatcherError as error:
        raise UsageError(
            f"--latency {path}: not a board file ({error}); see docs/profile.md, or profile again"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--latency {path}: not readable as JSON; make it with s2d profile on the device") from error


def _board(data: object) -> Board:
    """Return the measurements in parsed JSON. Raises DispatcherError that names the place."""
    kind = (data.get("format"), data.get("version")) if isinstance(data, dict) else None
    if kind != (BOARD_FORMAT, BOARD_VERSION):
        refuse("format and version", kind, f"'{BOARD_FORMAT}', {BOARD_VERSION}")
    board: Board = read_typed(Board, data, whole=False)
    return board
