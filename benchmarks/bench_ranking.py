"""Are plans ranked rightly before anything is trained? Solved weights against the same chains after a training, over many plans.

    python -m benchmarks.bench_ranking --model M.onnx --data TRAIN --out build/ranking [--plans 20] [--steps 300]

The plans are first chains before the untouched model: half of them from the allocation, over all latencies, half drawn at
random. Each is judged as in a search (`search.evaluate`), then trained for so many steps as the finals do it, and judged again
on the same held-out images. Written: ranking.json, and on the terminal the rank correlations (Spearman).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from benchmarks.picture_options import add_picture_options, picture_options
from benchmarks.stand import BenchOptions, Stand, told
from s2d_convert.base.files import write_json
from s2d_convert.cli.progress import TerminalReporter
from s2d_convert.conversion.context import Job
from s2d_convert.conversion.explore import allocate
from s2d_convert.conversion.training_steps import tried_out, try_out
from s2d_convert.errors import S2DError
from s2d_convert.exporting.provenance import model_sha256
from s2d_convert.exporting.timing import machine
from s2d_convert.plans.decisions import random_actions
from s2d_convert.plans.plan import Conversion
from s2d_convert.plans.space import CASCADE
from s2d_convert.search.allocation import allocated, pairs_of
from s2d_convert.search.evaluate import Evaluator
from s2d_convert.slicing.chain import build_stages, stage_logits

DECIDED = 0  # the seed of the plans that are drawn


@dataclass(frozen=True)
class Judged:
    """A plan before and after its training: agreement of the chain alone with the static model, and the reward of the search.

    `solved` is from weights solved in full, which training starts from; `promised` is the reward that the search gave, from rough
    solves, which counts on what training mends.
    """

    plan: str
    latency: float
    solved: float
    trained: float
    promised: float
    reached: float


def plans_of(stand: Stand, job: Job, count: int) -> list[Conversion]:
    """Return `count` distinct conversions with one chain before the untouched model."""
    pairs = pairs_of(stand.space)
    rng = np.random.default_rng(DECIDED)
    actions = list(allocated(pairs, allocate(job, stand.space), count // 2))
    plans = dict.fromkeys(pairs.decode(a) for a in actions)
    while len(plans) < count:
        plans[pairs.decode((CASCADE, *random_actions(pairs, rng)[1:]))] = None
    return list(plans)


def judge(job: Job, evaluate: Evaluator, conversion: Conversion, *, steps: int) -> Judged:
    """Judge a conversion by solved weights, train its chain, and judge that."""
    ready, plan, name = job.ready, conversion.chains[0], conversion.digest()
    kept = job.run.path / f"judged-{name}.json"
    if kept.exists():
        return Judged(**json.loads(kept.read_text(encoding="utf-8")))
    judged = evaluate.judged
    static, task = ready.task.answers(judged.logits), ready.task

    def agreement(logits: np.ndarray) -> float:
        return float(task.agree(task.answers(logits), static).mean())

    promised, cost = evaluate(conversion).reward, evaluate.look(conversion).cost
    solved = stage_logits(ready.graph, build_stages([ready.solver.chain(plan)]), judged.images)
    file = job.run.path / f"chain-{name}"
    try_out(job, plan, None, file, steps=steps)
    trained = stage_logits(ready.graph, build_stages([tried_out(job, plan, file)]), judged.images)
    both = np.concatenate([trained, judged.logits[None]])
    temperatures = task.fit_temperatures(both, judged.right_classes)
    reached = evaluate.goal.value(task.confidences(both, temperatures), judged.expected(task, both), cost).reward
    found = Judged(name, cost[0], agreement(solved[0]), agreement(trained[0]), promised, reached)
    file.unlink()
    write_json(kept, asdict(found))
    return found


def correlations(found: list[Judged]) -> dict[str, float]:
    """Return the rank correlation of agreement and of reward, before and after training."""
    solved, trained, promised, reached = np.array([(f.solved, f.trained, f.promised, f.reached) for f in found]).T
    return {
        "agreement": float(spearmanr(solved, trained).statistic),
        "reward": float(spearmanr(promised, reached).statistic),
    }


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="the static model, ONNX")
    parser.add_argument("--data", type=Path, required=True, help="images to train with and to judge on")
    parser.add_argument("--out", type=Path, default=Path("build/ranking"), help="folder of the run")
    parser.add_argument("--budget", type=float, default=0.6, help="share of the static latency, for the rewards")
    parser.add_argument("--plans", type=int, default=20, help="how many")
    parser.add_argument("--steps", type=int, default=300, help="of training, for the cheapest plans")
    add_picture_options(parser)
    return parser.parse_args()


def main() -> None:
    """Judge, train, judge again, and tell."""
    args = parse()
    options = BenchOptions(
        model=args.model, out=args.out / "work", data=args.data, budget=args.budget, effort="quick", **picture_options(args)
    )  # fmt: skip
    options = replace(options, amounts=replace(options.work, finetune_epochs=0.0, finetune_min_steps=args.steps))
    stand = Stand(
        args.out,
        options,
        TerminalReporter(),
        {"model": model_sha256(args.model), "steps": str(args.steps), "data": str(args.data)},
    )
    job, evaluate = stand.job("judged", 0), stand.evaluator(0, args.budget)
    found = []
    for number, conversion in enumerate(plans_of(stand, job, args.plans), start=1):
        found.append(judge(job, evaluate, conversion, steps=args.steps))
        stand.reporter.note(f"{number}: {found[-1]}")
    kept = {"options": told(args), "machine": machine(), "correlations": correlations(found)}
    write_json(args.out / "ranking.json", {**kept, "plans": [asdict(f) for f in found]})
    print(json.dumps(kept["correlations"]))


if __name__ == "__main__":
    try:
        main()
    except (S2DError, OSError) as error:
        sys.exit(f"error: {error}")
