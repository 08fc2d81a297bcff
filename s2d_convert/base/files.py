"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s2d_convert.errors import OutputError


def check_out(out: Path, *, option: str = "--out") -> None:
    """Raise OutputError unless `out` can be made: it must not exist, and its parent must be writable."""
    if os.path.lexists(out):
        raise OutputError(f"{out}: exists already; remove it or choose another name with {option}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise OutputError(
            f"{out.parent}: cannot be written ({error.strerror}); choose another folder with {option}"
        ) from error


@contextmanager
def whole_folder(out: Path, *, option: str = "--out") -> Iterator[Path]:
    """A folder beside `out`, which `option` names, to write into; it becomes `out` when the block ends well, and vanishes
    otherwise."""
    check_out(out, option=option)
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        if not _is_running(left):  # of a run that was killed here
            shutil.rmtree(left, ignore_errors=True)
    partial = None
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.{os.getpid()}.", suffix=".partial", dir=out.parent))
        yield partial
        partial.chmod(0o755)
        partial.rename(out)
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be written ({error.strerror or error}); make room or choose another {option}"
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _is_running(partial: Path) -> bool:
    """Whether the process that writes this folder is still there."""
    try:
        os.kill(int(partial.name.split(".")[-3]), 0)
    except (ValueError, IndexError, ProcessLookupError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole or not at all; NaN is refused."""
    write_bytes(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())
