"""s2d-convert: make a multi-stage network of a static CNN classifier in ONNX.

The command line is the main door (`s2d`, `s2d-convert`). From Python, `convert` does the whole job; `load_graph`,
`analyse`, `split_graph` and `Plan` are for people who want to cut graphs themselves.

Names are loaded when they are first used, so that importing the package costs nothing and loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2d_convert.channels import Channels, analyse
    from s2d_convert.errors import S2DError
    from s2d_convert.graph import Graph
    from s2d_convert.load import load_graph
    from s2d_convert.options import ConvertOptions
    from s2d_convert.pipeline import Result, convert
    from s2d_convert.plan import Conversion, Plan
    from s2d_convert.split import StageModel
    from s2d_convert.split import split as split_graph
    from s2d_convert.terminal import TerminalReporter
    from s2d_convert.weights import Weights, static_weights

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
    "Channels": "channels",
    "Conversion": "plan",
    "ConvertOptions": "options",
    "Graph": "graph",
    "Plan": "plan",
    "Result": "pipeline",
    "S2DError": "errors",
    "StageModel": "split",
    "TerminalReporter": "terminal",
    "Weights": "weights",
    "analyse": "channels",
    "convert": "pipeline",
    "load_graph": "load",
    "split_graph": "split:split",
    "static_weights": "weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 's2d_convert' has no attribute {name!r}")
    home, _, own_name = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"s2d_convert.{home}"), own_name or name)
