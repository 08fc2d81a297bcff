"""Files and folders that are written completely or not at all."""

from __future__ import annotations

import errno
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

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a full disk


def check_out(out: Path, *, option: str = "--out", replaces: bool = False) -> None:
    """Raise OutputError unless `out` can be made: it must not exist, and its parent must be writable.

    replaces: whether it may exist, and is to be replaced.
    """
    if os.path.lexists(out) and not replaces:
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
def whole_folder(out: Path, *, option: str = "--out", replaces: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `out` to write into. It becomes `out` when the block succeeds and is removed otherwise.

    option: the command-line option that set `out`, for messages. replaces: whether an `out` that exists is replaced, which
    the caller must have checked. Raises OutputError.
    """
    check_out(out, option=option, replaces=replaces)
    for leftover in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        if not _is_running(leftover):  # an earlier run was killed
            shutil.rmtree(leftover, ignore_errors=True)
    partial = None
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.{os.getpid()}.", suffix=".partial", dir=out.parent))
        yield partial
        partial.chmod(0o755)
        _publish(partial, out)
    except OSError as error:
        written = error.filename2 or error.filename or out  # of a copy the second one
        file = str(written).replace(str(partial), str(out))
        raise OutputError(f"{file}: {_why(error)}; make room or choose another {option}") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, out: Path) -> None:
    """Rename a folder to `out`. What is there is set aside first, and comes back where that fails."""
    if not out.exists():
        partial.rename(out)
        return
    old = partial.with_name(f"{partial.name.removesuffix('.partial')}.old.partial")
    out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _why(error: OSError) -> str:
    return "the disk is full" if error.errno in FULL else f"cannot be written ({error.strerror or error})"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an OSError within the block: where a write fails, the system does not say which file it was."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


def _is_running(partial: Path) -> bool:
    """Return whether the process that writes this folder is still running."""
    try:
        os.kill(int(partial.name.removesuffix(".old.partial").removesuffix(".partial").split(".")[-2]), 0)
    except (ValueError, IndexError, ProcessLookupError):
        return False
    except OSError:  # the process belongs to another user
        return True
    return True


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file completely or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        with naming(path):
            partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file completely or not at all. Raises ValueError for NaN and infinities."""
    write_bytes(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())
