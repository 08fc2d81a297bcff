"""manifest.json: a sound one survives the round trip, and everything else ends in a sentence that names the place."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from s2d_runtime import DispatcherError, Exactness, Manifest, OutputSpec, Policy, Promise, Stage, TensorSpec
from s2d_runtime.dispatcher import read_typed
from toy_exports import MIXED, manifest_of, policy, stage_text, write_manifest

DOCS = Path(__file__).resolve().parents[2] / "docs" / "manifest.md"
NAN, INF = float("nan"), float("inf")


def sound() -> dict[str, Any]:
    """A manifest with four stages in two chains and two policies, the second of which says all that it may say."""
    texts = [stage_text(k, toy) for k, toy in enumerate(MIXED, start=1)]
    full = policy(1.0, [0.9, 0.9, 1.01]) | {
        "disagreement": 0.25,
        "confidence_histogram": [[count] + [0] * 19 for count in (8, 5, 5, 1)],
        "promise": {"max_drop": 0.01, "confidence": 0.95, "images": 8},
    }
    manifest = manifest_of(MIXED, texts, policies=[policy(0.5, [0.1, 0.2, 0.3]), full])
    return manifest | {"exactness": {"equal": "close", "max_difference": 1e-5}}


def edited(path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    """The sound manifest with one value replaced; `...` removes it."""
    data = copy.deepcopy(sound())
    place: Any = data
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


# Where, what is put there, and what the message says; the place is checked for all of them.
MUTATIONS: list[tuple[tuple[str | int, ...], object, str]] = [
    (("format",), "onnx", "expected 's2d-convert'"),
    (("format",), ..., "expected 's2d-convert'"),
    (("version",), 2, "got 2; expected 1; use the dispatcher.py that lies beside"),
    (("version",), "1", "expected 1"),
    (("version",), True, "expected 1"),
    (("version",), 1.0, "expected 1"),
    (("version",), ..., "got None"),
    (("extra",), 1, "unknown; expected are input, output"),
    (("input",), ..., "missing"),
    (("input",), [], "an object"),
    (("input", "name"), "", "a name"),
    (("input", "name"), 3, "a text"),
    (("input", "name"), "output", "no other tensor"),
    (("input", "name"), "confidence", "no other tensor"),
    (("input", "dtype"), "float31", "one of float16, float32"),
    (("input", "shape"), [None], "null for the batch"),
    (("input", "shape"), [], "null for the batch"),
    (("input", "shape"), [1, 2, 4], "null for the batch"),
    (("input", "shape"), [None, 2, None], "null for the batch"),
    (("input", "shape"), [None, 0, 4], "lengths of at least 1"),
    (("input", "shape"), [None, 2**40, 4], "lengths of at least 1"),
    (("input", "shape"), "B24", "a list"),
    (("input", "shape", 1), 2.0, "a whole number or null"),
    (("input", "shape", 1), True, "a whole number or null"),
    (("output",), ..., "missing"),
    (("output", "kind"), "scores", "one of logits, probabilities, log_probabilities"),
    (("output", "kind"), None, "a text"),
    (("output", "shape"), [None], "null for the batch"),
    (("target",), "speed", "one of accuracy, agreement"),
    (("target",), ..., "missing"),
    (("data",), "real", "one of labelled, unlabelled, made-up, none"),
    (("data",), None, "a text"),
    (("exactness",), ..., "missing"),
    (("exactness",), "close", "an object"),
    (("exactness", "equal"), "nearly", "one of identical, close"),
    (("exactness", "equal"), ..., "missing"),
    (("exactness", "max_difference"), -1e-9, "at least 0"),
    (("exactness", "max_difference"), None, "a number"),
    (("stages",), [], "at least one stage"),
    (("stages",), {}, "a list"),
    (("stages", 1), None, "an object"),
    (("stages", 1, "file"), "../stage2.onnx", "a plain name"),
    (("stages", 1, "file"), "..", "a plain name"),
    (("stages", 1, "file"), "", "a plain name"),
    (("stages", 1, "file"), "sub/stage2.onnx", "a plain name"),
    (("stages", 1, "file"), "sub\\stage2.onnx", "a plain name"),
    (("stages", 1, "file"), "/stage2.onnx", "a plain name"),
    (("stages", 1, "file"), "C:stage2.onnx", "a plain name"),
    (("stages", 1, "file"), "stage2.onnx\n", "a plain name"),
    (("stages", 1, "file"), "stage2\0.onnx", "a plain name"),
    (("stages", 1, "file"), ".onnx", "a plain name"),
    (("stages", 1, "file"), "stage2.ort", "ends in .onnx"),
    (("stages", 1, "file"), "stage1.onnx", "a file of its own"),
    (("stages", 1, "file"), "STAGE1.onnx", "a file of its own"),
    (("stages", 1, "file"), 2, "a text"),
    (("stages", 1, "sha256"), "0" * 63, "64 hexadecimal digits"),
    (("stages", 1, "sha256"), "G" * 64, "64 hexadecimal digits"),
    (("stages", 1, "sha256"), ..., "missing"),
    (("stages", 0, "chain"), 0, "expected 1"),
    (("stages", 0, "chain"), 2, "expected 1"),
    (("stages", 1, "chain"), 3, "expected 1 or 2"),
    (("stages", 2, "chain"), 1, "expected 2 or 3"),
    (("stages", 2, "chain"), "2", "a whole number"),
    (("stages", 0, "image"), False, "a chain starts from the image"),
    (("stages", 1, "image"), False, "a chain starts from the image"),
    (("stages", 1, "image"), 1, "true or false"),
    (("stages", 2, "links_in"), [], "does not take the image"),
    (("stages", 2, "links_in"), "c", "a list"),
    (("stages", 2, "links_in"), ["c", "c"], "named once"),
    (("stages", 2, "links_in"), ["a"], "an earlier stage of its chain"),
    (("stages", 2, "links_in"), ["image"], "an earlier stage of its chain"),
    (("stages", 2, "links_in"), ["output"], "an earlier stage of its chain"),
    (("stages", 2, "links_in"), ["nothing"], "an earlier stage of its chain"),
    (("stages", 1, "links_in"), ["b"], "an earlier stage of its chain"),
    (("stages", 2, "links_in", 0), 7, "a text"),
    (("stages", 0, "links_out"), None, "a list"),
    (("stages", 0, "links_out", 0), "a", "an object"),
    (("stages", 0, "links_out", 0, "name"), "", "a name"),
    (("stages", 0, "links_out", 0, "name"), "image", "no other tensor"),
    (("stages", 0, "links_out", 0, "name"), "confidence", "no other tensor"),
    (("stages", 0, "links_out", 1, "name"), "a", "no other tensor"),
    (("stages", 1, "links_out", 0, "name"), "a", "no other tensor"),
    (("stages", 0, "links_out", 0, "shape"), [], "null for the batch"),
    (("stages", 0, "links_out", 0, "shape"), [None, -1], "lengths of at least 1"),
    (("stages", 0, "links_out", 0, "dtype"), "float16", "unknown; expected are name, shape"),
    (("stages", 3, "temperature"), 0, "above 0"),
    (("stages", 3, "temperature"), -1.0, "above 0"),
    (("stages", 3, "temperature"), "1.0", "a number"),
    (("stages", 3, "latency_ratio"), -0.1, "at least 0"),
    (("stages", 3, "latency_ratio"), True, "a number"),
    (("stages", 3, "macs"), -1, "at least 0"),
    (("stages", 3, "macs"), 1.5, "a whole number"),
    (("stages", 3, "macs"), 10**400, "below 2**63"),
    (("stages", 3, "parameters"), None, "a whole number"),
    (("policies",), {}, "a list"),
    (("policies", 1), 1, "an object"),
    (("policies", 1, "budget"), 0, "above 0 and at most 1"),
    (("policies", 1, "budget"), 1.5, "above 0 and at most 1"),
    (("policies", 1, "budget"), None, "a number"),
    (("policies", 1, "budget"), 0.5, "every budget once"),
    (("policies", 1, "thresholds"), [0.5, 0.5], "3 numbers for 4 stages"),
    (("policies", 1, "thresholds"), [0.5] * 4, "3 numbers for 4 stages"),
    (("policies", 1, "thresholds"), None, "a list"),
    (("policies", 1, "thresholds", 2), None, "a number"),
    (("policies", 1, "thresholds", 2), 10**400, "below 2**63"),
    (("policies", 1, "expected_latency"), -1, "at least 0"),
    (("policies", 1, "expected_accuracy"), 1.1, "at most 1"),
    (("policies", 1, "exit_share"), [0.5, 0.5], "4 numbers for 4 stages"),
    (("policies", 1, "exit_share"), [0.5, 0.5, 0.5, 0.5], "shares whose sum is 1"),
    (("policies", 1, "exit_share", 0), -0.5, "at least 0"),
    (("policies", 1, "exit_share", 0), "0", "a number"),
    (("policies", 1, "reached"), 0, "true or false"),
    (("policies", 1, "disagreement"), 1.5, "at most 1"),
    (("policies", 1, "disagreement"), "0.1", "a number or null"),
    (("policies", 1, "disagreement"), ..., "missing"),
    (("policies", 1, "confidence_histogram"), None, "a list"),
    (("policies", 1, "confidence_histogram"), [[1] * 20] * 3, "one list for each of 4 stages, or none at all"),
    (("policies", 1, "confidence_histogram", 0), [1] * 19, "20 numbers of at least 0"),
    (("policies", 1, "confidence_histogram", 0, 7), -1, "20 numbers of at least 0"),
    (("policies", 1, "confidence_histogram", 0, 7), 0.5, "a whole number"),
    (("policies", 1, "confidence_histogram", 1, 7), 4, "at most the 8 images that reached the stage before"),
    (("policies", 1, "promise"), 0.01, "an object"),
    (("policies", 1, "promise"), ..., "missing"),
    (("policies", 1, "promise", "max_drop"), 0, "above 0 and below 1"),
    (("policies", 1, "promise", "confidence"), 1, "above 0 and below 1"),
    (("policies", 1, "promise", "images"), 0, "at least 1"),
    (("policies", 1, "promise", "images"), ..., "missing"),
    (("default_budget",), 0.7, "the budget of a policy (0.5, 1)"),
    (("default_budget",), "0.5", "a number"),
    (("default_budget",), ..., "missing"),
    (("preprocess",), [], "an object or null"),
    (("preprocess",), ..., "missing"),
    (("measured",), None, "an object"),
    (("provenance",), "me", "an object"),
]


def place_of(path: tuple[str | int, ...]) -> str:
    """The place as messages write it."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)[1:]


def fails_at(data: object, folder: Path) -> str:
    """What is wrong with a manifest, which must be told alike with and without a file."""
    with pytest.raises(DispatcherError) as from_data:
        Manifest.from_json(data)
    write_manifest(folder, data)
    with pytest.raises(DispatcherError) as from_file:
        Manifest.load(folder)
    assert str(from_file.value) == f"{folder / 'manifest.json'}: {from_data.value}"
    assert "\n" not in str(from_data.value)
    return str(from_data.value)


@pytest.mark.parametrize(
    ("path", "value", "expected"), [pytest.param(*m, id=f"{place_of(m[0])}={str(m[1])[:20]!r}") for m in MUTATIONS]
)
def test_what_is_wrong_is_told_with_its_place(
    tmp_path: Path, path: tuple[str | int, ...], value: object, expected: str
) -> None:
    message = fails_at(edited(path, value), tmp_path)
    head = message.partition(": ")[0].replace("'", "")
    # A list of the wrong length is its own place; a wrong link is told with its index.
    assert head.startswith(place_of(path)) or place_of(path).startswith(head)
    assert expected in message


@pytest.mark.parametrize("data", [None, 1, "text", [], [sound()]])
def test_what_is_no_object_is_no_manifest(tmp_path: Path, data: object) -> None:
    assert "the top level: got" in fails_at(data, tmp_path)


def numbers_in(data: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The places of all numbers."""
    if isinstance(data, dict):
        return [found for key, item in data.items() for found in numbers_in(item, (*path, key))]
    if isinstance(data, list):
        return [found for i, item in enumerate(data) for found in numbers_in(item, (*path, i))]
    return [path] if isinstance(data, int | float) and not isinstance(data, bool) else []


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("path", numbers_in(sound()), ids=place_of)
def test_no_number_may_be_nan_or_infinite(tmp_path: Path, path: tuple[str | int, ...], value: float) -> None:
    with pytest.raises(DispatcherError):
        Manifest.from_json(edited(path, value))
    write_manifest(tmp_path, edited(path, value))
    with pytest.raises(DispatcherError, match="is not a finite number"):
        Manifest.load(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.data(), JSON)
def test_whatever_stands_anywhere_there_is_a_manifest_or_one_sentence(data: st.DataObject, value: object) -> None:
    def places(node: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
        items: list[tuple[Any, Any]] = []
        if isinstance(node, dict):
            items = list(node.items())
        if isinstance(node, list):
            items = list(enumerate(node))
        return [found for key, item in items for found in [(*path, key), *places(item, (*path, key))]]

    path = data.draw(st.sampled_from(places(sound())))
    try:
        manifest = Manifest.from_json(edited(path, value))
    except DispatcherError as error:
        message = str(error)
    else:
        message = ""
        assert Manifest.from_json(manifest.to_json()) == manifest
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("\ufeff{}", "BOM"),
        ('{"format": "s2d-convert", "format": "other"}', "the key 'format' stands twice"),
        ('{"provenance": {"a": {"b": 1, "b": 1}}}', "the key 'b' stands twice"),
        ('{"provenance": {"a": NaN}}', "'NaN' is not a finite number"),
        ('{"provenance": {"a": [-Infinity]}}', "'-Infinity' is not a finite number"),
        ('{"provenance": {"a": 1e999}}', "'1e999' is not a finite number"),
        ('{"provenance": ' + "9" * 5000 + "}", "digits"),
        ("[" * 200_000, "recursion"),
        ('{"format": "\\ud800"}', "format: got '\\ud800'"),
    ],
    ids=lambda text: text[:25],
)
def test_text_that_is_no_sound_json_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(DispatcherError) as caught:
        Manifest.load(tmp_path)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'manifest.json'}: ")
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def nothing(path: Path) -> None:
    """Leave the manifest away."""


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)  # reading it would wait for ever


def a_large_file(path: Path) -> None:
    path.write_text(json.dumps({**sound(), "provenance": {"text": "x" * 2**24}}), encoding="utf-8")


def a_binary_file(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def a_link_out_of_the_folder(path: Path) -> None:
    outside = path.parent.parent / "manifest.json"
    outside.write_text(json.dumps(sound()), encoding="utf-8")
    path.symlink_to(outside)


@pytest.mark.parametrize(
    ("put", "expected"),
    [
        (nothing, "No such file or directory; give a whole folder"),
        (a_folder, "not a file"),
        (a_pipe, "not a file"),
        (a_large_file, "larger than 16777216 bytes"),
        (a_binary_file, "utf-8"),
        (a_link_to_itself, "give a whole folder"),
        (a_link_out_of_the_folder, "a link out of the folder is not followed"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path: Path, put: Callable[[Path], None], expected: str) -> None:
    folder = tmp_path / "OUT"
    folder.mkdir()
    put(folder / "manifest.json")
    with pytest.raises(DispatcherError) as caught:
        Manifest.load(folder)
    assert expected in str(caught.value)
    assert str(folder / "manifest.json") in str(caught.value)


@pytest.mark.parametrize("folder", ["absent", "file"])
def test_what_is_no_folder_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DispatcherError, match="give a whole folder that s2d-convert wrote"):
        Manifest.load(tmp_path / folder)


# --- sound ones -----------------------------------------------------------------------------------------------------


def test_the_round_trip_changes_nothing() -> None:
    manifest = Manifest.from_json(sound())
    plain = manifest.to_json()
    assert plain == sound()
    assert list(plain) == list(sound())
    assert Manifest.from_json(json.loads(json.dumps(plain))) == manifest


def test_values_arrive_in_their_types() -> None:
    manifest = Manifest.from_json(edited(("stages", 0, "temperature"), 2))
    assert manifest.input == TensorSpec("image", (None, 2, 4), "float32")
    assert manifest.output == OutputSpec((None, 4), "logits")
    assert [type(stage) for stage in manifest.stages] == [Stage] * 4
    assert [type(row) for row in manifest.policies] == [Policy] * 2
    assert [row.promise for row in manifest.policies] == [None, Promise(0.01, 0.95, 8)]
    assert manifest.policies[1].confidence_histogram[1] == (5, *[0] * 19)
    assert manifest.exactness == Exactness("close", 1e-5)
    assert type(manifest.stages[0].temperature) is float
    assert manifest.stages[0].links_out[1].shape == (None, 2, 4)


def test_what_is_identical_does_not_differ() -> None:
    data = edited(("exactness",), {"equal": "identical", "max_difference": 0})
    assert Manifest.from_json(data).exactness == Exactness("identical", 0.0)
    data["exactness"]["max_difference"] = 1e-9
    with pytest.raises(DispatcherError, match=r"exactness\.max_difference: got 1e-09; .* at most 0"):
        Manifest.from_json(data)


def test_free_form_parts_are_copies() -> None:
    data = edited(("provenance",), {"options": {"size": [1, 2]}})
    manifest = Manifest.from_json(data)
    data["provenance"]["options"]["size"].append(3)
    manifest.to_json()["provenance"]["options"]["size"].append(4)
    assert manifest.provenance == {"options": {"size": [1, 2]}}


def test_a_manifest_is_also_checked_when_it_is_made_from_another() -> None:
    manifest = Manifest.from_json(sound())
    with pytest.raises(DispatcherError, match="default_budget"):
        dataclasses.replace(manifest, default_budget=0.7)
    with pytest.raises(DispatcherError, match=r"policies\[0\]\.thresholds"):
        dataclasses.replace(manifest, policies=(dataclasses.replace(manifest.policies[0], thresholds=(0.5,)),))
    with pytest.raises(DispatcherError, match=r"stages\[0\]\.macs"):
        dataclasses.replace(manifest, stages=(dataclasses.replace(manifest.stages[0], macs=-1),))


def test_policies_may_stand_in_any_order() -> None:
    data = {**sound(), "policies": [policy(budget, [0.5] * 3) for budget in (1.0, 0.2, 0.5)]}
    manifest = Manifest.from_json(data)
    served = {budget: manifest.policy_for(budget).budget for budget in (0.1, 0.2, 0.4, 0.5, 0.99, 1.0)}
    assert served == {0.1: 0.2, 0.2: 0.2, 0.4: 0.2, 0.5: 0.5, 0.99: 0.5, 1.0: 1.0}


# --- the documentation ----------------------------------------------------------------------------------------------


def test_the_documented_example_is_a_sound_manifest() -> None:
    text = DOCS.read_text(encoding="utf-8").split("```json\n")[1].split("```")[0]
    manifest = Manifest.from_json(json.loads(text))
    assert manifest.to_json() == json.loads(text)


@pytest.mark.parametrize("kind", [Manifest, Stage, Policy, Promise, Exactness, TensorSpec, OutputSpec])
def test_every_field_is_documented(kind: Any) -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert [field.name for field in dataclasses.fields(kind) if f"`{field.name}`" not in text] == []


# Other files, by the same reader


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a made-up file."""

    ratio: float
    note: str | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A made-up file."""

    rows: tuple[Row, ...]
    machine: str = "some"


def test_a_partial_reading_leaves_out_what_it_does_not_know_and_takes_defaults() -> None:
    data = {"rows": [{"ratio": 1, "spread": 2}, {"ratio": 0.5, "note": "slow"}], "version": 1}
    assert read_typed(Table, data, whole=False) == Table((Row(1.0), Row(0.5, "slow")))


@pytest.mark.parametrize(
    ("data", "whole", "words"),
    [
        ({"rows": [{"ratio": 1.0}]}, True, "machine: missing; expected are rows, machine"),
        ({"rows": [], "machine": "x", "y": 1}, True, "'y': unknown; expected are rows, machine"),
        ({}, False, "rows: missing; expected are rows, machine"),
        ({"rows": [{"ratio": 1.0}, {"note": None}]}, False, "rows[1].ratio: missing; expected are ratio, note"),
        ({"rows": [{"ratio": 1.0, "note": 3}]}, False, "rows[0].note: got 3; expected a text or null"),
        ([], False, "the top level: got []; expected an object"),
    ],
)
def test_a_faulty_file_is_refused_with_its_place(data: object, whole: bool, words: str) -> None:
    with pytest.raises(DispatcherError) as error:
        read_typed(Table, data, whole=whole)
    assert str(error.value) == words
