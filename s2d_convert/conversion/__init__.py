"""The steps of a conversion, from options to the exported folder.

The entry point is `convert(options, reporter)`. The names of this package are loaded on first use, so that `ConvertOptions`
does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from s2d_convert._lazy import lazy_names

if TYPE_CHECKING:
    from s2d_convert.base.reporting import Reporter
    from s2d_convert.conversion.estimate import Forecast
    from s2d_convert.conversion.finish import Result
    from s2d_convert.conversion.options import ConvertOptions
    from s2d_convert.conversion.pipeline import convert, dry_run

__all__ = ["ConvertOptions", "Forecast", "Reporter", "Result", "convert", "dry_run"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ConvertOptions": "s2d_convert.conversion.options",
        "Reporter": "s2d_convert.base.reporting",
        "Result": "s2d_convert.conversion.finish",
        "Forecast": "s2d_convert.conversion.estimate",
        "convert": "s2d_convert.conversion.pipeline",
        "dry_run": "s2d_convert.conversion.pipeline",
    },
)
