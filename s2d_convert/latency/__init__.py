"""Latency of stages: measured in onnxruntime, or predicted from a device's table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from s2d_convert.latency.device_table import Table, read_table
from s2d_convert.latency.meter import Meter, Timing, interleave, time_round

__all__ = ["LatencyMeter", "Meter", "Table", "Timing", "interleave", "read_table", "time_round"]


class LatencyMeter(Protocol):
    """A source of stage latencies: `Meter` measures them, `Table` predicts them."""

    def measure(self, models: Sequence[bytes], /) -> Timing:
        """Return the latencies of stages that run in this order, each handing its links to the next ones."""
