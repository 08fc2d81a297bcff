"""README.md and docs/results.md say what `benchmarks/results/` says, and the records are sound."""

from __future__ import annotations

import json
import math
import re
import shlex
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import compare, publish
from benchmarks.methods import METHODS
from benchmarks.publish import PAGES, ROOT, unknown_quotes, with_tables, written
from benchmarks.published import RESULTS, Record, read_records
from benchmarks.published_picture import PANELS, picture
from benchmarks.published_tables import TABLES, rounded

NOT_METHODS = {"exact", "int8:early"}  # conversions that the stand does not compare


@pytest.fixture(scope="module")
def records() -> dict[str, Record]:
    """All published records."""
    return read_records()


def test_pages_and_picture_are_what_the_records_say(records: dict[str, Record]) -> None:
    """`python -m benchmarks.publish` mends what differs."""
    assert [path.name for path, text in written(records).items() if path.read_text(encoding="utf-8") != text] == []


def test_every_table_is_on_a_page_once() -> None:
    pages = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    assert sorted(found[2] for found in publish.MARKED.finditer(pages)) == sorted(TABLES)
    assert pages.count("<!-- table: ") == pages.count("<!-- end of table -->") == len(TABLES)


@pytest.mark.parametrize("page", PAGES)
def test_numbers_in_sentences_are_those_of_a_record(page: str, records: dict[str, Record]) -> None:
    assert unknown_quotes((ROOT / page).read_text(encoding="utf-8"), records) == []


def test_static_accuracies_in_sentences_are_known(records: dict[str, Record]) -> None:
    """Rows name the accuracy of their static model where they are compared with it."""
    for record in records.values():
        if record.method == "static":
            assert record.accuracy == record.network.accuracy


def test_a_wrong_number_is_noticed(records: dict[str, Record]) -> None:
    row = records["resnet20/pruned"]
    assert unknown_quotes("pruned: 83.00 % at 0.577, or 83.0 % at **0.58**", {"row": row}) == []
    assert unknown_quotes("pruned: 83.00 % at 0.578 and 83.1 % at 0.58", {"row": row}) == [
        "83.00 % at 0.578",
        "83.1 % at 0.58",
    ]
    assert unknown_quotes("85.85 ± 0.19 % at 0.579", {"row": row}) == []
    changed = {**records, row.key: replace(row, accuracy=84.0)}
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert with_tables(text, changed) != text


def test_a_table_that_nobody_knows_is_an_error(records: dict[str, Record]) -> None:
    with pytest.raises(KeyError, match="nonsense"):
        with_tables("<!-- table: nonsense -->\n\n<!-- end of table -->\n", records)


def test_records_are_sound(records: dict[str, Record]) -> None:
    for record in records.values():
        assert record.latency or record.method == "static-tuned", record.key
        assert all(0 < value < 2 for value in (*record.latency, *record.worst)), record.key
        assert record.method in METHODS or record.method in NOT_METHODS, record.key
        assert record.run.seeds == 1 or record.accuracy_spread is not None, record.key
        assert record.run.command or record.run.note, record.key
        assert {"python", "onnxruntime"} <= set(record.run.machine.versions), record.key
        if record.accuracy is not None:
            share, images = record.accuracy / 100, record.network.test_images
            error = 100 * math.sqrt(share * (1 - share) / images)
            assert record.standard_error == pytest.approx(error, abs=0.0051), record.key
            right = share * images * record.run.seeds
            assert abs(right - round(right)) < 0.0051 * images / 100 * record.run.seeds, record.key


def test_results_stay_small_and_name_no_row_twice(tmp_path: Path) -> None:
    assert sum(path.stat().st_size for path in RESULTS.iterdir()) < 100_000
    for path in RESULTS.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    broken = json.loads((tmp_path / "digits.json").read_text())
    broken["rows"].append(broken["rows"][0])
    (tmp_path / "digits.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="two rows are named ours"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("value", "digits", "text"), [(0.435, 2, "0.44"), (0.345, 2, "0.35"), (89.0, 1, "89.0"), (None, 1, "")]
)
def test_half_is_rounded_up(value: float | None, digits: int, text: str) -> None:
    assert rounded(value, digits) == text


def test_the_picture_is_svg_with_every_point(records: dict[str, Record]) -> None:
    root = ET.fromstring(picture(records))
    marks = [e for e in root.iter("{http://www.w3.org/2000/svg}path") if e.get("class") == "mark"]
    points = sum(len(names) for kinds in PANELS.values() for names in kinds)
    legend = 1 + len(next(iter(PANELS.values())))
    assert len(marks) == points + len(PANELS) + legend
    width, height = (float(v) for v in str(root.get("viewBox")).split()[2:])
    for mark in marks:
        x, y = (float(v) for v in re.findall(r"[\d.]+", str(mark.get("d")))[:2])
        assert 0 < x < width
        assert 0 < y < height
    assert "prefers-color-scheme: dark" in picture(records)


def test_a_point_outside_its_panel_is_an_error(records: dict[str, Record]) -> None:
    row = records["fashion-methods/pruned"]
    with pytest.raises(ValueError, match=r"fashion-methods/pruned: 64.2 % at 0.501 is outside its panel"):
        picture({**records, row.key: replace(row, accuracy=64.2)})


def test_a_row_is_shown_with_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert publish.main(["--row", "resnet20/pruned"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["accuracy"] == 83.0
    assert shown["run"]["command"][0].startswith("python -m benchmarks.compare --model resnet20-cifar10.onnx")
    assert shown["run"]["machine"]["versions"]["onnxruntime"] == "1.32.0"
    with pytest.raises(SystemExit, match="--row nonsense: expected one of"):
        publish.main(["--row", "nonsense"])


def test_commands_of_the_stand_are_still_understood(records: dict[str, Record]) -> None:
    commands = {command for record in records.values() for command in record.run.command}
    stand = [shlex.split(command) for command in sorted(commands) if "benchmarks.compare" in command]
    assert len(stand) >= 7
    for words in stand:
        assert compare.options_of(compare.parse(words[3:])).work.evaluations > 0


def test_nothing_differs_is_exit_code_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert publish.main(["--check"]) == 0
    assert capsys.readouterr().out == ""
