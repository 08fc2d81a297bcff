"""The command line: every command is documented, every bad input ends in one sentence and its exit code."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from command_line import call
from helpers import assert_close
from s2d_runtime import Dispatcher
from text_nets import chain, residual

from s2d_convert.cli.main import COMMANDS, load_command, s2d


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model and some data."""
    onnx.save(residual(), str(tmp_path / "model.onnx"))
    onnx.save(chain(), str(tmp_path / "other.onnx"))
    rng = np.random.default_rng(0)
    images = rng.normal(size=(60, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "random.npz", images=images, labels=rng.integers(0, 3, 60))
    np.savez(tmp_path / "high.npz", images=images, labels=np.full(60, 7))
    np.savez(tmp_path / "nan.npz", images=np.full_like(images, np.nan))
    np.save(tmp_path / "images.npy", images[:3])
    np.save(tmp_path / "wrong.npy", np.zeros((2, 5)))
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "there").mkdir()
    (tmp_path / "plan.json").write_text("{")
    huge = {"taps": ["logits"], "units": {"Conv_0": f"{10**30}x4"}}
    (tmp_path / "huge.json").write_text(json.dumps({"version": 1, "chains": [huge]}))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ("convert missing.onnx", 4, "no such file"),
        ("convert text.onnx", 4, "not a valid ONNX model"),
        ("convert there", 4, "no such file"),
        ("convert model.onnx --budget 0", 2, "above 0 and at most 1"),
        ("convert model.onnx --budget nan", 2, "above 0 and at most 1"),
        ("convert model.onnx --budget 1.1", 2, "above 0 and at most 1"),
        ("convert model.onnx --max-latency 0", 2, "--max-latency 0"),
        ("convert model.onnx --max-latency nan", 2, "above 0"),
        ("convert model.onnx --stages 5", 2, "2 to 4"),
        ("convert model.onnx --threads 0", 2, "--threads 0"),
        ("convert model.onnx --batch 0", 2, "--batch 0"),
        ("convert model.onnx --seed -1", 2, "--seed -1"),
        ("convert model.onnx --effort lazy", 2, "lazy"),
        ("convert model.onnx --size 0x3", 2, "not a size"),
        ("convert model.onnx --size 16", 2, "is fixed to 8x8"),
        ("convert model.onnx --mean a,b", 2, "separated by commas"),
        ("convert model.onnx --mean 1,2 --data random.npz", 2, "mean"),
        ("convert model.onnx --scale 255", 2, "to divide by 127.5 write 1/127.5"),
        ("convert model.onnx --scale 1/x", 2, "expected a number such as 0.017 or 1/255"),
        ("convert model.onnx --order gbr", 2, "gbr"),
        ("convert model.onnx --classes a,b", 2, "--classes: 2 names ('a', 'b'), the model has 3 classes"),
        ("convert model.onnx --classes no/names.txt", 2, "--classes no/names.txt: no such file"),
        ("split model.onnx --classes a,b", 2, "--classes: 2 names"),
        ("convert model.onnx --resize squash", 2, "squash"),
        ("convert model.onnx --resize pad --crop-ratio 0.9", 2, "means nothing with --resize pad"),
        ("convert model.onnx --crop-ratio nan", 2, "0.1 to 1 is allowed"),
        ("convert model.onnx --fill 300", 2, "fill 300"),
        ("convert model.onnx --bits 4", 2, "bits 4"),
        ("inspect model.onnx --data missing", 5, "missing: is no folder"),
        ("inspect model.onnx --pictures there", 2, "means nothing without --data"),
        ("convert model.onnx --provider Nope --data random.npz", 2, "--provider Nope"),
        ("convert model.onnx --output nope", 2, "no such output"),
        ("convert model.onnx --out there", 6, "exists already"),
        ("convert model.onnx --data missing", 5, "missing"),
        ("convert model.onnx --data there", 5, "empty"),
        ("convert model.onnx --data high.npz", 5, "label"),
        ("convert model.onnx --data nan.npz", 5, "nan.npz"),
        ("convert model.onnx --data random.npz", 7, "near chance: not better than always answering"),
        ("convert model.onnx --latency none.json --data random.npz", 2, "no such file"),
        ("convert model.onnx --latency plan.json --data random.npz", 2, "not readable as JSON"),
        ("profile model.onnx", 2, "nothing to do"),
        ("profile missing.onnx --save b.json", 4, "no such file"),
        ("profile there --save b.json", 6, "manifest.json"),
        ("profile model.onnx --kit there", 6, "exists already"),
        ("profile model.onnx --save no/b.json", 2, "--save no/b.json"),
        ("profile model.onnx --save b.json --threads 0", 2, "--threads 0"),
        ("profile model.onnx --save b.json --passes 0", 2, "--passes 0"),
        ("profile model.onnx --save b.json --threads 2 --clock cpu", 2, "one thread"),
        ("profile model.onnx --save b.json --provider Nope", 2, "--provider Nope"),
        ("split model.onnx --plan zigzag", 2, "identity, depth, width"),
        ("split model.onnx --plan plan.json", 2, "not readable as JSON"),
        ("split model.onnx --plan deep.json", 2, "not readable as JSON"),
        ("split model.onnx --stages 5", 2, "1 to 4"),
        ("split model.onnx --stages 4", 2, "fewer stages"),
        ("split model.onnx --out there", 6, "exists already"),
        ("split model.onnx --weights int8", 2, "float32"),
        ("inspect text.onnx", 4, "not a valid ONNX model"),
        ("run there images.npy", 6, "manifest.json"),
        ("evaluate missing --data random.npz", 6, "manifest.json"),
        ("bench there", 6, "manifest.json"),
        ("run there images.npy --budget 2", 2, "--budget 2"),
        ("evaluate there --data random.npz --threads 0", 2, "--threads 0"),
        ("bench there --batch 0", 2, "--batch 0"),
        ("bench there --seconds -1", 2, "--seconds -1"),
        ("serve there", 6, "manifest.json"),
        ("serve there --rows 0", 2, "--rows 0"),
        ("serve there --budget 2", 2, "--budget 2"),
        ("serve there --name a/b", 2, "--name 'a/b'"),
        ("serve there --timeout-s nan", 2, "--timeout-s nan"),
        ("convert model.onnx --quantize int4", 2, "int4"),
        ("export there", 2, "exactly one of --single, --quantize"),
        ("export there --single a.onnx --quantize int8", 2, "exactly one of"),
        ("export there --single a.onnx", 6, "manifest.json"),
        ("export there --single model.onnx", 6, "exists already"),
        ("export there --single a.onnx --bake 2", 2, "--bake 2"),
        ("export there --single a.onnx --out x", 2, "--out: means nothing beside --single"),
        ("export there --single a.onnx --model model.onnx", 2, "--model: means nothing"),
        ("export there --quantize int4", 2, "int4"),
        ("export there --quantize int8 --out x", 2, "give --data"),
        ("export there --quantize int8 --data random.npz", 2, "give --out"),
        ("export there --quantize int8 --data random.npz --out x --batch 0", 2, "--batch 0"),
        ("export there --quantize int8 --data random.npz --out there", 6, "exists already"),
        ("export there --quantize int8 --data random.npz --out x", 6, "manifest.json"),
        ("convert model.onnx --data random.npz --confidence 0.9", 2, "--confidence: means nothing without --max-drop"),
        ("convert model.onnx --data random.npz --plan plan.json --stages 3", 2, "--stages: a written plan"),
        ("convert model.onnx --ray auto", 2, "--ray: exact mode"),
        ("convert model.onnx --data random.npz --quantize int8 --weights float16", 2, "leave one of the two out"),
        ("convert model.onnx --data random.npz --quantize int8 --latency b.json", 2, "--quantize with --latency"),
        ("split model.onnx --plan identity --stages 3", 2, "--stages: --plan identity"),
        ("split model.onnx --plan dept --stages 3", 2, "identity, depth, width"),
        ("convert model.onnx --data random.npz --plan dept --stages 3", 2, "--plan dept: expected search"),
        ("split model.onnx --plan huge.json", 2, "stages are 0 to S"),
        ("calibrate there", 2, "--data"),
        ("calibrate there --undo --budget 0.5", 2, "--budget: means nothing beside --undo"),
        ("calibrate there --undo --model model.onnx", 2, "--model: means nothing beside --undo"),
        ("calibrate there --data random.npz --confidence 0.9", 2, "--confidence: means nothing without --max-drop"),
        ("calibrate there --data random.npz --provider Nope", 2, "--provider Nope"),
        ("evaluate there --data random.npz --provider Nope", 2, "--provider Nope"),
        ("bench there --provider Nope", 2, "--provider Nope"),
        ("nonsense", 2, "nonsense"),
    ],
)
def test_bad_input_is_one_sentence(
    place: Path, capsys: pytest.CaptureFixture[str], args: str, code: int, words: str
) -> None:
    before = sorted(p.name for p in place.iterdir())
    got, _, err = call(capsys, *args.split())
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert got == code, err
    assert len(errors) == 1
    assert words in errors[0]
    assert "Traceback" not in err
    assert sorted(p.name for p in place.iterdir()) == before


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _data: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    assert call(capsys, "split", "model.onnx")[0] == 0
    before = sorted(p.name for p in place.iterdir())
    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = call(capsys, "export", "model.s2d", "--single", "one.onnx")
    assert (code, "No space left on device; make room there" in err) == (6, True)
    assert sorted(p.name for p in place.iterdir()) == before


@pytest.mark.parametrize("stored_as", ["initializers", "constants"])
def test_other_weights_beside_the_same_graph_are_another_model(
    stored_as: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for factor, code in ((1.0, 0), (-1.0, 4)):
        model = residual()
        for i in model.graph.initializer:
            i.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(i) * np.float32(factor), i.name))
        if stored_as == "constants":
            made = [onnx.helper.make_node("Constant", [], [i.name], value=i) for i in model.graph.initializer]
            nodes = [*made, *model.graph.node]
            del model.graph.node[:], model.graph.initializer[:]
            model.graph.node.extend(nodes)
        onnx.save(
            model, place / "large.onnx", save_as_external_data=True, location="large.data", size_threshold=0,
            convert_attribute=True,
        )  # fmt: skip
        if factor == 1.0:
            graph = (place / "large.onnx").read_bytes()
            assert call(capsys, "split", "large.onnx")[0] == 0
        else:
            assert (place / "large.onnx").read_bytes() == graph
        found, _, err = call(capsys, "bench", "large.s2d", "--seconds", "0.1")
        assert found == code, err
        (place / "large.data").unlink()


def test_a_plan_goes_out_and_in_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for plan in ("identity", "depth", "width"):
        assert call(capsys, "split", "model.onnx", "--plan", plan, "--out", plan)[0] == 0
    assert call(capsys, "split", "model.onnx", "--plan", "width/plan.json", "--out", "again")[0] == 0
    for file in ("stage1.onnx", "stage2.onnx", "plan.json"):
        assert (place / "again" / file).read_bytes() == (place / "width" / file).read_bytes()


def test_weights_in_float16_take_half_the_space_and_answer_nearly_the_same(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("float32", "float16"):
        assert call(capsys, "split", "model.onnx", "--plan", "width", "--weights", kind, "--out", kind)[0] == 0
    images = np.random.default_rng(1).normal(size=(5, 3, 8, 8)).astype(np.float32)
    exact, small = (Dispatcher(place / kind)(images, exits=False) for kind in ("float32", "float16"))
    assert_close(small.output, exact.output, rel=2e-3)
    assert not np.array_equal(small.output, exact.output)
    for stage in ("stage1.onnx", "stage2.onnx"):
        stored = {
            i.name: i.data_type for i in onnx.load(place / "float16" / stage).graph.initializer if len(i.dims) > 1
        }
        assert set(stored.values()) == {onnx.TensorProto.FLOAT16}


def test_a_split_folder_runs_and_is_timed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, "split", "model.onnx")
    code, out, _ = call(capsys, "run", "model.s2d", "images.npy")
    assert code == 0
    assert len(out.splitlines()) == 3
    code, out, _ = call(capsys, "bench", "model.s2d", "--seconds", "0.1", "--json")
    assert [row["name"] for row in json.loads(out)["rows"]] == ["static", "exit 1", "exit 2"]
    assert call(capsys, "run", "model.s2d", "wrong.npy")[0] == 5
    for header in (b"(" * 3000, b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }"):
        (place / "odd.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        code, _, err = call(capsys, "run", "model.s2d", "odd.npy")
        assert (code, "not a readable .npy array" in err) == (5, True)
    assert call(capsys, "bench", "model.s2d", "--model", "other.onnx")[0] == 4
    code, _, err = call(capsys, "evaluate", "model.s2d", "--data", "random.npz")
    assert (code, "no preprocessing" in err) == (5, True)


def test_a_server_without_its_extra_tells_how_to_install_it(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s2d_runtime.serving.http", None)
    code, _, err = call(capsys, "serve", "there")
    assert code == 2
    assert "s2d_runtime.serving.http is missing; pip install 's2d-runtime[http]'" in err


def test_a_single_file_says_how_it_is_asked(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, "split", "model.onnx", "--plan", "width")
    code, out, _ = call(capsys, "export", "model.s2d", "--single", "one.onnx")
    assert code == 0
    assert out.splitlines()[1] == "feed 'thresholds', float32 [1]; for budget 1: [1.01]"
    code, out, _ = call(capsys, "export", "model.s2d", "--single", "baked.onnx", "--bake", "1")
    assert code == 0
    assert out.splitlines()[1] == "the thresholds of budget 1 are fixed in it: 1.01"
    assert [[i.name for i in onnx.load(place / f).graph.input] for f in ("one.onnx", "baked.onnx")] == [
        ["image", "thresholds"],
        ["image"],
    ]


def test_a_folder_without_preprocessing_is_not_quantised(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, "split", "model.onnx", "--plan", "width")
    code, _, err = call(capsys, "export", "model.s2d", "--quantize", "int8", "--data", "random.npz", "--out", "lighter")
    assert (code, "no preprocessing" in err) == (5, True)
    assert not (place / "lighter").exists()


def test_inspect_tells_what_can_be_split(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "inspect", "model.onnx", "--json")
    about = json.loads(out)
    assert code == 0
    assert [c["channels"] for c in about["classes"]] == [4, 6, 3]
    assert about["splittable_macs"] > 0.9
    assert [t["tensor"] for t in about["taps"]] == ["x", "f"]
    assert "channel classes" in call(capsys, "inspect", "model.onnx")[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(name: str) -> None:
    command = load_command(name)
    assert command.name == name
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{command.name} {parameter.name}"


@pytest.mark.parametrize("args", ["--help", "--version"])
def test_help_of_the_whole_loads_neither_torch_nor_onnx(args: str) -> None:
    code = (
        "import sys\nfrom s2d_convert.cli.entry import main\n"
        f"sys.argv = ['s2d', {args!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print(sorted({'torch', 'onnx', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_whole_help_names_every_command() -> None:
    shown = CliRunner().invoke(s2d, ["--help"]).output
    assert [
        name for name, command in COMMANDS.items() if f"{name} " not in shown or command.summary[:30] not in shown
    ] == []
    assert CliRunner().invoke(s2d, ["nonsense"]).exit_code == 2
