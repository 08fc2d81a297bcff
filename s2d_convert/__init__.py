"""s2d-convert: make a multi-stage network of a static CNN classifier in ONNX.

The command line is the main door (`s2d`, `s2d-convert`). From Python, `convert` does the whole job; `load_graph`,
`analyse`, `split_graph` and `Plan` are for people who want to cut graphs themselves.

Names are loaded when they are first used, so that importing the package costs nothing and loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2d_convert.channels.analysis import Channels, analyse
    from s2d_convert.cli.terminal import TerminalReporter
    from s2d_convert.conversion.options import ConvertOptions
    from s2d_convert.conversion.pipeline import Result, convert
    from s2d_convert.errors import S2DError
    from s2d_convert.frontend.graph import Graph
    from s2d_convert.frontend.load import load_graph
    from s2d_convert.plans.plan import Conversion, Plan
    from s2d_convert.plans.weights import Weights, static_weights
    from s2d_convert.slicing.split import StageModel
    from s2d_convert.slicing.split import split as split_graph

__all__ = [
    "Channels",
    "Conversion",
    "ConvertOptions",
    "Graph",
    "Plan",
    "Result",
    "S2DError",
    "StageModel",
    "TerminalReporter",
    "Weights",
    "analyse",
    "convert",
    "load_graph",
    "split_graph",
    "static_weights",
]

# Where a name lives; `module:name` where it is called otherwise there (the module `split` already has that name here).
_HOMES = {
    "Channels": "channels.analysis",
    "Conversion": "plans.plan",
    "ConvertOptions": "conversion.options",
    "Graph": "frontend.graph",
    "Plan": "plans.plan",
    "Result": "conversion.pipeline",
    "S2DError": "errors",
    "StageModel": "slicing.split",
    "TerminalReporter": "cli.terminal",
    "Weights": "plans.weights",
    "analyse": "channels.analysis",
    "convert": "conversion.pipeline",
    "load_graph": "frontend.load",
    "split_graph": "slicing.split:split",
    "static_weights": "plans.weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 's2d_convert' has no attribute {name!r}")
    home, _, own_name = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"s2d_convert.{home}"), own_name or name)
