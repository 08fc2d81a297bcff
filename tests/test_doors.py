"""The public door of every package: what `__all__` names is there, and nothing else is."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest

import s2d_convert


def packages(parent: ModuleType = s2d_convert) -> Iterator[str]:
    """The names of the package and of all packages in it."""
    yield parent.__name__
    for found in pkgutil.iter_modules(parent.__path__, f"{parent.__name__}."):
        if found.ispkg:
            yield from packages(importlib.import_module(found.name))


@pytest.mark.parametrize("name", list(packages()))
def test_a_door_has_what_it_names(name: str) -> None:
    package = importlib.import_module(name)
    names = getattr(package, "__all__", [])
    assert (package.__doc__ or "").strip().split("\n")[0].endswith((".", ":")), (
        "the first line says what a package is for"
    )
    assert len(names) == len(set(names))
    assert [n for n in names if not hasattr(package, n)] == []
    public = {
        n: value for n, value in vars(package).items() if not n.startswith("_") and not isinstance(value, ModuleType)
    }
    own = {n for n, value in public.items() if getattr(value, "__module__", name).startswith("s2d_convert")}
    assert own - {"annotations", "TYPE_CHECKING", "lazy_names"} <= set(names)
