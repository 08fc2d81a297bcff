"""A plan as people see it: how many channels of every layer each stage computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.image_scale import at_scale
from s2d_convert.channels.macs import PRODUCTS
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.plan import Conversion

MOST_NAME = 80  # characters


@dataclass(frozen=True)
class Layer:
    """A layer with weights: its name, its channels in the static model, and those that each stage computes [S]."""

    name: str
    channels: int
    made: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        return {"name": self.name, "channels": self.channels, "made": list(self.made)}

    @staticmethod
    def from_json(data: object) -> Layer | None:
        """Read the dict that `to_json` wrote, None where it is something else."""
        if not isinstance(data, Mapping):
            return None
        name, channels, made = data.get("name"), data.get("channels"), data.get("made")
        counts = [channels, *made] if isinstance(made, list | tuple) else [None]
        if not isinstance(name, str) or not all(isinstance(n, int) and 0 <= n < 2**31 for n in counts) or not channels:
            return None
        return Layer(name, int(counts[0] or 0), tuple(int(n or 0) for n in counts[1:]))


def layers_of(model: AnalysedModel, conversion: Conversion) -> list[Layer]:
    """Return the layers with weights in the order of the graph, with the channels that the stages of all chains compute.

    Channels that are always zero in a chain, such as those of a block that it leaves out, count as not computed.
    """
    channels, made = dict[str, int](), dict[str, list[int]]()
    first = 0 if conversion.first is None else 1
    for chain in conversion.chains:
        scaled = at_scale(model, chain.scale)
        effective = Effective(scaled, chain)
        for node in scaled.graph.nodes:
            out = node.outputs[0]
            if node.op not in PRODUCTS or out not in scaled.channels.layouts:
                continue
            counts = made.setdefault(node.name, [0] * conversion.stages)
            channels.setdefault(node.name, len(effective.of(out)))
            if node.name in effective.depth:
                stages, live = effective.of(out), effective.live(out)
                for stage in range(1, chain.stages + 1):
                    counts[first + stage - 1] = int(((stages == stage) & live).sum())
        first += chain.stages
    return [Layer(name[:MOST_NAME], channels[name], tuple(counts)) for name, counts in made.items()]
