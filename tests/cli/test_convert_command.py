"""`s2d-convert` around the conversion itself: what it shows, what it resumes, what it replaces, how it ends."""

from __future__ import annotations

import errno
import json
import re
import shlex
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import onnx
import pytest
from click.testing import CliRunner
from command_line import call
from text_nets import residual

from s2d_convert import conversion, errors
from s2d_convert.base.clock import Clock
from s2d_convert.base.files import naming, whole_folder, write_bytes
from s2d_convert.calibration.verdict import Outcome, verdict, worth_showing
from s2d_convert.cli import convert as cli_convert
from s2d_convert.cli.convert import finish_at_interrupt
from s2d_convert.cli.main import COMMANDS, convert_main, load_command, s2d
from s2d_convert.cli.progress import TerminalReporter
from s2d_convert.conversion.options import ConvertOptions
from s2d_convert.conversion.run_folder import RunFolder
from s2d_convert.errors import OutputError, S2DError
from s2d_convert.exporting.folder import check_target

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model and an exported folder of it."""
    onnx.save(residual(), str(tmp_path / "model.onnx"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[ConvertOptions]:
    """What the command line asks the conversion for, instead of doing it."""
    got: list[ConvertOptions] = []

    def note(options: ConvertOptions, _reporter: object, **_clock: object) -> None:
        got.append(options)
        raise OutputError("far enough")

    monkeypatch.setattr(conversion, "convert", note)
    return got


# --- exit codes -------------------------------------------------------------------------------------------


def test_the_table_of_exit_codes_is_what_the_code_does() -> None:
    text = (DOCS / "command-line.md").read_text(encoding="utf-8").partition("## Exit codes")[2]
    documented = [int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)]
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, S2DError)]
    results = [value for name, value in vars(errors).items() if name.startswith("EXIT_")]
    used = [0, *(one.exit_code for one in classes), *results]
    assert documented == sorted(used)
    assert len(set(used)) == len(used)


# --- help -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_examples_of_options_that_exist(name: str) -> None:
    command = load_command(name)
    shown = CliRunner().invoke(s2d, [name, "-h"], terminal_width=100).output
    for example in COMMANDS[name].examples:
        assert f"  {example}\n" in shown
        words = shlex.split(example)
        args = words[1:] if words[0] == "s2d-convert" else words[2:]
        assert words[0] == "s2d-convert" or words[:2] == ["s2d", name]
        with command.make_context(name, args) as context:
            assert context.params


def test_no_description_of_a_command_is_cut() -> None:
    shown = " ".join(CliRunner().invoke(s2d, ["--help"], terminal_width=60).output.split())
    assert [command.summary for command in COMMANDS.values() if command.summary not in shown] == []


@pytest.mark.parametrize(("args", "words"), [("--version", "version"), ("-h", "Examples:"), ("--help", "-h, --help")])
def test_the_short_command_has_version_and_help(args: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    convert_main([args])
    assert words in capsys.readouterr().out


# --- resume -----------------------------------------------------------------------------------------------


def begin_run(place: Path, **changes: Any) -> ConvertOptions:
    """Leave an unfinished run of `out` behind; returns its options."""
    options = ConvertOptions(model=Path("model.onnx"), out=place / "out", budget=0.4, seed=7, **changes)
    RunFolder(options.out).open(options.fingerprint(), options.to_json())
    return options


@pytest.mark.parametrize("args", ["--resume out", "--resume out.run", "--resume --out out", "--out out --resume"])
def test_a_run_is_resumed_as_it_was_asked_for(args: str, place: Path, asked: list[ConvertOptions]) -> None:
    before = begin_run(place, mean=(0.5, 0.5, 0.5), size=(8, 8), effort="quick", flip=False, max_drop=None)
    with pytest.raises(SystemExit):
        convert_main(args.split())
    expected = replace(before, model=place / "model.onnx", out=Path("out"), resume=True)
    assert asked == [expected]
    assert asked[0].fingerprint() == before.fingerprint()


def test_what_is_named_beside_resume_counts(place: Path, asked: list[ConvertOptions]) -> None:
    begin_run(place)
    for args in (
        "model.onnx --out out --resume --budget 0.6 --device cpu",
        "--resume model.onnx --out out --budget 0.6",
    ):
        with pytest.raises(SystemExit):
            convert_main(args.split())
        assert (asked[-1].budget, asked[-1].seed, asked[-1].resume) == (0.6, 7, True)
    assert asked[0].device == "cpu"


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ("", 2, "MODEL: give the ONNX file"),
        ("--resume", 2, "give the folder"),
        ("--resume out", 6, "out.run: no unfinished run lies there"),
        ("model.onnx --resume", 6, "model.s2d.run: no unfinished run lies there"),
        ("--resume out --out other", 2, "--out other: means nothing beside --resume"),
        ("--resume torn", 6, "asked.json: cannot be read"),
        ("--resume newer", 2, "the options colour are unknown"),
        ("model.onnx -q -v", 2, "--quiet: means nothing beside --verbose"),
    ],
)
def test_what_cannot_be_resumed_is_told(
    args: str, code: int, words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("torn", "{"), ("newer", json.dumps({"model": "model.onnx", "colour": 1}))):
        (place / f"{name}.run").mkdir()
        (place / f"{name}.run" / "asked.json").write_text(content)
    got, _, err = call(capsys, "convert", *args.split())
    assert (got, err.count("error: "), words in err) == (code, 1, True), err


def test_python_refuses_to_resume_nothing_too(place: Path) -> None:
    options = ConvertOptions(model=Path("model.onnx"), out=place / "out", resume=True)
    with pytest.raises(OutputError, match="no unfinished run lies there"):
        conversion.convert(options, TerminalReporter(words="quiet"))


# --- force ------------------------------------------------------------------------------------------------


def test_force_replaces_an_export(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "split", "model.onnx", "--plan", "depth")[0] == 0
    before = (place / "model.s2d" / "plan.json").read_bytes()
    code, _, err = call(capsys, "split", "model.onnx", "--plan", "width")
    assert (code, "or replace it with --force" in err) == (6, True)
    assert (place / "model.s2d" / "plan.json").read_bytes() == before
    assert call(capsys, "split", "model.onnx", "--plan", "width", "--force")[0] == 0
    assert (place / "model.s2d" / "plan.json").read_bytes() != before
    assert sorted(path.name for path in place.iterdir()) == ["model.onnx", "model.s2d"]


@pytest.mark.parametrize(
    "what", ["a file", "an empty folder", "another folder", "a file of yours", "a link", "a folder in it"]
)
def test_force_replaces_nothing_else(what: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = place / "out"
    if what == "a file":
        out.write_text("mine")
    elif what in ("an empty folder", "another folder"):
        out.mkdir()
        if what == "another folder":
            (out / "manifest.json").write_text("{}")
    else:
        target = place / "target" if what == "a link" else out
        call(capsys, "split", "model.onnx", "--out", str(target))
        if what == "a link":
            out.symlink_to(target)
        elif what == "a folder in it":
            (out / "notes").mkdir()
        else:
            (out / "notes.txt").write_text("mine")
    before = sorted(path for path in place.rglob("*"))
    code, _, err = call(capsys, "split", "model.onnx", "--out", "out", "--force")
    assert (code, "--force replaces nothing but exports" in err) == (6, True), err
    assert sorted(path for path in place.rglob("*")) == before
    code, _, err = call(capsys, "split", "model.onnx", "--out", "out")
    assert (code, "exists already" in err, "--force" in err) == (6, True, False)


def test_a_replacement_that_fails_leaves_what_was_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, "split", "model.onnx", "--out", "out")
    check_target(place / "out", force=True)
    before = sorted(path.name for path in (place / "out").iterdir())
    with pytest.raises(RuntimeError), whole_folder(place / "out", replaces=True):
        raise RuntimeError
    assert sorted(path.name for path in (place / "out").iterdir()) == before
    assert sorted(path.name for path in place.iterdir()) == ["model.onnx", "out"]


# --- a full disk ------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space left") as caught, naming(full), full.open("wb", buffering=0) as handle:
        handle.write(b"x")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")
    with pytest.raises(OSError, match="3 requested and 0 written") as caught, naming(tmp_path):
        raise OSError("3 requested and 0 written")
    assert caught.value.filename == str(tmp_path)


def test_a_full_disk_names_the_file_of_a_folder_and_leaves_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")  # as a write does it, without a name

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = call(capsys, "split", "model.onnx")
    assert (code, err) == (6, "error: model.s2d/stage1.onnx: the disk is full; make room or choose another --out\n")
    assert [path.name for path in place.iterdir()] == ["model.onnx"]
    with pytest.raises(OSError, match="No space left") as caught:
        write_bytes(place / "state.pt", b"x")
    assert caught.value.filename == str(place / "state.pt")
    with pytest.raises(OutputError, match=r"^out/copy\.onnx: the disk is full"), whole_folder(Path("out")) as folder:
        raise OSError(errno.ENOSPC, "No space left on device", "source.onnx", None, str(folder / "copy.onnx"))


# --- the end ----------------------------------------------------------------------------------------------


def outcome(budget: float, latency: float, loss: float) -> Outcome:
    return Outcome(budget, latency, latency + 0.2, 0.9 - loss, loss, 0.001, (0.7, 0.3))


def test_the_table_of_budgets_has_nothing_that_something_else_beats() -> None:
    rows = [outcome(0.3, 0.3, 0.02), outcome(0.4, 0.3, 0.02), outcome(0.5, 0.5, 0.03), outcome(0.6, 0.6, 0.0),
            outcome(0.9, 1.1, 0.0), outcome(1.0, 1.1, -0.01)]  # fmt: skip
    assert [o.budget for o in worth_showing(rows, 0.4)] == [0.4, 0.6, 1.0]
    assert [o.budget for o in worth_showing(rows, 0.9)] == [0.3, 0.6, 1.0, 0.9]


@pytest.mark.parametrize(("quiet", "data"), [(True, "labelled"), (False, "labelled"), (False, "made-up")])
def test_a_conversion_ends_with_verdict_folder_report_and_what_comes_next(
    quiet: bool, data: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = verdict([outcome(0.4, 0.4, 0.001)], budget=0.4)
    result = SimpleNamespace(out=Path("my out"), manifest=SimpleNamespace(data=data), verdict=said, reached=True,
                             within_max_latency=True)  # fmt: skip
    monkeypatch.setattr(conversion, "convert", lambda *_, **__: result)
    monkeypatch.setattr(cli_convert, "show", lambda *_: click.echo("tables"))
    code, out, err = call(capsys, "convert", "model.onnx", *(["-q"] if quiet else []))
    lines = out.splitlines()
    assert (code, err) == (0, "")
    if quiet:
        assert lines == list(said.sentences)
        return
    assert lines[:2] == ["tables", said.sentences[0]]
    tail = lines[lines.index("Folder: my out") :]
    assert tail[1:3] == ["Report: my out/report.html", "Next:"]
    commands = [shlex.split(line, comments=True) for line in tail[3:]]
    first, second = ("calibrate", "evaluate") if data == "made-up" else ("evaluate", "serve")
    assert [command[:3] for command in commands] == [["s2d", first, "my out"], ["s2d", second, "my out"]]


def test_the_first_interrupt_ends_the_time_and_the_second_interrupts(
    capsys: pytest.CaptureFixture[str], interruptible: None
) -> None:
    clock = Clock()
    before = signal.getsignal(signal.SIGINT)
    with finish_at_interrupt(clock, say=partial(click.echo, err=True)):
        signal.raise_signal(signal.SIGINT)
        assert clock.left() == 0
        assert "press Ctrl-C again" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_who_ignores_interrupts_goes_on_ignoring_them(interruptible: None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    clock = Clock()
    with finish_at_interrupt(clock, say=print):
        signal.raise_signal(signal.SIGINT)
    assert not clock.limited
