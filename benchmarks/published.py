"""The published numbers, one record per row, as the files of `benchmarks/results/` have them.

A file is one network: what its rows share (`static`, `test_images`), the `runs` that made them (command, machine, seeds, images,
minutes), and the `rows`, each of which names its run. The pages that show the numbers are written from here by
`python -m benchmarks.publish`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MACHINES = "machines.json"


@dataclass(frozen=True)
class Machine:
    """A machine by its letter or name, its processor in words, and versions by name."""

    name: str
    processor: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Run:
    """What made some rows: commands in their order, where latency was measured and the networks were trained, how many seeds,
    how many images were given (with labels or without), the minutes from a model to a folder, and the most memory that this took.
    None is not known."""

    command: tuple[str, ...]
    machine: Machine
    trained_on: str | None
    seeds: int
    images: int | None
    labels: bool
    minutes: float | None
    gigabytes: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Network:
    """A static model: accuracy in percent (None: not known), milliseconds per image (smallest, largest), and the test images."""

    file: str
    name: str
    data: str
    accuracy: float | None
    milliseconds: tuple[float, ...]
    test_images: int


@dataclass(frozen=True)
class Record:
    """One published row.

    In percent: `accuracy`, its `standard_error` over the test images and its spread (standard deviation over seeds),
    `agreement` with the static model, `leave_first` (the images that leave at stage 1), `measured_to_predicted`. Latencies are
    relative to the static model at batch 1 with one thread, one for every repeated measurement; `at_32x2` is the mean at batch 32
    with two threads, `quartiles` those by round. `headline` marks the rows to quote.
    """

    name: str
    network: Network
    run: Run
    method: str
    latency: tuple[float, ...]
    worst: tuple[float, ...] = ()
    searched_for: float | None = None
    budget: float | None = None
    plan: str = ""
    accuracy: float | None = None
    standard_error: float | None = None
    accuracy_spread: float | None = None
    latency_spread: float | None = None
    agreement: float | None = None
    agreement_spread: float | None = None
    leave_first: float | None = None
    at_32x2: float | None = None
    measured_to_predicted: float | None = None
    quartiles: tuple[float, ...] = ()
    megabytes: float | None = None
    milliseconds: float | None = None
    headline: bool = False
    note: str = ""

    @property
    def key(self) -> str:
        """FILE/NAME, which names the row among all."""
        return f"{self.network.file}/{self.name}"


def read_records(folder: Path = RESULTS) -> dict[str, Record]:
    """Return all records by key, in the order of files and rows. Raises ValueError for a key that comes twice."""
    machines = {name: Machine(name, **facts) for name, facts in _read(folder / MACHINES).items()}
    records: dict[str, Record] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name != MACHINES:
            for record in _records_of(path.stem, _read(path), machines):
                if record.key in records:
                    raise ValueError(f"{path}: two rows are named {record.name}")
                records[record.key] = record
    return records


def accuracy_fields(right: float, images: int) -> dict[str, float]:
    """Return the accuracy and its standard error in percent, as rows have them, from the share of so many images."""
    error = (right * (1 - right) / images) ** 0.5
    return {"accuracy": round(100 * right, 2), "standard_error": round(100 * error, 2)}


def results_text(data: Mapping[str, Any]) -> str:
    """Return the text of a results file, with one line per row."""
    rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in data["rows"])
    head = json.dumps({**data, "rows": []}, indent=1, ensure_ascii=False)
    return head.removesuffix("[]\n}") + f"[\n{rows}\n ]\n}}\n"


def _records_of(file: str, data: Mapping[str, Any], machines: Mapping[str, Machine]) -> Sequence[Record]:
    static = data["static"]
    network = Network(
        file, data["network"], data["data"], static["accuracy"], tuple(static["milliseconds"]), data["test_images"]
    )
    runs = {
        name: Run(**{**facts, "command": tuple(facts["command"]), "machine": machines[facts["machine"]]})
        for name, facts in data["runs"].items()
    }
    return [Record(**{**_with_tuples(row), "network": network, "run": runs[row["run"]]}) for row in data["rows"]]


def _with_tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row with tuples in place of lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
