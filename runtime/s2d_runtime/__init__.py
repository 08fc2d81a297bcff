"""Run a folder that s2d-convert exported. Needs numpy and onnxruntime only.

``Dispatcher("OUT")(images)`` answers with `output`, `stage` and `confidence` per image, ``Classifier("OUT")("photo.jpg")``
with names; pictures need Pillow too (the extra `images`), which is imported when the first one is read.
"""

from __future__ import annotations

import sys

try:
    from s2d_runtime.classifier import Classifier, Label, Prediction
    from s2d_runtime.dispatcher import (
        Answer,
        Dispatcher,
        DispatcherError,
        Exactness,
        Link,
        Manifest,
        Monitor,
        MonitorReport,
        OutputSpec,
        Policy,
        Promise,
        Stage,
        TensorSpec,
        histogram,
        leaves,
        trial,
    )
except ModuleNotFoundError as missing:
    if sys.argv[:1] != ["-m"]:  # what it is while Python looks for the module of `python -m s2d_runtime.calibrate`
        raise
    sys.exit(f"{missing.name} is not installed for this Python; pip install numpy onnxruntime")

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Classifier",
    "Dispatcher",
    "DispatcherError",
    "Exactness",
    "Label",
    "Link",
    "Manifest",
    "Monitor",
    "MonitorReport",
    "OutputSpec",
    "Policy",
    "Prediction",
    "Promise",
    "Stage",
    "TensorSpec",
    "__version__",
    "histogram",
    "leaves",
    "trial",
]
