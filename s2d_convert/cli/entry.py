"""Entry points of the commands: settings that are needed before torch is loaded, then the command line."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

# Threads that spin while they wait take a core from other processes. With one busy process on two cores, two torch threads
# were four times slower than with passive waiting, and alone no faster. The user's own setting takes precedence.
INTERRUPTED = 130  # errors.EXIT_INTERRUPTED; that module is not loaded yet
DEFAULT_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}


def main() -> None:
    """Run `s2d`, also as `python -m s2d_convert`."""
    _cli().main()


def convert_main() -> None:
    """Run `s2d-convert`, which is `s2d convert`."""
    _cli().convert_main()


def _cli() -> ModuleType:
    for name, value in DEFAULT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("s2d_convert.cli.main")
    except KeyboardInterrupt:  # loading torch takes a while
        sys.exit(INTERRUPTED)
