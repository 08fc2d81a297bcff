"""The measuring stand: our conversions and everything that a user would pick instead, in one run on one machine.

    python -m benchmarks.compare --model M.onnx --data TRAIN --test TEST --out build/compare [--seeds 3]

All methods get the same images, recipe and distillation; plans, ratios and thresholds are chosen on validation images; the
test images are used once, at the end. The folder then holds results.json, table.md and plot.png. A run that was killed goes on
when it is started again with the same options. `--build-only` and `--measure-only` part the two halves, so that the
second can have a quiet machine. docs/benchmarks.md says what is compared and what is fair about it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmarks.measuring import Setting, measured
from benchmarks.methods import METHODS, at_other_budgets, is_folder, make_entry
from benchmarks.picture_options import add_picture_options, picture_options
from benchmarks.stand import BenchOptions, Entry, NotRun, Stand, told
from benchmarks.tables import markdown, plot, reasons, rows
from s2d_convert.cli.progress import TerminalReporter
from s2d_convert.conversion.finish import versions
from s2d_convert.conversion.options import EFFORTS, Effort
from s2d_convert.data.images import Images
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_all
from s2d_convert.errors import DataError, ModelError, OutputError, S2DError, StaticCheckError, UsageError
from s2d_convert.exporting.provenance import model_sha256, sha256_of
from s2d_convert.exporting.timing import machine

OURS = ("ours", "int8-ours")
AMOUNTS = tuple(f.name for f in fields(Effort) if f.name not in ("baselines", "made_up_images"))


def compare(stand: Stand, args: argparse.Namespace) -> tuple[list[Entry], list[NotRun]]:
    """Run all methods for all seeds and budgets. Return their entries, and the rivals that could not be run with the reason."""
    entries: list[Entry] = []
    not_run: list[NotRun] = []
    for seed in range(args.seeds):
        for name in args.methods:
            method = METHODS[name]
            budgets = (args.budgets if name in OURS else args.other_budgets) if method.per_budget else args.budgets[:1]
            made: list[Entry] = []
            for budget in budgets:
                entry = run_method(stand, name, seed, budget, only_known=args.measure_only)
                if isinstance(entry, NotRun):
                    not_run.append(entry)
                elif entry is not None:
                    made.append(entry)
            made = [entry for entry in made if entry.seed == seed]  # what does not depend on the seed is made once
            entries += made
            missing = tuple(b for b in args.budgets if b not in budgets)
            if made and method.per_budget and is_folder(made[0]):
                entries += at_other_budgets(made[0], missing)
    return entries, not_run


def run_method(stand: Stand, name: str, seed: int, budget: float, *, only_known: bool) -> Entry | NotRun | None:
    """Return the result of a method, None where only known ones are asked for and it is not, or why a rival was not run."""
    method = METHODS[name]
    at = budget if method.per_budget else None
    if method.missing is not None:
        return NotRun(name, seed, at, f"{method.missing} is not installed")
    try:
        return make_entry(stand, name, seed, budget, only_known=only_known)
    except (ModelError, StaticCheckError, UsageError) as error:
        if not method.rival:
            raise
        stand.reporter.note(f"{name} was not run: {error}")
        return NotRun(name, seed, at, str(error))


def measure_all(
    stand: Stand, entries: list[Entry], images: Images, settings: tuple[Setting, ...]
) -> list[dict[str, Any]]:
    """Return the entries with their measurements on the test images. Measurements of an earlier session are kept."""
    results = []
    for number, entry in enumerate(entries, start=1):
        found = stand.known("measured", entry.name)
        if found is None:
            stand.reporter.step(f"measure {entry.name} ({number} of {len(entries)})")
            found = measured(stand, entry, images, settings)
            stand.keep("measured", entry.name, found)
        results.append({"entry": entry.to_json(), "measured": found})
    return results


def write_results(
    stand: Stand, results: list[dict[str, Any]], not_run: list[NotRun], args: argparse.Namespace, *, seconds: float
) -> None:
    """Write results.json, table.md and plot.png into the stand's folder."""
    (stand.root / "results.json").write_text(
        json.dumps(
            {
                "options": told(args),
                "machine": machine(),
                "versions": versions(),
                "seconds": round(seconds),
                "results": results,
                "not_run": [asdict(line) for line in not_run],
            },
            indent=1,
        )
        + "\n",
        encoding="utf-8",
    )
    made = rows(results, args.settings[0])
    table = markdown(made) + reasons(not_run)
    (stand.root / "table.md").write_text(table, encoding="utf-8")
    plot(made, stand.root / "plot.png", title=f"{args.model.stem}, {results[0]['measured']['images']} test images")
    print(table)


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="the static model, ONNX")
    parser.add_argument("--data", type=Path, required=True, help="images to train and to validate on")
    parser.add_argument("--test", type=Path, help="images for the final numbers; without it a held-out part of --data")
    parser.add_argument("--out", type=Path, default=Path("build/compare"), help="folder of the run")
    about = "; ".join(f"{name}: {method.about}" for name, method in METHODS.items())
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help=about)
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.3, 0.4, 0.5, 0.7], help="of ours and int8-ours")
    parser.add_argument(
        "--other-budgets", nargs="+", type=float, help="of the other methods; without it those of --budgets"
    )
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds of training and search")
    parser.add_argument("--settings", nargs="+", default=["1x1", "32x2"], help="BATCHxTHREADS; plans are for the first")
    parser.add_argument(
        "--effort", choices=list(EFFORTS), default="standard", help="amounts of work, as of s2d-convert"
    )
    for name in AMOUNTS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help="in place of the effort's")
    parser.add_argument("--stages", type=int, default=2, help="most stages")
    parser.add_argument("--device", default="auto", help="where to train")
    parser.add_argument("--latency", type=Path, help="board file of the machine that plans are for, as of s2d-convert")
    add_picture_options(parser)
    parser.add_argument(
        "--replacement", type=Path, help="a smaller trained model for the same images, ONNX, to compare with"
    )
    parser.add_argument("--build-only", action="store_true", help="make the models, measure nothing")
    parser.add_argument("--measure-only", action="store_true", help="measure what is made already")
    args = parser.parse_args(argv)
    args.other_budgets = args.other_budgets or args.budgets
    return args


def options_of(args: argparse.Namespace) -> BenchOptions:
    """Return the conversion options that all methods share; latency is timed as the first setting says."""
    base = EFFORTS[args.effort]
    given = {n: getattr(args, n) for n in AMOUNTS if getattr(args, n) is not None}
    amounts = Effort(
        **{f.name: type(getattr(base, f.name))(given.get(f.name, getattr(base, f.name))) for f in fields(Effort)}
    )
    first = Setting.parse(args.settings[0])
    return BenchOptions(
        model=args.model,
        out=args.out / "work" / "base",
        data=args.data,
        budget=args.budgets[0],
        stages=args.stages,
        threads=first.threads,
        batch=first.batch,
        device=args.device,
        latency=args.latency,
        effort=args.effort,
        **picture_options(args),
        amounts=amounts,
        replacement=args.replacement,
    )


def begun_with(args: argparse.Namespace) -> dict[str, str]:
    """Return the settings that a resumed run must share, as text. Model and board file count by their content."""
    kept = ("data", "effort", "stages", "no_flip", "preprocess", "settings", *AMOUNTS)
    own = {name: str(getattr(args, name)) for name in kept}
    own |= {name: str(getattr(args, name)) for name in ("mean", "std", "size") if getattr(args, name) is not None}
    paths = {"model": args.model, "latency": args.latency}
    if args.replacement is not None:
        paths["replacement"] = args.replacement
    for name, path in paths.items():
        digest = sha256_of if name == "latency" else model_sha256
        own[name] = digest(path) if path is not None and path.is_file() else str(path)
    return own


def test_images(stand: Stand, test: Path | None) -> Images:
    """Return the test images. They are checked now and used at the end.

    Raises DataError when they have no labels, and OutputError when the run was begun with other images.
    """
    ready = stand.ready
    images = ready.dataset.test
    if test is not None:
        images = load_all(test, preprocess=ready.preprocess, space=LabelSpace(ready.graph.classes))
    if images.labels is None:
        raise DataError(
            f"{test or 'the held-out images'}: no labels; the stand compares accuracies, give labelled images"
        )
    stand.begin({"content of --test": images.digest()})
    return images


def main(argv: list[str]) -> None:
    """Make, measure, write."""
    args = parse(argv)
    started = time.monotonic()
    stand = Stand(args.out, options_of(args), TerminalReporter(), begun_with(args))
    images = None if args.build_only else test_images(stand, args.test)
    entries, not_run = compare(stand, args)
    if images is None:
        return
    if not entries:
        raise OutputError(f"{args.out}: nothing was made there yet; leave --measure-only out")
    settings = tuple(Setting.parse(s) for s in args.settings)
    results = measure_all(stand, entries, images, settings)
    write_results(stand, results, not_run, args, seconds=time.monotonic() - started)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (S2DError, OSError) as error:
        sys.exit(f"error: {error}")
