"""Calibrate an exported folder on the device that runs it: thresholds for the latencies of that device.

    python -m s2d_runtime.calibrate OUT data.npz --model model.onnx

It needs numpy and onnxruntime only. The stages stay as they are, so a folder that was made on another machine, quantised or
not, gets thresholds that suit this one. `data` reads images, `answers` collects what stages say on them, `timing` measures,
`run` chooses policies and publishes the manifest.
"""

from __future__ import annotations

from s2d_runtime.calibrate.run import Calibrated, Options, calibrate, undo

__all__ = ["Calibrated", "Options", "calibrate", "undo"]
