"""Entry points of the commands: settings that must stand before torch is loaded, then the command line."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

# Waiting threads that spin take the core from whatever else runs: beside one busy process on two cores, two torch
# threads were four times slower than with passive waiting, and alone no faster. The user's own setting goes first.
INTERRUPTED = 130  # errors.EXIT_INTERRUPTED, which is not loaded yet
DEFAULT_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}


def main() -> None:
    """`s2d`, and `python -m s2d_convert`."""
    _cli().main()


def convert_main() -> None:
    """`s2d-convert`, the same as `s2d convert`."""
    _cli().convert_main()


def _cli() -> ModuleType:
    for name, value in DEFAULT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("s2d_convert.cli.main")
    except KeyboardInterrupt:  # loading torch takes a while
        sys.exit(INTERRUPTED)
