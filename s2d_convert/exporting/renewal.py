"""A new calibration of a folder that is there, and the way back.

A reader never sees half: stage files with a new temperature get new names, and the one step that counts is the
replacement of manifest.json. What was there before stays readable until the next calibration, and comes back by `undo`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
from s2d_runtime import DispatcherError, Manifest, Stage

from s2d_convert.base.files import write_bytes
from s2d_convert.base.sessions import Running
from s2d_convert.errors import OutputError
from s2d_convert.exporting.folder import MANIFEST, REPORT, FolderWriter, read_stage, with_stages
from s2d_convert.exporting.quantize import set_temperature

UNDO = "undo"
RENEWED_FILE = re.compile(r"stage\d+\.[0-9a-f]{12}\.onnx")  # stage files that a calibration wrote


@contextmanager
def renewed_folder(
    folder: Path, manifest: Manifest, temperatures: Sequence[float], *, running: Running
) -> Iterator[FolderWriter]:
    """The stages of `folder` with other temperatures, beside it, to be completed in the block; they and the new manifest
    come into the folder when the block ends well and the dispatcher has run them. Raises OutputError, and then the folder
    is as it was."""
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}.", suffix=".partial", dir=folder.resolve().parent
        ) as place:
            files = [
                _tempered(read_stage(folder, stage), stage.temperature, temperature)
                for stage, temperature in zip(manifest.stages, temperatures, strict=True)
            ]
            names = [_file_name(stage, data) for stage, data in zip(manifest.stages, files, strict=True)]
            stages = with_stages(manifest, temperature=temperatures, file=names)
            writer = FolderWriter(Path(place), manifest, running)
            writer.update(stages=stages)
            writer.add_stages(files)
            yield writer
            writer.try_out()
            _publish(writer.folder, folder)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written ({error.strerror or error}); the folder is as it was"
        ) from error


def _tempered(data: bytes, before: float, temperature: float) -> bytes:
    """Return a stage file with another temperature in it."""
    if temperature == before:
        return data
    model = onnx.load_from_string(data)
    set_temperature(model, temperature)
    return model.SerializeToString()


def _file_name(stage: Stage, data: bytes) -> str:
    """Return the name of a stage file: a new one for new content."""
    digest = hashlib.sha256(data).hexdigest()
    return stage.file if digest == stage.sha256 else f"{stage.file.split('.')[0]}.{digest[:12]}.onnx"


def _publish(place: Path, folder: Path) -> None:
    """Bring everything from `place` into the folder: the stage files under names that nobody reads yet, the old manifest
    to where `undo` finds it, and at last the new manifest."""
    (folder / UNDO).mkdir(exist_ok=True)
    for file in place.glob("*.onnx"):
        if not (folder / file.name).exists():
            file.replace(folder / file.name)
    for name in (MANIFEST, REPORT):
        if (folder / name).is_file():
            write_bytes(folder / UNDO / name, (folder / name).read_bytes())
    (place / MANIFEST).replace(folder / MANIFEST)
    (place / REPORT).replace(folder / REPORT)
    _remove_unused(folder)


def undo(folder: Path) -> None:
    """Bring back what the last calibration replaced. Raises OutputError when there is nothing to bring back."""
    saved = folder / UNDO
    if not (saved / MANIFEST).is_file():
        raise OutputError(
            f"{folder}: nothing to undo; the folder was not calibrated since it was made, or that is undone"
        )
    try:
        Manifest.load(saved)
        (saved / MANIFEST).replace(folder / MANIFEST)
        if (saved / REPORT).is_file():
            (saved / REPORT).replace(folder / REPORT)
        shutil.rmtree(saved)
        _remove_unused(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}); check its permissions") from error
    except DispatcherError as error:
        raise OutputError(f"{saved}: cannot be brought back ({error}); remove it") from error


def _remove_unused(folder: Path) -> None:
    """Remove stage files of earlier calibrations that neither the manifest nor the one to undo to names."""
    saved = [folder / UNDO] if (folder / UNDO / MANIFEST).is_file() else []
    used = {stage.file for place in (folder, *saved) for stage in Manifest.load(place).stages}
    for file in folder.glob("stage*.onnx"):
        if RENEWED_FILE.fullmatch(file.name) and file.name not in used:
            file.unlink()
