"""Tiny nets, one for each pattern of real exports that tends to break importers.

`PATTERNS[name]()` is an ONNX model: images [N or 1, 3, H, W] (or channels last) -> logits [N, 10]. Adding a pattern is
one function with `@pattern` in one of the modules here.
"""

from __future__ import annotations

from patterns import (
    arithmetic,
    batches,
    channels_last,
    gates,
    mixed,
    norms,
    odd,
    opsets,
    padding,
    pooling,
    rare,
    sampling,
    shuffles,
    weights,
)
from patterns.base import PATTERNS, Pattern

__all__ = ["PATTERNS", "Pattern"]

# Importing these modules fills the table.
MODULES = (
    *(arithmetic, batches, channels_last, gates, mixed, norms, odd),
    *(opsets, padding, pooling, rare, sampling, shuffles, weights),
)
