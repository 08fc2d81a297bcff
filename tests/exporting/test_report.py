"""report.html: whole, self-contained, and safe with whatever a manifest, a trace or a class name may say."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from s2d_runtime import Manifest, OutputSpec

from s2d_convert.data.images import Images
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.exporting.report.card import card
from s2d_convert.exporting.report.charts import Series, bars, losses, plot
from s2d_convert.exporting.report.drawing import HIGH, draw_plan
from s2d_convert.exporting.report.gallery import SHOWN, Gallery, Picture, gallery
from s2d_convert.exporting.report.page import page
from s2d_convert.plans.layers import Layer

EVIL = "<script>alert('x')</script>\"&"
VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Collects tags, attributes and text; fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open
    return reader


def manifest(name: str = "model.onnx", **changes: Any) -> Manifest:
    """A manifest whose texts are `name`."""
    policy = {"thresholds": [0.9], "exit_share": [0.7, 0.3], "reached": True, "disagreement": 0.02, "confidence_histogram": [],
              "promise": {"max_drop": 0.01, "confidence": 0.95, "images": 500}}  # fmt: skip
    measured = {"images": 100, "exit_share": [0.7, 0.3], "correct_static": 0.9, "correct_dynamic": 0.89, "agreement": 0.97,
                "static_ms": 1.0, "mean_latency": 0.6, "median_latency": 0.4, "worst_latency": 1.2, "static_macs": 1000,
                "mean_macs": 500.0, "static_parameters": 10, "parameters": 12, "threads": 1, "batch": 1,
                "machine": name}  # fmt: skip
    stage = {"sha256": "0" * 64, "chain": 1, "image": True, "links_in": [], "links_out": [], "latency_ratio": 0.4, "macs": 5,
             "parameters": 6, "temperature": 1.2}  # fmt: skip
    data = {
        "format": "s2d-convert",
        "version": 1,
        "input": {"name": "image", "shape": [None, 3, 8, 8], "dtype": "float32"},
        "output": {"shape": [None, 4], "kind": "logits"},
        "exactness": None,
        "preprocess": None,
        "target": "accuracy",
        "data": "labelled",
        "default_budget": 0.6,
        "policies": [
            {**policy, "budget": 0.6, "expected_latency": 0.55, "expected_accuracy": 0.88},
            {**policy, "budget": 1.0, "expected_latency": 0.9, "expected_accuracy": 0.9, "thresholds": [1.01]},
        ],
        "stages": [{**stage, "file": f"stage{k}.onnx"} for k in (1, 2)],
        "measured": measured,
        "provenance": {"model": f"/somewhere/{name}", "options": {"data": name}, "versions": {"numpy": "2"}},
        **changes,
    }
    return Manifest.from_json(data)


TRACE = [{"method": m, "index": i, "reward": 0.1 * i} for m in ("random", "reinforce") for i in range(4)]


def test_the_page_shows_what_the_manifest_says() -> None:
    text = " ".join(read(page(manifest(), TRACE, Gallery((Picture("QUJD", "cat, 99 %"),)))).text)
    for part in (
        "model.onnx",
        "89.00 %",
        "0.600",
        "1.200",
        "cat, 99 %",
        "at most 1 % below",
        "500 images",
        "never",
        "reinforce",
    ):
        assert part in text


@pytest.mark.parametrize("calibrated", [False, True])
def test_images_that_thresholds_were_chosen_on_are_told_as_such(calibrated: bool) -> None:
    measured = {**manifest().measured, "outcomes": OUTCOMES, **({"images_of": "calibration"} if calibrated else {})}
    whole = manifest(measured=measured)
    for text in (" ".join(read(page(whole, TRACE, Gallery())).text), card(whole)):
        assert ("100 images of calibration" in text) == calibrated
        assert ("100 images that nothing was trained or chosen on" in text) == (not calibrated)


def test_the_page_asks_for_nothing_and_runs_nothing() -> None:
    html = page(manifest(), TRACE, Gallery((Picture("QUJD", "cat"),)))
    reader = read(html)
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(reader.tags)
    assert all(
        value is None or value.startswith("data:image/png")
        for key, value in reader.attributes
        if key in ("src", "href")
    )
    assert not re.search(r"url\(|@import|https?://", html)


def test_names_from_outside_stay_text() -> None:
    method = [{"method": EVIL, "index": 0, "reward": 0.5}]
    evil = full(EVIL).to_json()
    evil["measured"]["per_class"] = [{**row, "name": EVIL} for row in CLASSES]
    evil["provenance"] |= {"date": EVIL, "layers": [{**layer, "name": EVIL} for layer in LAYERS]}
    evil["preprocess"] = {"formula": EVIL, "resize": EVIL}
    shown = Gallery((Picture("QUJD", EVIL),), hard=(Picture("QUJD", EVIL),))
    html = page(Manifest.from_json(evil), method, shown, folder=EVIL)
    assert "script" not in read(html).tags
    assert EVIL not in html


OUTCOMES = [
    {
        "budget": b,
        "latency": latency,
        "worst": 1.2,
        "right": 0.9 - loss,
        "loss": loss,
        "loss_error": 0.004,
        "exit_share": [0.7, 0.3],
    }
    for b, latency, loss in ((0.3, 0.3, 0.05), (0.4, 0.3, 0.05), (0.6, 0.55, 0.01), (1.0, 1.05, 0.0))
]
CLASSES = [
    {"name": name, "images": 50, "correct_static": 0.9, "correct_dynamic": right, "agreement": 0.9, "loss_error": 0.02}
    for name, right in (("cat", 0.8), ("a dog with a long name", 0.95))
]
LAYERS = [{"name": f"conv{n}", "channels": 8, "made": [8 - n, n]} for n in range(4)]


def full(name: str = "model.onnx") -> Manifest:
    """A manifest with all that the page can show."""
    plain = manifest(name)
    return manifest(
        name,
        measured={
            **plain.measured,
            "outcomes": OUTCOMES,
            "per_class": CLASSES,
            "lost_classes": ["stage 1 loses class 'cat'"],
        },
        preprocess={"formula": "(pixel * scale - mean) / std", "scale": 1 / 255, "mean": [0.5, 0.25], "order": "RGB"},
        provenance={**plain.provenance, "date": "2026-03-04", "layers": LAYERS},
    )


def test_the_verdict_comes_first_and_everything_has_its_place() -> None:
    reader = read(page(full(), TRACE, Gallery(), folder="my out"))
    text = " ".join(" ".join(reader.text).split())
    order = ["2026-03-04", "Loses 1.0 ± 0.4 points of accuracy", "s2d evaluate 'my out' --data IMAGES", "s2d serve 'my out'",
             "Accuracy against latency", "Where images leave", "Budgets", "The plan", "Class by class", "Measured from",
             "From pixels to model input", "(pixel * scale - mean) / std"]  # fmt: skip
    places = [text.index(part, 200 if part == "Budgets" else 0) for part in order]
    assert places == sorted(places)
    assert "0.5, 0.25" in text
    assert "stage 1 loses class 'cat'" in text


def test_the_table_of_budgets_merges_marks_and_has_the_static_model() -> None:
    html = page(full(), [], Gallery())
    table = html.partition("<h2>Budgets</h2>")[2].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr(?: class=default)?>.*?</tr>", table)][
        1:
    ]
    assert [row[0] for row in rows] == [
        "0.3",
        "0.6",
        "static model",
    ]  # 0.4 is as 0.3, 1.0 is beaten by the static model
    assert [row[4] for row in rows] == ["5.00 ± 0.40", "1.00 ± 0.40", ""]
    assert re.findall(r"<tr class=default><td[^>]*>(.*?)</td>", table) == ["0.6"]


def test_pictures_that_became_wrong_are_told_as_such() -> None:
    shown = Gallery((Picture("QUJD", "cat, 99 % at stage 1 (was dog)"),))
    assert "The static model is right on all of them" in page(full(), [], shown)
    unlabelled = manifest(measured={**manifest().measured, "correct_static": None, "correct_dynamic": None})
    assert "the static model says something else" in page(unlabelled, [], shown)


def test_the_drawing_has_a_column_per_layer_and_a_band_per_chain() -> None:
    layers = [Layer("a", 8, (4, 2)), Layer("<b>", 4, (0, 4))]
    for chains, bands in (([1, 1], 1), ([1, 2], 2)):
        root = ElementTree.fromstring(draw_plan(layers, chains).split("<p class")[0])
        columns = root.findall("g")
        assert len(columns) == 2 * bands
        high = [[float(r.attrib["height"]) for r in g.findall("rect")[1:]] for g in columns]
        if bands == 1:
            assert high == [[HIGH / 2, HIGH / 4], [0.0, HIGH]]
            assert columns[1].findtext("title") == "<b>: of 4 channels 0 in stage 1, 4 in stage 2"
        else:
            assert high == [[HIGH / 2], [0.0], [HIGH / 4], [HIGH]]
    assert draw_plan([], [1]) == draw_plan(layers, [1, 1, 1]) == ""


def test_losses_are_drawn_from_zero_with_their_errors() -> None:
    svg = losses([("a", 0.1, 0.02), ("b & c", -0.05, 0.01), ("nan", float("nan"), 0.0)]).split("<p class")[0]
    root = ElementTree.fromstring(svg)
    bars_of = root.findall("rect")
    assert float(bars_of[0].attrib["width"]) == pytest.approx(2 * float(bars_of[1].attrib["width"]), rel=0.01)
    assert [bar.findtext("title") for bar in bars_of] == ["a: 10.00 ± 2.00 points", "b & c: -5.00 ± 1.00 points"]
    lengths = [
        float(e.attrib["x2"]) - float(e.attrib["x1"]) for e in root.findall("line") if e.attrib["y1"] == e.attrib["y2"]
    ]
    assert lengths[0] == pytest.approx(2 * lengths[1], rel=0.02)
    assert losses([]) == ""


def test_error_bars_are_as_long_as_their_errors_and_stay_within_shares() -> None:
    series = Series("a", 0, ((0.5, 0.5), (0.6, 0.99)), errors=(0.1, 0.05))
    root = ElementTree.fromstring(plot([series], x_name="x", y_name="y", percent=True).split("<p class")[0])
    bars_of = [e for e in root.findall("line") if "stroke" in e.attrib and e.attrib["x1"] == e.attrib["x2"]]
    lengths = [abs(float(e.attrib["y2"]) - float(e.attrib["y1"])) for e in bars_of]
    assert lengths[0] / lengths[1] == pytest.approx(0.2 / 0.06, rel=0.02)


def test_narrow_screens_and_dark_ones_are_provided_for() -> None:
    html = page(full(), TRACE, Gallery())
    assert "prefers-color-scheme:dark" in html
    assert "@media(max-width:600px)" in html
    for row in re.findall(r"<tr[^>]*>(<td.*?)</tr>", html):  # each is a card of its own: a title, then named values
        cells = re.findall(r"<td( data-name=\"[^\"]+\")?>([^<]*)</td>", row)
        assert [text for name, text in cells[1:] if text and not name] == []


@pytest.mark.parametrize("changes", [{"measured": {}}, {"target": "agreement", "data": "made-up"}])
def test_what_is_not_there_is_left_out(changes: dict[str, Any]) -> None:
    text = " ".join(read(page(manifest(**changes), [], Gallery())).text)
    assert "Search" not in text
    assert ("Measured" in text) == ("measured" not in changes)
    assert ("made-up" in text) == (changes.get("data") == "made-up")


@pytest.mark.parametrize(
    "values", [[(0.5, 0.5)], [(0.0, 0.0)], [(1e-9, 1.0), (2e-9, 1.0)], [(3.0, -2.0), (float("nan"), 1.0)]]
)
def test_a_plot_of_anything_is_sound(values: list[tuple[float, float]]) -> None:
    svg = plot([Series("a", 0, tuple(values), line=True)], x_name="x", y_name="y").split("<p class")[0]
    root = ElementTree.fromstring(svg)
    dots = root.findall("circle")
    assert len(dots) == sum(all(map(np.isfinite, v)) for v in values)
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    assert all(0 <= float(d.attrib["cx"]) <= width and 0 <= float(d.attrib["cy"]) <= height for d in dots)
    assert len(root.findall("text")) >= 4
    assert plot([], x_name="x", y_name="y") == ""


def test_bars_are_as_long_as_their_shares() -> None:
    svg = bars([("0.5", [0.25, 0.75]), ("1", [0.0, 1.0])]).split("<p class")[0]
    widths = [float(r.attrib["width"]) + 1 for r in ElementTree.fromstring(svg).findall("rect")]
    assert widths[1] / widths[0] == pytest.approx(3, rel=0.01)
    assert widths[3] == pytest.approx(widths[0] + widths[1], rel=0.01)


class FirstStageKnowsTheBright:
    """A dispatcher that is sure of bright images."""

    manifest = SimpleNamespace(output=OutputSpec((None, 2, 1, 1), "logits"))

    def __call__(self, images: np.ndarray[Any, Any]) -> Any:
        light = images.mean(axis=(1, 2, 3))
        answer = type("Answer", (), {})()
        answer.confidence, answer.stage = light.astype(np.float32), np.where(light > 0.5, 1, 2)
        answer.output = np.stack([light, 1 - light], axis=1)[:, :, None, None]
        return answer


@pytest.mark.parametrize("pixels", [True, False])
def test_the_gallery_has_the_surest_and_the_least_sure(pixels: bool) -> None:
    light = np.linspace(0, 1, 60)
    raw = np.broadcast_to(light[:, None, None, None], (60, 4, 4, 3)).copy()
    raw[:, 0, 0] = 0.5  # so that an image has a range
    store = (255 * raw).astype(np.uint8) if pixels else raw.transpose(0, 3, 1, 2).astype(np.float32)
    preprocess = make_preprocess("unit", size=(4, 4), channels=3, layout="NCHW")
    images = Images(store, preprocess, np.arange(60), np.zeros(60, np.int64), "labelled", ("bright", "dark"))
    found = gallery(FirstStageKnowsTheBright(), images)  # type: ignore[arg-type]
    assert len(found.easy) == len(found.hard) == SHOWN
    assert found.easy[0].caption.startswith("bright, ")
    assert found.hard[0].caption.endswith("(is bright)")
    assert all(p.png.startswith("iVBOR") for p in (*found.easy, *found.hard))
    assert found.wrong == ()
    assert gallery(FirstStageKnowsTheBright(), images, {3: (1,), 99: (0,)}).wrong[0].caption.endswith("(was dark)")  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_needs_no_sideways_scrolling(width: int, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("chromium is not installed")
    evil = full("a_very_long_name_" * 12).to_json()
    evil["provenance"]["options"] = {"data": "x" * 400}
    shown = Gallery((Picture("QUJD", "y" * 300),))
    (tmp_path / "report.html").write_text(page(Manifest.from_json(evil), TRACE, shown), encoding="utf-8")
    (tmp_path / "frame.html").write_text(  # a window cannot be as narrow as a telephone, a frame can
        f"<iframe id=f src=report.html style='width:{width}px;height:900px;border:0'></iframe><p id=p></p><script>"
        "f.onload=()=>{const e=f.contentDocument;e.querySelectorAll('details').forEach(d=>d.open=true);"
        "p.textContent=`${e.documentElement.scrollWidth} of ${e.documentElement.clientWidth}`}</script>",
        encoding="utf-8",
    )
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
               f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000", "--virtual-time-budget=5000",
               "--dump-dom", (tmp_path / "frame.html").as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    measured = re.search(r"<p id=\"p\">(\d+) of (\d+)</p>", done.stdout)
    assert measured is not None, done.stderr[-500:]
    assert int(measured[1]) <= int(measured[2])
    assert width - 20 <= int(measured[2]) <= width
