"""s2d-convert: make a multi-stage network of a static CNN classifier in ONNX.

`convert`, `forecast`, `inspect`, `calibrate`, `evaluate` and `export` do what the commands of `s2d` do, with keyword arguments:

    result = s2d_convert.convert("model.onnx", data="images/", budget=0.5)

`load_graph`, `analyse`, `split_graph` and `Plan` are for people who want to cut graphs themselves.

Names are loaded when they are first used, so that importing the package costs nothing and loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from s2d_convert._lazy import lazy_names

if TYPE_CHECKING:
    from s2d_convert.api.functions import calibrate, convert, evaluate, export, forecast, inspect
    from s2d_convert.api.results import (
        CalibrateResult,
        ConvertResult,
        EvaluateResult,
        ExportResult,
        ForecastResult,
        InspectResult,
    )
    from s2d_convert.channels.analysis import Channels, analyse
    from s2d_convert.cli.progress import TerminalReporter
    from s2d_convert.conversion.options import ConvertOptions
    from s2d_convert.conversion.pipeline import Result
    from s2d_convert.errors import (
        DataError,
        ModelError,
        OutputError,
        PromiseError,
        S2DError,
        StaticCheckError,
        UsageError,
        VerifyError,
    )
    from s2d_convert.frontend.graph import Graph
    from s2d_convert.frontend.load import load_graph
    from s2d_convert.plans.plan import Conversion, Plan
    from s2d_convert.plans.weights import Weights, static_weights
    from s2d_convert.slicing.split import StageModel
    from s2d_convert.slicing.split import split as split_graph

__all__ = [
    "CalibrateResult",
    "Channels",
    "Conversion",
    "ConvertOptions",
    "ConvertResult",
    "DataError",
    "EvaluateResult",
    "ExportResult",
    "ForecastResult",
    "Graph",
    "InspectResult",
    "ModelError",
    "OutputError",
    "Plan",
    "PromiseError",
    "Result",
    "S2DError",
    "StageModel",
    "StaticCheckError",
    "TerminalReporter",
    "UsageError",
    "VerifyError",
    "Weights",
    "analyse",
    "calibrate",
    "convert",
    "evaluate",
    "export",
    "forecast",
    "inspect",
    "load_graph",
    "split_graph",
    "static_weights",
]

__version__: str

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "__version__": "s2d_convert._version:VERSION",
        "CalibrateResult": "s2d_convert.api.results",
        "Channels": "s2d_convert.channels.analysis",
        "Conversion": "s2d_convert.plans.plan",
        "ConvertOptions": "s2d_convert.conversion.options",
        "ConvertResult": "s2d_convert.api.results",
        "DataError": "s2d_convert.errors",
        "EvaluateResult": "s2d_convert.api.results",
        "ExportResult": "s2d_convert.api.results",
        "ForecastResult": "s2d_convert.api.results",
        "Graph": "s2d_convert.frontend.graph",
        "InspectResult": "s2d_convert.api.results",
        "ModelError": "s2d_convert.errors",
        "OutputError": "s2d_convert.errors",
        "Plan": "s2d_convert.plans.plan",
        "PromiseError": "s2d_convert.errors",
        "Result": "s2d_convert.conversion.pipeline",
        "S2DError": "s2d_convert.errors",
        "StageModel": "s2d_convert.slicing.split",
        "StaticCheckError": "s2d_convert.errors",
        "TerminalReporter": "s2d_convert.cli.progress",
        "UsageError": "s2d_convert.errors",
        "VerifyError": "s2d_convert.errors",
        "Weights": "s2d_convert.plans.weights",
        "analyse": "s2d_convert.channels.analysis",
        "calibrate": "s2d_convert.api.functions",
        "convert": "s2d_convert.api.functions",
        "evaluate": "s2d_convert.api.functions",
        "export": "s2d_convert.api.functions",
        "forecast": "s2d_convert.api.functions",
        "inspect": "s2d_convert.api.functions",
        "load_graph": "s2d_convert.frontend.load",
        "split_graph": "s2d_convert.slicing.split:split",
        "static_weights": "s2d_convert.plans.weights",
    },
)
