"""s2d-convert: make a multi-stage network of a static CNN classifier in ONNX.

The command line is the main door (`s2d`, `s2d-convert`). From Python, `convert` does the whole job; `load_graph`,
`analyse`, `split` and `Plan` are for people who want to cut graphs themselves.
"""

from s2d_convert.channels import Channels, analyse
from s2d_convert.errors import S2DError
from s2d_convert.graph import Graph, load_graph
from s2d_convert.options import ConvertOptions
from s2d_convert.pipeline import Result, convert
from s2d_convert.plan import Conversion, Plan
from s2d_convert.split import StageModel, split
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
    "split",
    "static_weights",
]
