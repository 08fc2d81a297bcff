"""`s2d calibrate --pack`: images in one file, for a calibration on a device without this package."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from s2d_runtime import Manifest

from s2d_convert.base.files import write_bytes
from s2d_convert.calibration.task import task_of
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_calibration
from s2d_convert.data.reading import Reading
from s2d_convert.errors import OutputError
from s2d_convert.exporting.provenance import recorded_preprocess


def pack_images(folder: Path, data: Path, out: Path, *, reading: Reading) -> int:
    """Write an .npz with the images that a calibration of `folder` would use, and return their number.

    They are pixels as the preprocessing takes them, or model input, with labels if there are any, as
    ``python -m s2d_runtime.calibrate`` reads them. Raises S2DError or DispatcherError.
    """
    manifest = Manifest.load(folder)
    classes = int(np.prod([n or 1 for n in manifest.output.shape[1:]]))
    space = LabelSpace(classes, task_of(manifest.output.kind).several)
    images = load_calibration(data, preprocess=recorded_preprocess(manifest), space=space, reading=reading)
    arrays = {"images": images.raw(slice(None))}
    if images.labels is not None:
        arrays["labels"] = images.labels
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # numpy's stubs take the arrays for its option allow_pickle
    try:
        write_bytes(out, content.getvalue())
    except OSError as error:
        raise OutputError(f"--pack {out}: cannot be written ({error.strerror}); choose another file") from error
    return len(images)
