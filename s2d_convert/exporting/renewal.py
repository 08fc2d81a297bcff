"""A new calibration of an existing folder, and how to undo it.

A reader never sees a half-written folder. Stage files with a new temperature get new names, and the replacement of
manifest.json makes them valid in one step. The previous state stays in the folder until the next calibration; `undo`
restores it.
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
from s2d_runtime.policies import MAX_LOSS

from s2d_convert.base.files import write_bytes
from s2d_convert.base.sessions import Running
from s2d_convert.calibration.careful import bounded_policies, careful_policies
from s2d_convert.calibration.policies import Chosen, Scores, accurate_policies, budget_policies
from s2d_convert.errors import OutputError
from s2d_convert.exporting.folder import CARD, MANIFEST, REPORT, FolderWriter, read_stage, with_stages
from s2d_convert.exporting.provenance import Origin
from s2d_convert.exporting.quantize import set_temperature

UNDO = "undo"
RENEWED_FILE = re.compile(r"stage\d+\.[0-9a-f]{12}\.onnx")  # stage files that a calibration wrote


def chosen_again(
    manifest: Manifest,
    scores: Scores,
    temperatures: Sequence[float],
    *,
    cost: Sequence[float],
    budget: float | None = None,
    made_up: bool = False,
) -> Chosen:
    """Return policies as the conversion of this folder chose them, from other scores or costs.

    The default is that of `budget`. None: where the conversion had none either, the fastest policy that loses no more than was
    allowed then, else the budget that the folder has. made_up: the scores are from made-up images.
    """
    origin = Origin.of(manifest)
    if budget is None and origin.loss is None:
        budget = manifest.default_budget
    loss = MAX_LOSS if origin.loss is None else origin.loss
    if origin.exact:
        choose = careful_policies if made_up else bounded_policies
        asked = None if budget == 1 else budget  # 1: nothing faster was found
        return choose(scores, temperatures, cost=cost, budget=asked, max_loss=loss)
    if budget is None:
        return accurate_policies(scores, temperatures, cost=cost, max_loss=loss)
    return budget_policies(scores, temperatures, cost=cost, budget=budget)


@contextmanager
def renewed_folder(
    folder: Path, manifest: Manifest, temperatures: Sequence[float], *, running: Running
) -> Iterator[FolderWriter]:
    """Yield the writer of a temporary folder with the stages of `folder` at other temperatures, to be completed in the block.

    Its files are moved into `folder` when the block succeeds and the dispatcher has run them. Raises OutputError, and
    leaves `folder` unchanged then.
    """
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}.", suffix=".partial", dir=folder.resolve().parent
        ) as partial:
            files = [
                _tempered(read_stage(folder, stage), stage.temperature, temperature)
                for stage, temperature in zip(manifest.stages, temperatures, strict=True)
            ]
            names = [_file_name(stage, data) for stage, data in zip(manifest.stages, files, strict=True)]
            stages = with_stages(manifest, temperature=temperatures, file=names)
            writer = FolderWriter(Path(partial), manifest, running, name=folder.resolve().name)
            writer.update(stages=stages)
            writer.add_stages(files)
            yield writer
            writer.add_card()
            writer.try_out()
            _publish(writer.folder, folder)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written ({error.strerror or error}); the folder is as it was"
        ) from error


def _tempered(data: bytes, before: float, temperature: float) -> bytes:
    """Return the content of a stage file with another temperature."""
    if temperature == before:
        return data
    model = onnx.load_from_string(data)
    set_temperature(model, temperature)
    return model.SerializeToString()


def _file_name(stage: Stage, data: bytes) -> str:
    """Return the name of a stage file, which is new if its content is."""
    digest = hashlib.sha256(data).hexdigest()
    return stage.file if digest == stage.sha256 else f"{stage.file.split('.')[0]}.{digest[:12]}.onnx"


def _publish(source: Path, folder: Path) -> None:
    """Move everything into the folder, in this order: the stage files, under names that no manifest has yet; the old manifest,
    to where `undo` reads it; the new manifest."""
    (folder / UNDO).mkdir(exist_ok=True)
    for file in source.glob("*.onnx"):
        if not (folder / file.name).exists():
            file.replace(folder / file.name)
    for name in (MANIFEST, REPORT, CARD):
        if (folder / name).is_file():
            write_bytes(folder / UNDO / name, (folder / name).read_bytes())
    (source / MANIFEST).replace(folder / MANIFEST)
    for name in (REPORT, CARD):
        (source / name).replace(folder / name)
    _remove_unused(folder)


def undo(folder: Path) -> None:
    """Restore what the last calibration replaced. Raises OutputError when there is nothing to restore."""
    saved = folder / UNDO
    if not (saved / MANIFEST).is_file():
        raise OutputError(
            f"{folder}: nothing to undo; the folder was not calibrated since it was made, or that is undone"
        )
    try:
        Manifest.load(saved)
        (saved / MANIFEST).replace(folder / MANIFEST)
        for name in (REPORT, CARD):
            if (saved / name).is_file():
                (saved / name).replace(folder / name)
        shutil.rmtree(saved)
        _remove_unused(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}); check its permissions") from error
    except DispatcherError as error:
        raise OutputError(f"{saved}: cannot be brought back ({error}); remove it") from error


def _remove_unused(folder: Path) -> None:
    """Remove stage files of earlier calibrations that are named neither in the manifest nor in the saved one."""
    saved = [folder / UNDO] if (folder / UNDO / MANIFEST).is_file() else []
    used = {stage.file for location in (folder, *saved) for stage in Manifest.load(location).stages}
    for file in folder.glob("stage*.onnx"):
        if RENEWED_FILE.fullmatch(file.name) and file.name not in used:
            file.unlink()
