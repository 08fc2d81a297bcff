"""Keyword arguments become the options of a step: values of the right type, or one sentence that names the argument."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, fields
from numbers import Integral, Real
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import click

from s2d_convert.cli.options import Duration, Fraction, Size
from s2d_convert.data.class_names import read_names
from s2d_convert.errors import UsageError

TEXTS: Mapping[str, click.ParamType[Any]] = MappingProxyType(
    {
        "time": Duration(),
        "size": Size(),
        "scale": Fraction(),
        "first_size": Size(),
        "first_scale": Fraction(),
    }
)
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def read_options(kind: type[T], given: Mapping[str, Any], *, call: str) -> T:
    """Return the options dataclass `kind` with these values. call: the function's name, for messages.

    Paths may be texts, tuples any sequence, and numbers those of numpy. Raises UsageError.
    """
    hints = get_type_hints(kind)
    refuse_unknown(given, hints, call=call)
    for name, value in required(kind).items():
        if name not in given:
            raise UsageError(f"{call}: '{name}' is missing; give {name}={value}")
    return kind(**{name: fitting(value, hints[name], name=name) for name, value in given.items()})


def refuse_unknown(given: Iterable[str], known: Collection[str], *, call: str) -> None:
    """Raise UsageError that names the arguments which `call` does not know, and those with similar names."""
    unknown = [name for name in given if name not in known]
    if not unknown:
        return
    near = [match for name in unknown for match in difflib.get_close_matches(name, known, n=3, cutoff=0.6)]
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(known)}"
    raise UsageError(f"{call}: no argument {', '.join(repr(name) for name in unknown)}{hint}")


def required(kind: type[Any]) -> dict[str, str]:
    """Return the fields of a dataclass that have no default, each with an example of a value."""
    examples = {"model": '"model.onnx"', "folder": '"model.s2d"', "data": '"images/"', "out": '"model.s2d"'}
    return {f.name: examples.get(f.name, "...") for f in fields(kind) if f.default is MISSING}


def fitting(value: Any, hint: Any, *, name: str) -> Any:
    """Return an argument's value as the type of a field; some may also be texts as on the command line. Raises UsageError."""
    if isinstance(value, str) and name in TEXTS:
        try:
            return TEXTS[name].convert(value, None, None)
        except click.BadParameter as error:
            raise UsageError(f"{name}: {error.message}") from error
    allowed = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    if value is None:
        return None if NoneType in allowed else _refuse(name, value, allowed[0])
    wanted = next(kind for kind in allowed if kind is not NoneType)
    if wanted is Path or wanted is str:
        return _text(value, wanted, name)
    if wanted == tuple[str, ...]:
        return read_names(value) if isinstance(value, str | os.PathLike) else _texts(value, wanted, name)
    if get_origin(wanted) is tuple:
        return _numbers(value, wanted, name)
    return _number(value, wanted, name)


def _text(value: Any, wanted: Any, name: str) -> Any:
    if not isinstance(value, str | os.PathLike):
        _refuse(name, value, wanted)
    text = os.fspath(value)
    return wanted(text) if isinstance(text, str) else _refuse(name, value, wanted)


def _texts(value: Any, wanted: Any, name: str) -> tuple[str, ...]:
    texts = tuple(value) if isinstance(value, Iterable) else ()
    return texts if texts and all(isinstance(text, str) for text in texts) else _refuse(name, value, wanted)


def _numbers(value: Any, wanted: Any, name: str) -> tuple[Any, ...]:
    """Return a tuple of numbers; a single number stands for all places of a tuple of fixed length."""
    kinds = get_args(wanted)
    free = kinds[-1] is Ellipsis
    if isinstance(value, Real):
        values = [value] * (1 if free else len(kinds))
    elif isinstance(value, str) or not isinstance(value, Iterable):
        _refuse(name, value, wanted)
    else:
        values = list(value)
    if not free and len(values) != len(kinds):
        _refuse(name, value, wanted)
    return tuple(_number(v, kinds[0], name) for v in values)


def _number(value: Any, wanted: Any, name: str) -> Any:
    if wanted is bool:
        return bool(value) if isinstance(value, bool) or type(value).__name__ == "bool" else _refuse(name, value, bool)
    if isinstance(value, bool) or not isinstance(value, Integral if wanted is int else Real):
        _refuse(name, value, wanted)
    return wanted(value)


WORDS = {Path: "a path", str: "a text", float: "a number", int: "a whole number", bool: "True or False"}


def _refuse(name: str, value: Any, wanted: Any) -> NoReturn:
    if wanted == tuple[str, ...]:
        words = "names, or a file that has them"
    elif get_origin(wanted) is tuple:
        kinds = get_args(wanted)
        words = "numbers, such as [0.5] or 0.5" if kinds[-1] is Ellipsis else f"{len(kinds)} whole numbers, or one"
    else:
        words = WORDS[wanted]
    raise UsageError(f"{name}: got {value!r}; expected {words}")


def documented(arguments: Mapping[str, str], *kinds: type[Any]) -> Callable[[F], F]:
    """Return a decorator that puts the arguments of a function into its docstring and its signature.

    arguments: a sentence for each keyword. kinds: the dataclasses whose defaults they have.
    """
    defaults = {f.name: f.default for kind in kinds for f in fields(kind) if f.default is not MISSING}

    def apply(function: F) -> F:
        lines = [f"{name}: {text}" for name, text in arguments.items()]
        function.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), "", "Keyword arguments:", "", *lines])
        own = inspect.signature(function)
        plain = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name))
            for name in arguments
            if name not in own.parameters
        ]
        function.__signature__ = own.replace(parameters=[*plain, *more])  # type: ignore[attr-defined]
        return function

    return apply
