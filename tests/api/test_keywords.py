"""Keyword arguments become options: of the right type, or one sentence that names the argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2d_convert.api.keywords import documented, read_options
from s2d_convert.conversion.options import ConvertOptions
from s2d_convert.errors import UsageError
from s2d_convert.workflows.evaluate import EvaluateOptions

GIVEN: dict[str, Any] = {"model": "model.onnx", "out": "model.s2d"}


def read(**given: Any) -> ConvertOptions:
    """The options of a conversion."""
    return read_options(ConvertOptions, {**GIVEN, **given}, call="convert")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("model", Path("a.onnx"), Path("a.onnx")),
        ("data", "images/", Path("images")),
        ("data", None, None),
        ("mode", "exact", "exact"),
        ("budget", 1, 1.0),
        ("budget", np.float32(0.5), 0.5),
        ("stages", np.int64(3), 3),
        ("flip", np.bool_(False), False),
        ("mean", [0.5, np.float32(0.25), 1], (0.5, 0.25, 1.0)),
        ("mean", np.array([0.5, 0.25]), (0.5, 0.25)),
        ("std", 0.5, (0.5,)),
        ("size", (224, 192), (224, 192)),
        ("size", [np.int64(224), 192], (224, 192)),
        ("size", 224, (224, 224)),
        ("size", "224x192", (224, 192)),
        ("time", 600, 600.0),
        ("time", "10m", 600.0),
        ("scale", "1/255", 1 / 255),
    ],
)
def test_values_get_the_type_of_the_field(name: str, value: Any, expected: Any) -> None:
    got = getattr(read(**{name: value}), name)
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"buget": 0.5}, "convert: no argument 'buget'; did you mean budget?"),
        ({"max_los": 0.5, "zzz": 1}, "no argument 'max_los', 'zzz'; did you mean max_loss"),
        ({"zzz": 1}, "no argument 'zzz'; known are model, out, data"),
        ({"budget": "0.5"}, "budget: got '0.5'; expected a number"),
        ({"budget": True}, "budget: got True; expected a number"),
        ({"budget": 2}, "--budget 2: a share of the static latency"),
        ({"stages": 2.0}, "stages: got 2.0; expected a whole number"),
        ({"stages": None}, "stages: got None; expected a whole number"),
        ({"flip": 1}, "flip: got 1; expected True or False"),
        ({"data": 3}, "data: got 3; expected a path"),
        ({"data": b"images"}, "data: got b'images'; expected a path"),
        ({"effort": 3}, "effort: got 3; expected a text"),
        ({"mean": "0.5"}, "mean: got '0.5'; expected numbers, such as"),
        ({"mean": ["a"]}, "mean: got 'a'; expected a number"),
        ({"time": "soon"}, "time: 'soon' is no time; give one such as 90s"),
        ({"size": "wide"}, "size: 'wide' is not a size"),
        ({"size": (1, 2, 3)}, "expected 2 whole numbers, or one"),
    ],
)
def test_what_does_not_fit_is_one_sentence(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(**given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(UsageError, match=r"evaluate: 'data' is missing; give data=\"images/\""):
        read_options(EvaluateOptions, {"folder": "model.s2d"}, call="evaluate")


def test_arguments_stand_in_docstring_and_signature() -> None:
    @documented({"budget": "As a share.", "quiet": "Show nothing."}, ConvertOptions)
    def function(model: str, *, quiet: bool = False, **options: Any) -> None:
        """Do it."""

    assert function.__doc__ == "Do it.\n\nKeyword arguments:\n\nbudget: As a share.\nquiet: Show nothing."
    signature = function.__signature__  # type: ignore[attr-defined]
    assert str(signature) == "(model: 'str', *, quiet: 'bool' = False, budget=None) -> 'None'"
