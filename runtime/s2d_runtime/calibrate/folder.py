"""A new manifest for an existing folder: tried out beside it, then put in place in one step; and the way back."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from s2d_runtime.dispatcher import MANIFEST, DispatcherError, Manifest

UNDO = "undo"  # where `s2d calibrate --undo` looks too
PAGES = (
    "report.html",
    "README.md",
)  # what the converter writes about a folder; a calibration here leaves them as they are


def publish(folder: Path, manifest: Manifest, *, try_out: Callable[[Path], None]) -> None:
    """Replace the manifest of a folder, and keep the one before for `restore`.

    try_out: called with a folder that has the same stage files and the new manifest; what it raises leaves `folder` as it was.
    Raises DispatcherError.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".calibrate-", dir=folder) as place:
            trial = Path(place)
            for stage in manifest.stages:
                _link(folder / stage.file, trial / stage.file)
            _write(trial / MANIFEST, (json.dumps(manifest.to_json(), indent=1, allow_nan=False) + "\n").encode())
            try_out(trial)
            saved = folder / UNDO
            saved.mkdir(exist_ok=True)
            for name in PAGES:  # of an earlier calibration, which is no longer the one to go back to
                (saved / name).unlink(missing_ok=True)
            _write(saved / MANIFEST, (folder / MANIFEST).read_bytes())
            (trial / MANIFEST).replace(folder / MANIFEST)
    except OSError as error:
        raise DispatcherError(
            f"{folder}: cannot be written ({error.strerror or error}); the manifest is as it was"
        ) from error


def restore(folder: Path) -> None:
    """Bring back what the last calibration, here or by the converter, replaced. Raises DispatcherError when there is none."""
    saved = folder / UNDO
    if not (saved / MANIFEST).is_file():
        raise DispatcherError(f"{folder}: nothing to undo; the folder was not calibrated since it was made")
    Manifest.load(saved)
    try:
        (saved / MANIFEST).replace(folder / MANIFEST)
        for name in PAGES:
            if (saved / name).is_file():
                (saved / name).replace(folder / name)
        shutil.rmtree(saved)
    except OSError as error:
        raise DispatcherError(f"{folder}: cannot be written ({error.strerror}); check its permissions") from error


def _link(source: Path, target: Path) -> None:
    """Link a file, or copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write(path: Path, data: bytes) -> None:
    """Write a file completely or not at all, and onto the disk: devices lose their power."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
