"""What a new user gets: one `s2d convert` with a given time, beside INT8 of the whole model, on images that neither has seen.

    python -m benchmarks.half_hour text-direction --time 10m [-- --max-latency 1.05]
    python -m benchmarks.half_hour fashion-resnet20 --model build/nets/resnet20-fashion-SEED.onnx --seeds 3 --labels \
        --data build/bench/fashion-mnist/train.npz --test build/bench/fashion-mnist/test.npz \
        --preprocess unit --mean 0.2860 --std 0.3530

The first form takes a network of `benchmarks.third_party` and its pictures (`benchmarks.render`), without their labels. SEED in
the name of a model stands for the number of the seed; these are converted with seed 0, which divides the images as the static
trainings of `benchmarks` do. The conversion is the command as users run it, in a process of its own,
so that its minutes and its peak of memory are the command's; what follows `--` goes to it. Then static model, INT8 of the static
model (the best of three recipes), the stages and the stages in INT8 are timed in turn in one process. OUT/NAME.json is a file
as `benchmarks/results/` has them; a seed that is finished is kept beside it, and not made again.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from s2d_runtime import Dispatcher

from benchmarks.bench_int8 import Table, folder_bytes, rows_of
from benchmarks.int8 import quantised
from benchmarks.packages import BENCH, PackageError
from benchmarks.picture_options import add_picture_options, picture_options, picture_words
from benchmarks.published import accuracy_fields, results_text
from benchmarks.third_party import NETWORKS, RENDERED, fetch
from s2d_convert.base.files import write_json
from s2d_convert.base.sessions import ONE_THREAD, make_session
from s2d_convert.cli.progress import TerminalReporter
from s2d_convert.conversion.context import Prepared
from s2d_convert.conversion.options import ConvertOptions
from s2d_convert.conversion.prepare import prepare
from s2d_convert.conversion.requantize import Requantization, requantize
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_all
from s2d_convert.errors import EXIT_BUDGET_NOT_REACHED, EXIT_WORSE, S2DError
from s2d_convert.frontend.reference import StaticModel

PLACE = BENCH / "half_hour"
ANSWERED = (0, EXIT_BUDGET_NOT_REACHED, EXIT_WORSE)
KILOBYTES = 1e6  # of a gigabyte; the system counts memory in kilobytes
UNLABELLED = 1000  # images of a third-party network
RUN = "half hour"
METHODS = {"static": "static", "INT8": "int8-static", "ours": "ours", "ours in INT8": "int8-ours"}


@dataclass(frozen=True)
class Given:
    """What the user of a row has: a model per seed, images with or without labels, and how pictures become input.

    `network` and `pictures` are their names in a table, `pixels` the options about pictures as ConvertOptions has them; `test`
    has the images to count on, `count` is how many of those at `data` are given (None: all).
    """

    name: str
    network: str
    pictures: str
    models: tuple[Path, ...]
    data: Path
    test: Path
    pixels: Mapping[str, Any]
    labels: bool
    count: int | None


def third_party(name: str, rendered: Path) -> Given:
    """Return what a user of a third-party network has."""
    (network,) = (n for n in NETWORKS if n.name == name)
    folder = rendered / network.rendered
    return Given(
        name,
        ", ".join(network.about.split(", ")[:2]),
        f"drawn {network.rendered}",
        (fetch(network),),
        folder / "train.npz",
        folder / "test.npz",
        network.pixels(),
        labels=False,
        count=UNLABELLED,
    )


def own(args: argparse.Namespace) -> Given:
    """Return what the command line names."""
    models = tuple(Path(str(args.model).replace("SEED", str(seed))) for seed in range(args.seeds))
    about = (args.name, args.network or args.name, args.pictures or args.data.stem)
    return Given(*about, models, args.data, args.test, picture_options(args), args.labels, args.images)


def some_images(given: Given, out: Path) -> Path:
    """Return the images to convert with: the first of those given, without labels where the user has none."""
    if given.count is None and given.labels:
        return given.data
    path = out / f"{given.name}-images.npz"
    with np.load(given.data) as arrays:
        names = ("images", "labels") if given.labels else ("images",)
        np.savez(path, **{name: arrays[name][: given.count] for name in names})
    return path


def convert(command: Sequence[str]) -> dict[str, float]:
    """Run `s2d` as a user does. Return the minutes, and the most memory in GB that any such command has taken so far."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "s2d_convert", *command], stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in ANSWERED:
        sys.exit(f"error: `s2d {shlex.join(command)}` ended with exit code {done.returncode}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / KILOBYTES
    return {"minutes": round((time.monotonic() - started) / 60, 1), "gigabytes": round(peak, 1)}


def compare(ready: Prepared, folder: Path, test: Path, budgets: Sequence[float | None], *, seconds: float) -> Table:
    """Return static model, its INT8, the folder and the folder in INT8, timed in turn in one process."""
    reporter = TerminalReporter()
    in_int8, whole = folder.with_suffix(".int8.s2d"), folder.with_suffix(".int8.onnx")
    quantised(ready, whole)
    images = load_all(test, preprocess=ready.preprocess, space=LabelSpace(ready.graph.classes))
    runners = {"ours": Dispatcher(folder)}
    sizes = {"static": ready.graph.to_model().ByteSize(), "INT8": whole.stat().st_size, "ours": folder_bytes(folder)}
    try:
        asked, static = Requantization("int8", ONE_THREAD, force=True), StaticModel(ready.graph, ONE_THREAD)
        requantize(folder, in_int8, asked, dataset=ready.dataset, static=static, note=reporter.note)
        runners["ours in INT8"], sizes["ours in INT8"] = Dispatcher(in_int8), folder_bytes(in_int8)
    except S2DError as error:
        reporter.note(f"the stages in INT8 were not measured: {error}")
    plain = {
        "static": make_session(ready.graph.to_model().SerializeToString()),
        "INT8": make_session(whole.read_bytes()),
    }
    return rows_of(runners, sizes, plain, test=images, budgets=budgets, seconds=seconds)


def run_seed(given: Given, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Convert and measure for one seed, or return what an earlier run has kept of it. A conversion is kept too, so that it can be
    measured anew on a quieter machine."""
    folder, kept = args.out / f"{given.name}-{seed}.s2d", args.out / f"{given.name}-{seed}.json"
    converted = args.out / f"{given.name}-{seed}.converted.json"
    if kept.exists() and not args.measure_again:
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    model, data = given.models[seed], some_images(given, args.out)
    divided_by = 0 if len(set(given.models)) > 1 else seed
    command = ["convert", str(model), "--data", str(data), "--out", str(folder), "--force"]
    command += ["--time", args.time, "--seed", str(divided_by), *picture_words(given.pixels), *args.more]
    if not converted.exists():
        write_json(converted, convert(command))
    took: dict[str, float] = json.loads(converted.read_text(encoding="utf-8"))
    asked = ConvertOptions(model=model, data=data, out=folder, seed=divided_by, **given.pixels)
    budgets = (None, *args.budgets)
    table = compare(prepare(asked, TerminalReporter()), folder, given.test, budgets, seconds=args.seconds)
    found: dict[str, Any] = {**took, "images": count_of(data), "test_images": count_of(given.test)}
    found |= {"static_ms": table.static_ms, "rows": [asdict(row) for row in table.rows]}
    write_json(kept, found)
    return found


def count_of(path: Path) -> int:
    """Return how many images an .npz has."""
    with np.load(path) as arrays:
        return len(arrays["images"])


def has_labels(path: Path) -> bool:
    """Return whether an .npz has labels."""
    with np.load(path) as arrays:
        return "labels" in arrays.files


def published(given: Given, found: Sequence[Mapping[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """Return a file as `benchmarks/results/` has them: means over the seeds, with their spread."""
    images, labels = found[0]["test_images"], has_labels(given.test)
    groups = grouped(found, args.budgets)
    rows = [made_row(name, lines, images if labels else None) for name, lines in groups.items()]
    made_by = {
        "command": [args.command],
        "machine": args.machine,
        "trained_on": args.machine,
        "seeds": len(found),
        "images": found[0]["images"],
        "labels": given.labels,
        "minutes": round(float(np.mean([seed["minutes"] for seed in found])), 1),
        "gigabytes": max(seed["gigabytes"] for seed in found),
        "note": args.note,
    }
    milliseconds = sorted({round(seed["static_ms"], 2) for seed in found})
    return {
        "network": given.network,
        "data": given.pictures,
        "static": {"accuracy": rows[0].get("accuracy"), "milliseconds": milliseconds},
        "test_images": images,
        "runs": {RUN: made_by},
        "rows": rows,
    }


def grouped(found: Sequence[Mapping[str, Any]], budgets: Sequence[float]) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of all seeds by the name of their row: the method, and the budget where it is not the folder's own."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for seed in found:
        seen: dict[str, int] = {}
        for line in seed["rows"]:
            place = seen[line["name"]] = seen.get(line["name"], 0) + 1
            asked = f"-{budgets[place - 2]:g}" if place > 1 else ""
            groups.setdefault(METHODS[line["name"]] + asked, []).append(line)
    return groups


def made_row(name: str, lines: Sequence[Mapping[str, Any]], images: int | None) -> dict[str, Any]:
    """Return a row of a results file from the lines of its seeds. Shares become percent; images: how many have labels."""
    first = lines[0]
    row: dict[str, Any] = {"name": name, "run": RUN, "method": METHODS[first["name"]]}
    if first["budget"] is not None and len({line["budget"] for line in lines}) == 1:
        row["budget"] = first["budget"]
    if images is not None:
        row |= accuracy_fields(float(np.mean([line["right"] for line in lines])), images)
    row |= {"agreement": mean(lines, "agree", 2, 100), "latency": [mean(lines, "mean", 3)]}
    row |= {"worst": [mean(lines, "worst", 3)], "megabytes": mean(lines, "megabytes", 2)}
    row["quartiles"] = np.mean([line["apart"] for line in lines], axis=0).round(3).tolist()
    if first["leave_first"] is not None:
        row["leave_first"] = mean(lines, "leave_first", 1, 100)
    if len(lines) > 1:
        row |= {"latency_spread": spread(lines, "mean", 3), "agreement_spread": spread(lines, "agree", 2, 100)}
        row |= {} if images is None else {"accuracy_spread": spread(lines, "right", 2, 100)}
    return row


def mean(lines: Sequence[Mapping[str, Any]], key: str, digits: int, scale: float = 1.0) -> float:
    """Return the mean over seeds."""
    return round(scale * float(np.mean([line[key] for line in lines])), digits)


def spread(lines: Sequence[Mapping[str, Any]], key: str, digits: int, scale: float = 1.0) -> float:
    """Return the standard deviation over seeds."""
    return round(scale * float(np.std([line[key] for line in lines], ddof=1)), digits)


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line; what follows `--` is `more`."""
    command, more = argv, []
    if "--" in argv:
        place = argv.index("--")
        argv, more = argv[:place], argv[place + 1 :]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", help=f"a network of third_party ({', '.join(n.name for n in NETWORKS)}), or any name")
    parser.add_argument("--time", default="10m", help="as of s2d-convert (%(default)s)")
    parser.add_argument("--budgets", nargs="+", type=float, default=[], help="policies to measure besides the default")
    parser.add_argument("--out", type=Path, default=PLACE, help="folder of the run (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to time (%(default)s)")
    parser.add_argument("--machine", default="A", help="its name in benchmarks/results/machines.json (%(default)s)")
    parser.add_argument("--note", default="", help="what else a reader should know")
    parser.add_argument(
        "--rendered", type=Path, default=RENDERED, help="pictures of third-party networks (%(default)s)"
    )
    parser.add_argument("--measure-again", action="store_true", help="measure what was converted before")
    own_model = parser.add_argument_group("a model of your own")
    own_model.add_argument("--model", type=Path, help="ONNX; SEED in its name stands for the number of the seed")
    own_model.add_argument("--data", type=Path, help=".npz to convert with")
    own_model.add_argument("--test", type=Path, help=".npz to count on")
    own_model.add_argument("--images", type=int, help="how many of --data are given; without it all")
    own_model.add_argument("--labels", action="store_true", help="give the labels too")
    own_model.add_argument("--seeds", type=int, default=1, help="conversions, each with its own seed (%(default)s)")
    own_model.add_argument("--network", help="its name in tables")
    own_model.add_argument("--pictures", help="the name of its data in tables")
    add_picture_options(own_model)
    args = parser.parse_args(argv)
    if args.model is not None and (args.data is None or args.test is None):
        parser.error("--model: needs --data and --test")
    if args.model is None and args.name not in (n.name for n in NETWORKS):
        parser.error(f"{args.name}: not a network of third_party; give its --model")
    args.more, args.command = more, shlex.join(["python", "-m", "benchmarks.half_hour", *command])
    return args


def main(argv: list[str]) -> None:
    """Convert, measure and write the file of results."""
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    given = third_party(args.name, args.rendered) if args.model is None else own(args)
    found = [run_seed(given, seed, args) for seed in range(len(given.models))]
    text = results_text(published(given, found, args))
    (args.out / f"{given.name}.json").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (S2DError, PackageError, OSError) as error:
        sys.exit(f"error: {error}")
