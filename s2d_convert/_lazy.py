"""Names that a package loads when they are first used, so that importing it costs nothing (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a package whose public names live in other modules.

    `homes` maps a public name to its module, or to ``module:name`` where it is called otherwise there.
    """

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, other_name = homes[name].partition(":")
        return getattr(importlib.import_module(module), other_name or name)

    def __dir__() -> list[str]:
        usual = {name for name in vars(sys.modules[package]) if name.startswith("__")}
        return sorted({*homes, *usual})

    return __getattr__, __dir__
