"""Does the policy find better plans than chance? Both search the same space with as many evaluations, for several seeds.

    python -m benchmarks.bench_search --model M.onnx --data TRAIN --out build/search [--budget 0.6] [--seeds 3]

Solved weights judge all plans; what is known of a plan (its latency, its answers) is shared, so that the searches differ in
nothing but the plans that they ask about. `reinforce` and `neighbours` begin with the same plans (`start`). Written:
search.json and, on the terminal, a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.picture_options import add_picture_options, picture_options
from benchmarks.stand import BenchOptions, Stand, told
from s2d_convert.base.files import write_json
from s2d_convert.cli.progress import TerminalReporter
from s2d_convert.conversion.explore import allocate, controller_search, latency_model, starting_points, with_slim_lasts
from s2d_convert.conversion.options import EFFORTS
from s2d_convert.errors import S2DError
from s2d_convert.exporting.provenance import model_sha256
from s2d_convert.exporting.timing import machine
from s2d_convert.plans.decisions import Actions, neighbour
from s2d_convert.plans.plan import Conversion
from s2d_convert.plans.space import PlanSpace
from s2d_convert.search.base import GIVE_UP, Book, SearchResult, evaluate_all, random_search
from s2d_convert.search.reinforce import Settings

MARKS = (0.25, 0.5, 1.0)  # shares of the evaluations at which the best reward so far is told


def best_so_far(result: SearchResult[Conversion], total: int) -> list[float]:
    """Return the best reward after each share in MARKS of the evaluations. Repeated plans do not count as evaluations."""
    rewards = [t.evaluation.reward for t in result.trials if not t.repeated]
    return [max(rewards[: max(1, round(mark * total))]) for mark in MARKS]


def neighbour_search(
    space: PlanSpace, evaluate: Any, starts: Sequence[Actions], *, evaluations: int, seed: int
) -> SearchResult[Conversion]:
    """Begin with `starts`, then change one or two decisions of one of the best plans at a time; nothing is learnt."""
    book = Book(space, evaluate, method="neighbours", evaluations=evaluations)
    rng = np.random.default_rng(seed)
    for actions in starts:
        book.visit_if_open(actions)
    while not book.closed and book.stale < GIVE_UP:
        elites = book.elites(Settings.elites)
        weights = np.exp(-np.arange(len(elites)) / Settings.parent_scale)
        parent = elites[rng.choice(len(elites), p=weights / weights.sum())]
        book.visit_if_open(neighbour(space, parent.actions, rng))
    return book.result()


def compare(stand: Stand, *, seeds: int, total: int) -> dict[str, list[list[float]]]:
    """Return per search and seed the best rewards so far [MARKS].

    `start` is what the controller begins with, as far as it goes.
    """
    options, space = stand.options, stand.space
    assert options.budget is not None, "the command line has a default"
    job = stand.job("search-s0", 0)
    space = with_slim_lasts(job, space)
    rows = allocate(job, space)
    starts = starting_points(space, rows, latency_model(job, space), total, budget=options.budget) if rows else []
    evaluate = stand.evaluator(0, options.budget)
    uniform = evaluate_all(space, evaluate, space.uniform()[:total], method="uniform")
    found: dict[str, list[list[float]]] = {name: [] for name in ("reinforce", "neighbours", "random")}
    found["uniform"] = [best_so_far(uniform, total)]
    if starts:
        found["start"] = [best_so_far(evaluate_all(space, evaluate, starts, method="start"), total)]
    for seed in range(seeds):
        stand.reporter.step(f"search with seed {seed}")
        learned = controller_search(space, evaluate, total, seed, starts=starts)
        found["reinforce"].append(best_so_far(learned, total))
        near = neighbour_search(space, evaluate, starts, evaluations=total, seed=seed)
        found["neighbours"].append(best_so_far(near, total))
        found["random"].append(best_so_far(random_search(space, evaluate, evaluations=total, seed=seed), total))
        stand.reporter.note(f"seed {seed}: " + ", ".join(f"{name} {rows[-1][-1]:.4f}" for name, rows in found.items()))
    return found


def table(found: Mapping[str, Sequence[Sequence[float]]], total: int) -> str:
    """Return mean and spread over the seeds, as Markdown."""
    heads = "".join(f" after {round(mark * total)} |" for mark in MARKS)
    lines = [f"| search | seeds |{heads}", "|---|---|" + "---|" * len(MARKS)]
    for name, rows in found.items():
        values = np.array(rows)
        spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(MARKS))
        cells = "".join(f" {m:.4f} ± {s:.4f} |" for m, s in zip(values.mean(axis=0), spread, strict=True))
        lines.append(f"| {name} | {len(values)} |{cells}")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="the static model, ONNX")
    parser.add_argument("--data", type=Path, required=True, help="images to solve weights with and to judge plans on")
    parser.add_argument("--out", type=Path, default=Path("build/search"), help="folder of the run")
    parser.add_argument("--budget", type=float, default=0.6, help="share of the static latency")
    parser.add_argument("--seeds", type=int, default=3, help="how many searches of each kind")
    parser.add_argument("--effort", choices=list(EFFORTS), default="standard", help="evaluations")
    parser.add_argument("--stages", type=int, default=2, help="most stages")
    parser.add_argument("--evaluations", type=int, help="in place of the effort's")
    add_picture_options(parser)
    return parser.parse_args()


def main() -> None:
    """Search, with everything that is known of a plan shared."""
    args = parse()
    options = BenchOptions(
        model=args.model,
        out=args.out / "work",
        data=args.data,
        budget=args.budget,
        effort=args.effort,
        stages=args.stages,
        **picture_options(args),
    )
    names = ("data", "effort", "stages")
    own = {**{name: str(getattr(args, name)) for name in names}, "model": model_sha256(args.model)}
    stand = Stand(args.out, options, TerminalReporter(), own)
    total = args.evaluations or options.work.evaluations
    found = compare(stand, seeds=args.seeds, total=total)
    write_json(args.out / "search.json", {"options": told(args), "machine": machine(), "rewards": found})
    print(table(found, total))


if __name__ == "__main__":
    try:
        main()
    except (S2DError, OSError) as error:
        sys.exit(f"error: {error}")
