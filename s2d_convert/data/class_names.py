"""The names of a model's classes: those that the user gives, those of class folders, those in the ONNX file's metadata.

Exporters write names into the metadata under different keys, as a list or as a table from number to name, in JSON or as
Python writes it: ultralytics ``names`` (``{0: 'cat', 1: 'dog'}``), others ``labels``, ``class_names``, ``id2label``...
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s2d_convert.base.text import listed
from s2d_convert.data.reading import Warn
from s2d_convert.errors import UsageError

KEYS = ("names", "class_names", "classes", "labels", "class_labels", "id2label", "label_names", "label2id")
MOST_BYTES = 4 * 2**20  # of names: a manifest must stay below 16 MiB
LONGEST = 200  # characters of a name

Names = tuple[str, ...]


def read_names(given: str | os.PathLike[str]) -> Names:
    """Return the names in a file, or in a text that separates them by commas. Raises UsageError.

    A file has a name per line, or is JSON: a list, a table from number to name or the reverse, or an object that has such a
    table under one of KEYS, such as the config.json of a model hub.
    """
    text = os.fspath(given)
    path = Path(text)
    try:
        if path.is_file():
            return _from_file(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--classes {text}: cannot be read ({' '.join(str(error).split())})") from error
    if "," not in text and (path.suffix or len(path.parts) > 1):
        raise UsageError(f"--classes {text}: no such file; give a file with a name per line, or names such as cat,dog")
    return tuple(name.strip() for name in text.split(","))


def _from_file(path: Path) -> Names:
    if path.stat().st_size > MOST_BYTES:
        raise UsageError(f"--classes {path}: is larger than {MOST_BYTES} bytes")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() != ".json":
        return tuple(line.strip() for line in text.rstrip().splitlines())
    data = json.loads(text)
    parts = [data[key] for key in KEYS if key in data] if isinstance(data, dict) else []
    for part in (*parts, data):
        if (names := _as_names(part)) is not None:
            return names
    raise UsageError(f"--classes {path}: holds no list of names, and no table from numbers to names")


def check_names(names: Sequence[str], classes: int) -> None:
    """Raise UsageError unless there is a printable name for each of the model's classes."""
    if len(names) != classes:
        raise UsageError(f"--classes: {len(names)} names ({listed(names)}), the model has {classes} classes")
    for number, name in enumerate(names):
        if not (name.strip() and name.isprintable() and len(name) <= LONGEST):
            raise UsageError(f"--classes: the name of class {number} is {name[:40]!r}; expected 1 to {LONGEST} letters")


def names_in_metadata(metadata: Mapping[str, str], classes: int) -> Names | None:
    """Return the names in an ONNX file's metadata, None unless it has one for each of the model's classes."""
    for key in KEYS:
        for name in (key, key.upper()):
            names = _as_names(_parsed(metadata.get(name, "")))
            if names is not None and len(names) == classes and all(n.strip() and n.isprintable() for n in names):
                return tuple(n[:LONGEST] for n in names)
    return None


def _parsed(text: str) -> Any:
    """Return the value of a text in JSON or as Python writes it, a list for names in lines or with commas, else None."""
    if len(text) > MOST_BYTES:
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    separator = "\n" if "\n" in text.strip() else ","
    return [part.strip() for part in text.strip().split(separator)]


def _as_names(value: Any) -> Names | None:
    """Return the names in a list, or in a table whose numbers run from 0 without a gap; None for anything else."""
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], list | tuple | dict):
        value = value[0]  # a list for each output
    if isinstance(value, dict):
        value = _in_order(value) or _in_order({number: name for name, number in value.items() if _hashable(number)})
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str) for name in value):
        return None
    return tuple(value)


def _hashable(value: Any) -> bool:
    return isinstance(value, str | int)


def _in_order(table: Mapping[Any, Any]) -> list[Any] | None:
    numbers = {str(key): value for key, value in table.items()}
    wanted = [str(number) for number in range(len(table))]
    return [numbers[number] for number in wanted] if set(numbers) == set(wanted) else None


def chosen_names(asked: Names | None, folders: Names | None, metadata: Names | None, *, warn: Warn) -> Names | None:
    """Return the names to record: the given ones, else the class folders', else the metadata's.

    Names of folders that are numbers only count less than the metadata. warn: called when folders and metadata name the same
    classes in another order, because labels are numbered by the folders.
    """
    if folders is not None and metadata is not None and folders != metadata and set(folders) == set(metadata):
        first = next(k for k, (one, other) in enumerate(zip(folders, metadata, strict=True)) if one != other)
        warn(
            f"class {first} is '{folders[first]}' by the order of the class folders and '{metadata[first]}' by the model's "
            "metadata: if the metadata is right, number the folders in its order, or labels are wrong"
        )
    if folders is not None and metadata is not None and all(name.isdecimal() for name in folders):
        folders = None
    return asked or folders or metadata
