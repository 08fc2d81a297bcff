"""The idx files of MNIST and its followers (LeCun, Cortes and Burges): a type, the shape in big-endian numbers, the values."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

UNSIGNED_BYTES = 0x08


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the values of an idx file of unsigned bytes, gzipped or not, in its shape; raises ValueError for any other file."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != UNSIGNED_BYTES:
        raise ValueError(f"{path}: begins with {data[:4].hex()}, expected 000008 and the number of axes")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise ValueError(f"{path}: ends within its shape")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise ValueError(f"{path}: holds {len(data) - start} values, its shape {shape} needs {math.prod(shape)}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
