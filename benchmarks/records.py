"""A file of `benchmarks/results/` from what `benchmarks.compare` has measured.

    python -m benchmarks.records build/compare/results.json --network ResNet-20 --data Fashion-MNIST --images 60000 --labels \
        --command "python -m benchmarks.compare ..." --to benchmarks/results/fashion-methods.json

Rows are named METHOD, or METHOD-BUDGET where a folder was also run at other budgets than the one that it was searched for.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.published import accuracy_fields, results_text
from benchmarks.tables import rows

RUN = "methods"
OTHER = "32x2"


def results_file(found: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of a results file. about: `network`, `data`, and the fields of the run that made the rows."""
    lines = rows(found["results"], found["options"]["settings"][0])
    first = found["results"][0]["measured"]
    images, static_ms = first["images"], first["latency"][found["options"]["settings"][0]]["static_ms"]
    run = {key: value for key, value in about.items() if key not in ("network", "data")}
    return {
        "network": about["network"],
        "data": about["data"],
        "static": {"accuracy": round(100 * first["static_accuracy"], 2), "milliseconds": [round(static_ms, 2)]},
        "test_images": images,
        "runs": {RUN: {**run, "seeds": max(line["seeds"] for line in lines), "minutes": None}},
        "rows": [row_of(line, images) for line in lines],
    }


def row_of(line: Mapping[str, Any], images: int) -> dict[str, Any]:
    """Return a row of the file from a line of the table."""
    extra = line["planned"] != line["budget"]
    row = {"name": line["method"] + (f"-{line['budget']:g}" if extra else ""), "run": RUN, "method": line["method"]}
    row |= {key: value for key, value in (("searched_for", line["planned"]), ("budget", line["budget"])) if value}
    row |= accuracy_fields(line["accuracy"] / 100, images)
    row |= {"latency": [round(line["latency"], 3)], "worst": [round(line["worst"], 2)]}
    if OTHER in line["others"]:
        row["at_32x2"] = round(line["others"][OTHER], 3)
    if line["first"] < 1:
        row["leave_first"] = round(100 * line["first"])
    if line["gap"] is not None:
        row["measured_to_predicted"] = round(100 * line["gap"], 1)
    if line["accuracy_spread"] is not None:
        row |= {
            "accuracy_spread": round(line["accuracy_spread"], 2),
            "latency_spread": round(line["latency_spread"], 3),
        }
    return row


def main(argv: list[str]) -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path, help="results.json of a run")
    parser.add_argument("--network", required=True, help="its name in tables")
    parser.add_argument("--data", required=True, help="the name of its data in tables")
    parser.add_argument("--images", type=int, required=True, help="how many the methods were given")
    parser.add_argument("--labels", action="store_true", help="they have labels")
    parser.add_argument("--command", action="append", required=True, help="what a reader runs; may be given again")
    parser.add_argument("--machine", default="A", help="its name in machines.json (%(default)s)")
    parser.add_argument("--note", default="", help="what else a reader should know")
    parser.add_argument("--to", type=Path, required=True, help="the file to write")
    args = parser.parse_args(argv)
    about = {k: v for k, v in vars(args).items() if k not in ("results", "to")}
    about["trained_on"] = args.machine
    found = json.loads(args.results.read_text(encoding="utf-8"))
    args.to.write_text(results_text(results_file(found, about)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
