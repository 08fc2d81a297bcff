"""The same tiny search on a two-node Ray cluster and without one; prints how many plans both met, and whether they agree.

    spread_check.py PLACE

Runs where s2d-convert and Ray are installed, not under pytest. What is compared does not hang on the clock.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ray.cluster_utils import Cluster
from tiny import EFFORT, TINY, Listener, ask, make_model, quadrants

from s2d_convert.conversion import options
from s2d_convert.conversion.pipeline import convert


def found(place: Path, name: str, address: str | None) -> dict[str, Any]:
    """The accuracy of every exit of every plan that a conversion has tried."""
    convert(ask(place, out=place / name, ray=address), Listener())
    lines = [json.loads(line) for line in (place / name / "search.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["method"] != "finals"]  # who goes on in the finals hangs on the clock
    return {json.dumps(line["plan"]): line["info"]["exit_accuracy"] for line in lines}


def main(place: Path) -> None:
    """Convert twice and compare."""
    vars(options)["EFFORTS"] = {**options.EFFORTS, TINY: EFFORT}
    make_model(place / "tiny.onnx")
    images, labels = quadrants(400, 1)
    np.savez(place / "data.npz", images=images, labels=labels)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    spread, plain = found(place, "spread", cluster.address), found(place, "plain", None)
    common = set(spread) & set(plain)
    same = all(spread[plan] == plain[plan] for plan in common)
    sys.stdout.write(json.dumps({"common": len(common), "same": same}) + "\n")
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
