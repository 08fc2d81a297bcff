"""The numbers of an export as another device has them: answers and exits from here, latencies from its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from s2d_convert.exporting.measure import Measured, PathCosts
from s2d_convert.latency.device_table import Table
from s2d_convert.slicing.split import StageModel


def predicted_costs(table: Table, models: Sequence[StageModel]) -> PathCosts:
    """What the table says of every way out."""
    timing = table.measure([m.model.SerializeToString() for m in models])
    return PathCosts(tuple(np.cumsum(timing.ratios).tolist()), timing.reference_ms)


def measured_elsewhere(measured: Measured, costs: PathCosts) -> Measured:
    """The same answers and exits, with latencies as a device with these costs has them."""
    share, upto = np.array(measured.exit_share), np.array(costs.ratios)
    median = float(upto[np.searchsorted(np.cumsum(share), 0.5 - 1e-9)])
    return replace(
        measured,
        static_ms=costs.static_ms,
        mean_latency=float(share @ upto),
        median_latency=median,
        worst_latency=float(upto[-1]),
    )
