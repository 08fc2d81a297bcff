"""Foundations that know nothing of models: files that are written completely or not at all, arrays, numbers as text.

`base.sessions` holds the onnxruntime sessions. It is not imported here, so that the list of commands can be shown without
loading onnx.
"""

from s2d_convert.base.arrays import Array, slices
from s2d_convert.base.files import check_out, whole_folder, write_bytes, write_json
from s2d_convert.base.text import listed, promise_cost, promise_text, quantity

__all__ = [
    "Array",
    "check_out",
    "listed",
    "promise_cost",
    "promise_text",
    "quantity",
    "slices",
    "whole_folder",
    "write_bytes",
    "write_json",
]
