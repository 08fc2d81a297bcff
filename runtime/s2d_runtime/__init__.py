"""Runs a folder that s2d-convert exported; needs numpy and onnxruntime only.

``Dispatcher("OUT")(images)`` answers with `output`, `stage` and `confidence` per image.
"""

from __future__ import annotations

from s2d_runtime.dispatcher import (
    Answer,
    Dispatcher,
    DispatcherError,
    Link,
    Manifest,
    OutputSpec,
    Policy,
    Stage,
    TensorSpec,
    leaves,
)

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Dispatcher",
    "DispatcherError",
    "Link",
    "Manifest",
    "OutputSpec",
    "Policy",
    "Stage",
    "TensorSpec",
    "__version__",
    "leaves",
]
