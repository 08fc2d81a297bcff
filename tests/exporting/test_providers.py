"""The single file on other execution providers: warned of where it is known not to be worth it, never refused."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime as ort
import pytest
from command_line import call
from tiny import Listener, ask, fresh_place, make_folder, written_plan

import s2d_convert
from s2d_convert.base.sessions import THREADS_OF, with_threads
from s2d_convert.conversion.pipeline import convert
from s2d_convert.errors import UsageError, VerifyError
from s2d_convert.exporting import single
from s2d_convert.exporting.providers import TROUBLES, caution


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the tiny model."""
    place = make_folder(tmp_path_factory.mktemp("providers"), 300)
    with pytest.MonkeyPatch.context() as patch:
        place = fresh_place(place, tmp_path_factory.mktemp("fresh"), patch)
        convert(ask(place, plan=written_plan(place)), Listener())
    return place / "out"


def test_the_cpu_needs_no_warning() -> None:
    assert caution("CPUExecutionProvider") == ""
    assert with_threads("CPUExecutionProvider", 2) == ["CPUExecutionProvider"]


def test_threads_of_their_own_are_limited() -> None:
    for provider, option in THREADS_OF.items():
        assert with_threads(provider, 2) == [(provider, {option: "2"})]


@pytest.mark.parametrize("provider", [*TROUBLES, "SomeExecutionProvider"])
def test_a_single_file_for_a_provider_is_written_with_a_warning(
    provider: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "export", str(folder), "--single", str(tmp_path / "one.onnx"), "--provider", provider)
    assert code == 0, err
    assert (tmp_path / "one.onnx").is_file()
    assert out.splitlines()[-1] == f"warning: {caution(provider)}"


def test_the_provider_that_a_folder_was_converted_for_counts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = json.loads((folder / "manifest.json").read_text())["provenance"]["options"]["provider"]
    assert recorded == "CPUExecutionProvider"
    assert single.write_single(folder, tmp_path / "cpu.onnx").caution == ""
    monkeypatch.setattr(single, "recorded_provider", lambda manifest: "QNNExecutionProvider")
    assert "both branches" in single.write_single(folder, tmp_path / "qnn.onnx").caution


def test_a_provider_that_is_here_is_tried(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = single._check_like

    def differing(*arguments: object, provider: str = "CPUExecutionProvider") -> None:
        if provider != "CPUExecutionProvider":
            raise VerifyError("other answers")
        check(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(single, "_check_like", differing)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["OddExecutionProvider", "CPUExecutionProvider"])
    made = single.write_single(folder, tmp_path / "odd.onnx", provider="OddExecutionProvider")
    assert "answers otherwise than the stages there" in made.caution
    assert made.path.is_file()


def test_the_functions_take_it_too(folder: Path, tmp_path: Path) -> None:
    result = s2d_convert.export(folder, single=tmp_path / "one.onnx", provider="QNNExecutionProvider", quiet=True)
    assert isinstance(result, s2d_convert.ExportResult)
    assert any("both branches" in fact for fact in result.facts)


def test_measuring_on_a_provider_that_is_not_here_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(
        capsys, "bench", str(folder), "--provider", "QNNExecutionProvider", "--model", str(folder.parent / "tiny.onnx")
    )
    assert code == 2
    assert "--provider QNNExecutionProvider: onnxruntime here has" in err
    with pytest.raises(UsageError, match="onnxruntime here has"):
        convert(ask(folder.parent, out=folder.parent / "other", provider="QNNExecutionProvider"), Listener())
