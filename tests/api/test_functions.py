"""The functions for Python on a tiny model: they do what the commands do, and their results show themselves."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from s2d_runtime import Dispatcher
from tiny import EFFORT, TINY, Listener, ask, make_folder, quadrants, written_plan

import s2d_convert
from s2d_convert.api.results import ConvertResult, InspectResult, MeasuredResult, PicturesResult
from s2d_convert.base.clock import Clock
from s2d_convert.cli.main import COMMANDS
from s2d_convert.conversion import options
from s2d_convert.conversion.run_folder import RunFolder
from s2d_convert.errors import DataError, OutputError, UsageError
from s2d_convert.exporting import timing

mpl.use("Agg")
QUIET = {"quiet": True}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model, converted by the function, and images that the conversion did not see."""
    place = make_folder(tmp_path_factory.mktemp("api"), 700)
    images, labels = quadrants(300, 11)
    np.savez(place / "fresh.npz", images=images, labels=labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options, "EFFORTS", {**options.EFFORTS, TINY: EFFORT})
        patch.chdir(place)
        made = s2d_convert.convert(
            "tiny.onnx", data="data.npz", budget=0.9, effort=TINY, plan=Path(written_plan(place)), flip=False,
            device="cpu", preprocess="raw", quiet=True,
        )  # fmt: skip
    assert made.path == Path("tiny.s2d")
    RESULTS.append(made)
    return place


RESULTS: list[ConvertResult] = []


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in, where latencies are measured in short."""
    monkeypatch.setattr(timing, "SECONDS", 0.05)
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def made(place: Path) -> ConvertResult:
    """The result of the conversion."""
    return RESULTS[0]


def test_a_conversion_shows_itself(made: ConvertResult) -> None:
    assert isinstance(made, s2d_convert.Result)
    text = made.summary()
    assert text.startswith(made.verdict.sentences[0])
    assert "budgets, on" in text
    assert "static model" in text
    latency = made.verdict.outcome.latency
    assert repr(made).startswith(f"<ConvertResult tiny.s2d: {latency:.3f} of static, ")
    assert "\n" not in repr(made)
    html = made._repr_html_()
    assert html.count("<tr>") == html.count("</tr>") > 2
    assert "static model" in html


def test_a_result_opens_and_stands_for_its_folder(made: ConvertResult, place: Path) -> None:
    images, _ = quadrants(8, 3)
    with made.dispatcher(budget=made.manifest.default_budget) as runner, Dispatcher(made) as again:
        assert np.array_equal(runner(images).output, again(images).output)
    found = s2d_convert.evaluate(made, "fresh.npz", quiet=True)
    assert found.measured.images == 300
    assert found.measured.correct_dynamic is not None


def test_the_chart_has_the_static_model_and_what_is_in_use(made: ConvertResult) -> None:
    axes = made.plot()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"static model", "in use", "budgets"} <= set(labels)
    (static,) = [line for line in axes.lines if line.get_label() == "static model"]
    assert static.get_xdata()[0] == 1.0
    assert static.get_ydata()[0] == pytest.approx(100 * (made.measured.correct_static or 0.0))
    assert made.plot(axes) is axes


def test_without_matplotlib_plot_says_what_to_install(made: ConvertResult, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="plot: matplotlib is not installed; pip install matplotlib"):
        made.plot()


def test_calibrate_and_back(place: Path) -> None:
    before = Path("tiny.s2d/manifest.json").read_bytes()
    done = s2d_convert.calibrate("tiny.s2d", "fresh.npz", budget=0.8, **QUIET)
    assert done.manifest.default_budget == 0.8
    assert "calibrated budgets" in done.summary()
    assert "<table>" in done._repr_html_()
    assert done.plot().get_ylabel() == "accuracy, %"
    assert Path("tiny.s2d/manifest.json").read_bytes() != before
    s2d_convert.calibrate("tiny.s2d", undo=True)
    assert Path("tiny.s2d/manifest.json").read_bytes() == before


def test_evaluate_is_the_command(place: Path) -> None:
    done = s2d_convert.evaluate("tiny.s2d", data=Path("fresh.npz"), model="tiny.onnx", quiet=True)
    assert isinstance(done, MeasuredResult)
    assert "accuracy" in done.summary()
    assert "tiny.s2d on 300 images" in done.summary()
    assert f"{done.measured.mean_latency:.3f} of static" in repr(done)


def test_export_to_one_file_and_to_triton(place: Path) -> None:
    done = s2d_convert.export("tiny.s2d", single="one.onnx", bake=0.9)
    assert done.path.is_file()
    assert "are fixed in it" in done.summary()
    repository = s2d_convert.export(Path("tiny.s2d"), triton="REPO", name="net", max_batch=8)
    assert (repository.path / "net").is_dir()
    assert "clients call 'net'" in repr(repository)


def test_export_in_other_arithmetic(place: Path) -> None:
    done = s2d_convert.export("tiny.s2d", quantize="fp16", data="data.npz", out="half.s2d", quiet=True)
    assert isinstance(done, MeasuredResult)
    assert done.manifest.provenance["arithmetic"] == "fp16"
    assert "calibrated budgets" in done.summary()


def test_a_forecast_trains_and_writes_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "EFFORTS", {**options.EFFORTS, TINY: EFFORT})
    before = sorted(place.iterdir())
    told = s2d_convert.forecast("tiny.onnx", data="data.npz", effort=TINY, preprocess="raw", quiet=True, device="cpu")
    assert sorted(place.iterdir()) == before
    assert f"static accuracy {100 * told.forecast.right:.1f} %" in repr(told)
    assert "choosing among plans" in told.summary()
    assert "points lost" in told.summary()
    assert "<table>" in told._repr_html_()


def test_inspect_gives_the_data_of_the_command(place: Path) -> None:
    found = s2d_convert.inspect("tiny.onnx")
    assert isinstance(found, InspectResult)
    assert found["macs"] == found.about["macs"] > 0
    assert "channel classes" in found.summary()
    assert "share of MACs" in found._repr_html_()
    (place / "pictures").mkdir()
    Image.new("RGB", (20, 10), (200, 0, 0)).save(place / "pictures" / "<red>.png")
    seen = s2d_convert.inspect("tiny.onnx", data="pictures", preprocess="unit", pictures="seen")
    assert isinstance(seen, PicturesResult)
    assert "<red>.png" in seen.summary()
    assert "&lt;red&gt;.png" in seen._repr_html_()
    assert (place / "seen" / "1.png").is_file()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: s2d_convert.convert(), "convert: 'model' is missing"),
        (lambda: s2d_convert.convert("tiny.onnx", "images/"), "give images as data='images/'"),  # type: ignore[arg-type]
        (lambda: s2d_convert.convert("tiny.onnx", max_loss=0.1, budget=0.5, data="data.npz"), "--max-loss: means"),
        (lambda: s2d_convert.convert("tiny.onnx", confidence=0.9), "--confidence: means nothing"),
        (lambda: s2d_convert.inspect("tiny.onnx", mean=0.5), "--mean: means nothing without --data"),
        (lambda: s2d_convert.inspect("tiny.onnx", budget=0.5), "inspect: no argument 'budget'"),
        (lambda: s2d_convert.inspect("tiny.onnx", sise=3), "no argument 'sise'; did you mean size or resize?"),
        (lambda: s2d_convert.calibrate("tiny.s2d"), "--data: give some hundred real images"),
        (lambda: s2d_convert.calibrate("tiny.s2d", undo=True, budget=0.5), "--undo: brings back"),
        (lambda: s2d_convert.calibrate("tiny.s2d", "fresh.npz", bugdet=0.5), "calibrate: no argument 'bugdet'"),
        (lambda: s2d_convert.evaluate("tiny.s2d", "fresh.npz", seed=1), "evaluate: no argument 'seed'"),
        (lambda: s2d_convert.evaluate("tiny.s2d", "fresh.npz", modle="x"), "'modle'; did you mean model?"),
        (lambda: s2d_convert.evaluate("tiny.s2d", "fresh.npz", static="x"), "evaluate: no argument 'static'"),
        (lambda: s2d_convert.export("tiny.s2d"), "exactly one of --single"),
        (lambda: s2d_convert.export("tiny.s2d", single="a", triton="b"), "exactly one of --single"),
        (lambda: s2d_convert.export("tiny.s2d", single="a.onnx", queue=3), "--queue: means nothing beside --single"),
        (lambda: s2d_convert.export("tiny.s2d", single="a.onnx", bake=2.0), "--bake 2"),
        (lambda: s2d_convert.export("tiny.s2d", quantize="int8", out="x"), "export: 'data' is missing"),
        (lambda: s2d_convert.export("tiny.s2d", singel="a.onnx"), "no argument 'singel'; did you mean single"),
    ],
)
def test_bad_arguments_are_one_sentence(place: Path, call: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert words in str(caught.value)


def test_errors_are_those_of_the_commands(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OutputError, match="exists already"):
        s2d_convert.convert("tiny.onnx", data="data.npz", out="tiny.s2d")
    with pytest.raises(DataError, match="does not exist"):
        s2d_convert.evaluate("tiny.s2d", "missing", quiet=True)
    assert capsys.readouterr() == ("", "")


def test_the_call_with_options_and_a_reporter_is_still_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "EFFORTS", {**options.EFFORTS, TINY: EFFORT})
    asked, listener = ask(place, plan=written_plan(place), preprocess="raw"), Listener()
    done = s2d_convert.convert(asked, listener)
    assert done.out == asked.out
    assert listener.steps[0] == "load"
    with pytest.raises(UsageError, match="no argument 'budget'"):
        s2d_convert.convert(asked, budget=0.5)


def test_an_interrupted_call_says_how_to_go_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], interruptible: None
) -> None:
    def interrupt(asked: options.ConvertOptions, reporter: object, *, clock: Clock) -> None:
        RunFolder(asked.out).path.mkdir()
        signal.raise_signal(signal.SIGINT)
        assert clock.left() == 0
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("s2d_convert.api.functions.convert_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        s2d_convert.convert("tiny.onnx", data="data.npz", out="cut")
    first, second = capsys.readouterr().err.splitlines()
    assert "finishing with the best so far" in first
    assert "the same call with resume=True goes on" in second


@pytest.mark.parametrize("name", ["convert", "forecast", "inspect", "calibrate", "evaluate", "export"])
def test_every_function_documents_every_argument(name: str) -> None:
    function = getattr(s2d_convert, name)
    arguments = function.__doc__.partition("Keyword arguments:")[2].strip().splitlines()
    assert name in {*COMMANDS, "forecast"}
    assert "quiet: Show neither progress" in arguments[-1]
    assert [line for line in arguments if not line.partition(": ")[2]] == []
    assert "--" not in function.__doc__.partition("Keyword arguments:")[2]


def test_every_option_of_a_conversion_is_a_documented_argument() -> None:
    signature = s2d_convert.convert.__signature__  # type: ignore[attr-defined]
    fields = set(options.ConvertOptions.__dataclass_fields__)
    assert set(signature.parameters) - fields == {"reporter", "quiet"}
    assert fields <= set(signature.parameters)
    text = s2d_convert.convert.__doc__ or ""
    assert [name for name in fields - {"model"} if f"\n{name}: " not in text] == []


def test_importing_loads_nothing_heavy_and_dir_is_the_public_door() -> None:
    code = (
        "import sys, s2d_convert; names = dir(s2d_convert); print({'torch', 'onnx', 'rich'} & set(sys.modules), names)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("set()")
    visible = [name for name in dir(s2d_convert) if not name.startswith("_")]
    assert visible == sorted(s2d_convert.__all__)
    assert "__version__" in dir(s2d_convert)
