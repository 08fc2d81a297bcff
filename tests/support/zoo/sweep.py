"""Take full-size architectures through load, analysis, split and the laws, and write docs/coverage.md.

    python tests/support/zoo/sweep.py                    the sweep: one JSON object per member in build/coverage.jsonl
    python tests/support/zoo/sweep.py --only resnet,vgg  members whose name holds one of the words
    python tests/support/zoo/sweep.py --page             docs/coverage.md from what the sweep has found so far

Every member runs in a process of its own, and those that build/coverage.jsonl has already are left out, so an
interrupted sweep goes on where it was. The models come from timm and pytorchcv (`make slow` installs both).
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(HERE.parent))  # the other helpers of the tests

import onnx  # noqa: E402
import torch  # noqa: E402
from chain_law import check_chain_law, run_chain  # noqa: E402
from helpers import assert_close, open_session, random_images, run  # noqa: E402

from s2d_convert.channels.analysis import AnalysedModel, Channels, analyse  # noqa: E402
from s2d_convert.frontend.graph import Graph  # noqa: E402
from s2d_convert.frontend.load import graph_from_proto  # noqa: E402
from s2d_convert.plans.exit_points import candidate_taps  # noqa: E402
from s2d_convert.plans.plan import Plan  # noqa: E402
from s2d_convert.plans.weights import Weights, static_weights  # noqa: E402
from s2d_convert.slicing.split import split  # noqa: E402
from s2d_convert.workflows.inspect import describe  # noqa: E402
from zoo.page import page  # noqa: E402
from zoo.sources import build  # noqa: E402
from zoo.table import MEMBERS, Member  # noqa: E402

FOUND = ROOT / "build" / "coverage.jsonl"
PAGE = ROOT / "docs" / "coverage.md"
TIMEOUT_S = 900
MOST_TAPS = 3  # depth exits that are tried per member
BATCH = 2
ACROSS = 1e-3  # between onnxruntime and torch, which sum in other orders; inside onnxruntime it is 1e-4


def export(member: Member) -> onnx.ModelProto:
    """The ONNX file of a member with random weights, BatchNorm folded, a dynamic batch."""
    net = build(member.source, member.name, member.size)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.randn(1, 3, member.size, member.size),),
            cast(Any, buffer),
            dynamo=False,
            input_names=["input"],
            output_names=["output"],
            opset_version=17,
            dynamic_axes={"input": {0: "N"}, "output": {0: "N"}},
        )
    return onnx.load_from_string(buffer.getvalue())


class Trial:
    """One member on its way; `found` is what the page is made of."""

    def __init__(self, member: Member) -> None:
        self.found: dict[str, Any] = {"family": member.family, "name": member.name, "size": member.size}
        self.step = ""

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """A step that `found` gets the seconds of."""
        self.step, start = step, time.perf_counter()
        yield
        self.found[f"{step}_s"] = round(time.perf_counter() - start, 2)

    def run(self, member: Member, seeds: int) -> None:
        """Every step up to the first that fails."""
        with self.timed("export"):
            model = export(member)
        self.found["mib"] = round(model.ByteSize() / 2**20, 1)
        with self.timed("load"):
            graph = graph_from_proto(model)
        with self.timed("analyse"):
            channels = analyse(graph)
        weights = static_weights(graph, channels)
        with self.timed("split"):
            split(graph, channels, Plan((graph.output,), (1,) * channels.units), weights)
        about = describe(AnalysedModel(graph, channels))
        reasons = sorted({f"{n['op']}: {n['reason']}" for n in about["opaque"]})
        self.found |= {
            "nodes": len(graph.nodes),
            "splits": about["splittable_macs"],
            "taps": len(about["taps"]),
            "opaque": reasons,
            "unsupported": sorted({n["op"] for n in about["unsupported"]}),
        }
        self.check(model, graph, channels, weights, seeds)

    def check(self, model: onnx.ModelProto, graph: Graph, channels: Channels, weights: Weights, seeds: int) -> None:
        """The identity, depth and width laws."""
        feeds = random_images(model, BATCH, 0)
        expected = answer(graph.to_model(), feeds)
        assert_close(answer(model, feeds), expected, rel=1e-3, what="the simplified model")
        ones = (1,) * channels.units
        with self.timed("identity"):
            (stage,) = split(graph, channels, Plan((graph.output,), ones), weights)
            assert_close(answer(stage.model, feeds), expected, what="identity")
        with self.timed("depth"):
            taps = candidate_taps(AnalysedModel(graph, channels))
            for tap in taps[:: max(1, len(taps) // MOST_TAPS)][:MOST_TAPS]:
                stages = split(graph, channels, Plan((tap, graph.output), ones), weights)
                last = run_chain(stages, feeds, optimise=False)[-1]
                assert_close(last["output"], expected, what=f"depth exit at {tap}")
        with self.timed("width"):
            for seed in range(seeds):
                check_chain_law(model, seed, rel=ACROSS)


def answer(model: onnx.ModelProto, feeds: dict[str, Any]) -> Any:
    """The first output of a model, computed without optimisations: deep nets with random weights amplify rounding."""
    return next(iter(run(open_session(model, optimise=False), feeds).values()))


def attempt(member: Member, seeds: int) -> dict[str, Any]:
    """What happened to a member; `failed` names the step that it did not pass."""
    torch.set_num_threads(1)
    trial = Trial(member)
    try:
        trial.run(member, seeds)
    except Exception as error:  # noqa: BLE001 - whatever it is, the page shall show it
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = (str(error).strip().splitlines() or [""])[0]
        trial.found |= {"failed": trial.step, "error": f"{type(error).__name__}: {text[:300]} ({where.name})"}
    trial.found["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return trial.found


def in_own_process(member: Member, seeds: int) -> dict[str, Any]:
    """`attempt`, where a crash or a model that never ends is only the member's own."""
    command = [sys.executable, __file__, "--one", member.name, "--seeds", str(seeds)]
    about = {"family": member.family, "name": member.name, "size": member.size}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return about | {"failed": "time", "error": f"more than {TIMEOUT_S} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return about | {"failed": "process", "error": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def known(path: Path) -> dict[str, dict[str, Any]]:
    """What a sweep has found so far, by the member's name."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {entry["name"]: entry for entry in map(json.loads, lines)}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="words, with commas; members whose name holds one of them")
    parser.add_argument("--seeds", type=int, default=1, help="random plans per member")
    parser.add_argument("--out", type=Path, default=FOUND)
    parser.add_argument("--page", action="store_true", help="write docs/coverage.md and stop")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        member = next(m for m in MEMBERS if m.name == args.one)
        sys.stdout.write(json.dumps(attempt(member, args.seeds)) + "\n")
        return
    if args.page:
        PAGE.write_text(page(known(args.out)), encoding="utf-8")
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    words, done = args.only.split(","), known(args.out)
    for member in MEMBERS:
        if member.name not in done and any(word in member.name for word in words):
            found = in_own_process(member, args.seeds)
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            sys.stderr.write(f"{member.name}: {found.get('error', 'passed')}\n")


if __name__ == "__main__":
    main()
