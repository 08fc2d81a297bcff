"""The command `s2d run`: answers for images, one by one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from s2d_runtime import Dispatcher, Prediction
from s2d_runtime.classifier import BATCH, names_of, predictions
from s2d_runtime.names import class_names
from s2d_runtime.pictures import IMAGE_SUFFIXES, UNREADABLE, quiet_decoders, read_image, reason_of

from s2d_convert.base.sessions import Running
from s2d_convert.base.text import plain
from s2d_convert.calibration.task import task_of
from s2d_convert.cli.options import DEFAULTS, FOLDER, PATH
from s2d_convert.cli.progress import say_warning
from s2d_convert.conversion.options import check_budget
from s2d_convert.data.arrays import UNREADABLE_ARRAY
from s2d_convert.data.loading import image_files
from s2d_convert.errors import DataError
from s2d_convert.exporting.provenance import recorded_preprocess


@dataclass(frozen=True, eq=False)
class Row:
    """One image to answer: its file, its name in a line, and its model input, or why it cannot be read."""

    file: str
    name: str
    values: NDArray[Any] | None
    problem: str = ""


@click.command()
@FOLDER
@click.argument("images", metavar="IMAGE|FOLDER|NPY...", type=PATH, nargs=-1, required=True)
@click.option("--budget", type=float, help="Another of the calibrated budgets. [default: the one converted for]")
@click.option("--threads", default=DEFAULTS["threads"], show_default=True, help="Threads of onnxruntime.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with names and probabilities.")
def run(folder: Path, images: tuple[Path, ...], budget: float | None, threads: int, as_json: bool) -> None:
    """Answer for image files, folders of images, or an .npy of model input: class or labels, confidence and the stage that
    answered.

    Of several images, those that cannot be read are left out, and the command ends with exit code 5.
    """
    if budget is not None:
        check_budget("budget", budget)
    count, failed = 0, list[Row]()
    with Running(threads).dispatcher(folder) as runner:
        alone = len(images) == 1 and not images[0].is_dir()
        rows = read_row(images[0], runner) if alone else read_rows(images, runner)
        named = class_names(runner.manifest) is not None
        for row, found in answered(runner, rows, budget):
            if found is None:
                failed.append(row)
                say_warning(row.problem)
            if as_json:
                click.echo((",\n " if count else "[\n ") + json.dumps(as_plain(row, found)), nl=False)
            elif found is not None:
                click.echo(f"{plain(row.name)}: {in_words(found, runner, named=named)}")
            count += 1
    if as_json:
        click.echo("\n]" if count else "[]")
    if failed:
        raise DataError(f"{len(failed)} of {count} images cannot be read, the first is {failed[0].file}; replace them")


def answered(runner: Dispatcher, rows: Iterable[Row], budget: float | None) -> Iterator[tuple[Row, Prediction | None]]:
    """Yield every row with its prediction, None where it cannot be read; some rows are run at once."""
    names, remaining = names_of(runner.manifest), iter(rows)
    while part := list(islice(remaining, BATCH)):
        inputs = [row.values for row in part if row.values is not None]
        answers: Iterator[Prediction] = iter(())
        if inputs:
            answers = iter(predictions(runner.manifest, runner(np.stack(inputs), budget=budget), names))
        for row in part:
            yield row, None if row.values is None else next(answers)


def as_plain(row: Row, found: Prediction | None) -> dict[str, Any]:
    """Return a row and its prediction as a JSON-able dict."""
    place = {"image": row.file} if row.name == row.file else {"image": row.file, "row": int(row.name)}
    return {**place, **({"error": row.problem} if found is None else found.to_json())}


def in_words(found: Prediction, runner: Dispatcher, *, named: bool) -> str:
    """Return a prediction as a line."""
    said = ", ".join(f"{x.index} ({plain(x.name)})" if named else str(x.index) for x in found.labels)
    several = task_of(runner.manifest.output.kind).several
    answer = f"labels {said or 'none'}" if several else f"class {said}"
    return f"{answer}, confidence {found.confidence:.4f}, stage {found.stage}"


def read_rows(paths: Sequence[Path], runner: Dispatcher) -> Iterator[Row]:
    """Yield the rows of files and folders. Raises DataError for a folder without images, or where none could be read."""
    if any(path.suffix != ".npy" for path in paths):
        recorded_preprocess(runner.manifest).check_known(paths[0])
    for path in paths:
        for file in image_files(path) if path.is_dir() else [str(path)]:
            try:
                rows = list(read_row(Path(file), runner))
            except DataError as error:
                yield Row(file, file, None, str(error))
                continue
            yield from rows if len(rows) > 1 else (Row(file, file, row.values) for row in rows)


def read_row(path: Path, runner: Dispatcher) -> Iterator[Row]:
    """Yield the rows of one file: an image, preprocessed as the manifest says, or an .npy of model input. Raises DataError."""
    for number, values in enumerate(read_input(path, runner)):
        yield Row(str(path), str(number), values)


def read_input(path: Path, runner: Dispatcher) -> NDArray[Any]:
    """Read model input [N, ...] from an image file, or from an .npy file. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; give an image, a folder of images or an .npy")
    shape = tuple(runner.manifest.input.shape)[1:]
    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except UNREADABLE_ARRAY as error:
            raise DataError(f"{path}: not a readable .npy array ({error}); save it with numpy.save") from error
        batch = array[None] if array.shape == shape else array
        kind = runner.manifest.input.dtype
        if batch.ndim != len(shape) + 1 or batch.shape[1:] != shape or batch.dtype != kind:
            raise DataError(
                f"{path}: got {array.dtype} of shape {array.shape}; {kind} of shape {shape} or (N, ...) is expected"
            )
        return np.ascontiguousarray(batch)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{path}: expected an image ({', '.join(sorted(IMAGE_SUFFIXES))}) or an .npy")
    preprocess = recorded_preprocess(runner.manifest)
    preprocess.check_known(path)
    try:
        with quiet_decoders():
            return preprocess(read_image(path, preprocess)[None])
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as an image ({reason_of(error)}); give another file") from error
