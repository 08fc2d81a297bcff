"""Plans: which channel unit belongs to which stage, and where every stage is tapped.

A `Plan` is one chain; a `Conversion` is one or several chains, run one after the other. Both are plain
data: canonical, hashable and JSON. What a plan means is in `assignment`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from s2d_convert.channels.analysis import AnalysedModel, Channels
from s2d_convert.channels.atoms import FREE
from s2d_convert.channels.image_scale import SCALES
from s2d_convert.errors import UsageError
from s2d_convert.frontend.graph import Graph
from s2d_convert.plans.exit_points import pooled_axis

PRUNED = 0  # the stage of a unit that no stage computes
MAX_STAGES = 4
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """One chain: `taps[k]` is the tensor that stage k + 1 is read at (the last is the model's logits),
    `stages_of_units[u]` the stage 1..S of unit u, or 0 when it is pruned, and `scale` the part of each side of the image
    that it reads."""

    taps: tuple[str, ...]
    stages_of_units: tuple[int, ...]
    scale: float = 1.0

    @property
    def stages(self) -> int:
        """S, the number of stages."""
        return len(self.taps)


@dataclass(frozen=True)
class FirstNetwork:
    """A network of the user's own that is the first chain, of one stage. No plan of the model describes it: its file and that
    file's hash stand for it."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Conversion:
    """The chains of a conversion, in the order in which they run; before them comes `first`, if there is one."""

    chains: tuple[Plan, ...]
    first: FirstNetwork | None = None

    @property
    def stages(self) -> int:
        """The number of stages of all chains together."""
        return sum(self.stages_of_chains)

    @property
    def stages_of_chains(self) -> tuple[int, ...]:
        """The number of stages of every chain, in order, that of `first` included."""
        return (*(() if self.first is None else (1,)), *(chain.stages for chain in self.chains))

    @property
    def later(self) -> tuple[Plan, ...]:
        """All chains but the first."""
        return self.chains[1:] if self.first is None else self.chains

    def to_json(self, channels: Channels) -> dict[str, Any]:
        """Return a JSON-able dict; units are listed per class as run lengths such as '1x8 2x8'."""
        first = [] if self.first is None else [asdict(self.first)]
        return {"version": FORMAT_VERSION, "chains": [*first, *(_chain_to_json(c, channels) for c in self.chains)]}

    @staticmethod
    def from_json(data: Any, channels: Channels) -> Conversion:
        """Read the dict that `to_json` wrote. Raises UsageError naming what is wrong."""
        if not isinstance(data, dict) or data.get("version") != FORMAT_VERSION:
            raise UsageError(f'plan: expected an object with "version": {FORMAT_VERSION}; see docs/plan.md')
        chains = data.get("chains")
        if not isinstance(chains, list) or not chains:
            raise UsageError('plan: "chains" must be a list with at least one chain; see docs/plan.md')
        return Conversion(tuple(_chain_from_json(c, i, channels) for i, c in enumerate(chains)))

    def digest(self) -> str:
        """Return a short hash; equal conversions of one model have equal hashes."""
        first = [] if self.first is None else [[self.first.sha256]]
        plans = [[c.taps, c.stages_of_units, *([] if c.scale == 1 else [c.scale])] for c in self.chains]
        text = json.dumps([*first, *plans])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _chain_to_json(plan: Plan, channels: Channels) -> dict[str, Any]:
    units = {}
    for group in channels.classes:
        stages = [plan.stages_of_units[u] for u in group.units]
        starts = [i for i in range(len(stages)) if i == 0 or stages[i] != stages[i - 1]]
        ends = [*starts[1:], len(stages)]
        units[group.name] = " ".join(f"{stages[a]}x{b - a}" for a, b in zip(starts, ends, strict=True))
    return {"taps": list(plan.taps), "units": units, **({} if plan.scale == 1 else {"scale": plan.scale})}


def _chain_from_json(data: Any, index: int, channels: Channels) -> Plan:
    where = f"plan: chain {index + 1}"
    if isinstance(data, dict) and "file" in data:
        raise UsageError(
            f"{where} is a network of its own, {data['file']!r}, which no plan describes; give it with --first"
        )
    if not isinstance(data, dict) or not isinstance(data.get("taps"), list) or not isinstance(data.get("units"), dict):
        raise UsageError(f'{where}: expected "taps" (a list) and "units" (an object); see docs/plan.md')
    taps = data["taps"]
    if not all(isinstance(t, str) for t in taps) or not 1 <= len(taps) <= MAX_STAGES:
        raise UsageError(f'{where}: "taps" must be 1 to {MAX_STAGES} tensor names, got {taps!r}')
    known = {group.name: group for group in channels.classes}
    unknown = [name for name in data["units"] if name not in known]
    if unknown:
        raise UsageError(f"{where}: the model has no channel class {unknown[0]!r}; `s2d inspect` lists its classes")
    stages = np.ones(channels.units, dtype=np.int64)
    for name, runs in data["units"].items():
        stages[list(known[name].units)] = _read_runs(runs, len(known[name].units), f"{where}: class {name!r}")
    return Plan(tuple(taps), tuple(stages.tolist()), _read_scale(data.get("scale", 1), where))


def _read_scale(scale: Any, where: str) -> float:
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or scale not in (1, *SCALES):
        allowed = ", ".join(f"{s:g}" for s in sorted(SCALES))
        raise UsageError(f'{where}: "scale" must be {allowed} or 1, got {scale!r}')
    return float(scale)


def _read_runs(runs: Any, expected: int, where: str) -> list[int]:
    try:
        pairs = [tuple(int(n) for n in run.split("x")) for run in runs.split()]
        stages = [stage for stage, count in pairs for _ in range(min(count, expected + 1))]
    except (AttributeError, ValueError) as error:
        raise UsageError(f"{where}: expected run lengths such as '1x8 2x8', got {runs!r}") from error
    if len(stages) != expected or not all(0 <= stage <= MAX_STAGES for stage in stages):
        raise UsageError(f"{where}: {runs!r} names {len(stages)} units; the class has {expected}, stages are 0 to S")
    return stages


def identity_plan(model: AnalysedModel) -> Plan:
    """Return the plan of one stage that holds everything: the static model."""
    return Plan((model.graph.output,), (1,) * model.channels.units)


def check_plan(model: AnalysedModel, plan: Plan) -> None:
    """Raise UsageError unless a chain names units, stages and taps of this graph."""
    if len(plan.stages_of_units) != model.channels.units:
        raise UsageError(
            f"plan: {len(plan.stages_of_units)} units, but the model has {model.channels.units}; it is another model's plan"
        )
    if not 1 <= plan.stages <= MAX_STAGES:
        raise UsageError(f"plan: {plan.stages} stages; 1 to {MAX_STAGES} are allowed")
    high = max(plan.stages_of_units, default=1)
    if high > plan.stages:
        raise UsageError(f"plan: a unit is given to stage {high}, but there are only {plan.stages} taps")
    for index, tap in enumerate(plan.taps):
        if tap == model.graph.output and index == plan.stages - 1:
            continue
        if tap not in model.channels.layouts or tap in (model.graph.output, model.graph.image):
            raise UsageError(f"plan: '{tap}' cannot be a tap; `s2d inspect` lists the candidates")
        if pooled_axis(model, tap) is None:
            raise UsageError(
                f"plan: tap '{tap}' of shape {model.graph.shapes[tap]} is neither a feature map nor a feature vector"
            )
    for unit in model.channels.layouts[model.graph.output].units:
        if unit != FREE and plan.stages_of_units[unit] == PRUNED:
            raise UsageError("plan: a unit of the logits is pruned; only inner units can be")


def is_untouched(graph: Graph, plan: Plan) -> bool:
    """Return whether a chain is the static model as it is."""
    return plan == Plan((graph.output,), (1,) * len(plan.stages_of_units))
