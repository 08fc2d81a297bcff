"""s2d-convert: make a multi-stage network of a static CNN classifier in ONNX.

The command line is the main door (`s2d`, `s2d-convert`). From Python, `convert` does the whole job; `load_graph`,
`analyse`, `split_graph` and `Plan` are for people who want to cut graphs themselves.

Names are loaded when they are first used, so that importing the package costs nothing and loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from s2d_convert._lazy import lazy_names

if TYPE_CHECKING:
    from s2d_convert.channels.analysis import Channels, analyse
    from s2d_convert.cli.progress import TerminalReporter
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

__version__: str

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "__version__": "s2d_convert._version:VERSION",
        "Channels": "s2d_convert.channels.analysis",
        "Conversion": "s2d_convert.plans.plan",
        "ConvertOptions": "s2d_convert.conversion.options",
        "Graph": "s2d_convert.frontend.graph",
        "Plan": "s2d_convert.plans.plan",
        "Result": "s2d_convert.conversion.pipeline",
        "S2DError": "s2d_convert.errors",
        "StageModel": "s2d_convert.slicing.split",
        "TerminalReporter": "s2d_convert.cli.progress",
        "Weights": "s2d_convert.plans.weights",
        "analyse": "s2d_convert.channels.analysis",
        "convert": "s2d_convert.conversion.pipeline",
        "load_graph": "s2d_convert.frontend.load",
        "split_graph": "s2d_convert.slicing.split:split",
        "static_weights": "s2d_convert.plans.weights",
    },
)
