"""The exception tree; every class carries the exit code that the command line ends with.

::

    S2DError
    |-- UsageError        2   an option has a value that is not allowed
    |-- ModelError        4   the ONNX file cannot be read or is not a static CNN classifier
    |-- DataError         5   images or labels cannot be used
    |-- OutputError       6   a folder cannot be written, exists, or is not a whole export
    |-- StaticCheckError  7   the static model is near chance on the given data
    |-- VerifyError       8   an exported file does not compute what it should
    `-- PromiseError      9   no policy keeps the bound on the risk with the requested confidence

A message is one sentence: the place, what was got, what is allowed, and what to do.
Two exit codes are results, not errors: 3 (budget or --max-latency not kept, best effort exported) and 10 (the conversion
is worse than the original: neither faster nor more accurate). 130 is Ctrl-C.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_BUDGET_NOT_REACHED = 3
EXIT_WORSE = 10
EXIT_INTERRUPTED = 130


class S2DError(Exception):
    """Base class of all errors that the caller can fix."""

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        """Return the message in one line: names from files may hold line ends and what controls a terminal."""
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in super().__str__())


class UsageError(S2DError):
    """An option or argument has a value that is not allowed."""

    exit_code = 2


class ModelError(S2DError):
    """The ONNX file cannot be read, or is not a static CNN classifier."""

    exit_code = 4


class DataError(S2DError):
    """Images or labels cannot be used."""

    exit_code = 5


class OutputError(S2DError):
    """A folder cannot be written, exists already, or is not a whole export."""

    exit_code = 6


class StaticCheckError(S2DError):
    """The static model is near chance on the given data."""

    exit_code = 7


class VerifyError(S2DError):
    """An exported file does not compute what it should."""

    exit_code = 8


class PromiseError(S2DError):
    """No policy keeps the bound on the risk with the requested confidence."""

    exit_code = 9
