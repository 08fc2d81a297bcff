"""The output of `s2d inspect`: classes, shares, reasons, costs and stretches of small nets, and how they look."""

from __future__ import annotations

import io
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import pytest
from nets import export
from onnx import helper
from rich.console import Console
from text_nets import chain, net, residual

from s2d_convert.channels.analysis import AnalysedModel, analyse
from s2d_convert.channels.kinds import RULES
from s2d_convert.cli.inspect_view import LARGEST, NAMED, InspectView
from s2d_convert.cli.main import main
from s2d_convert.frontend.graph import Node
from s2d_convert.frontend.load import graph_from_proto
from s2d_convert.network.converters.base import refusal
from s2d_convert.network.converters.lower import BUILDERS, Constants, Lowered
from s2d_convert.plans.exit_points import candidate_taps
from s2d_convert.plans.macs import mac_shares
from s2d_convert.workflows.inspect import describe

# Multiply-accumulates of `residual`: the stem, the inner convolution, the one back to the stream, the classifier.
STEM, INNER, BACK, LINEAR = 4 * 3 * 9 * 64, 6 * 4 * 9 * 64, 4 * 6 * 9 * 64, 3 * 4
TOTAL = STEM + INNER + BACK + LINEAR
VARIED = ("resnet_option_a", "shufflenet_v1", "densenet", "mobilenet_v3", "lenet")


def about(model: onnx.ModelProto) -> dict[str, Any]:
    graph = graph_from_proto(model)
    return describe(AnalysedModel.of(graph))


def shown(said: dict[str, Any], *, width: int = 80, everything: bool = False, ascii_only: bool = False) -> list[str]:
    """The lines that a terminal of so many columns shows."""
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    for part in InspectView(width, everything, ascii_only)(said):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def tied(body: str, **shapes: tuple[int, ...]) -> dict[str, Any]:
    """A stem of 4 channels, `body` from x to y (4 channels), a pooled classifier."""
    return about(
        net(
            f"""g (float[N,3,8,8] image) => (float[N,3] logits) <int64[4] turned = {{1,2,3,0}}> {{
                s = Conv(image, ws)  x = Relu(s)  {body}
                p = GlobalAveragePool(y)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
            }}""",
            **({"ws": (4, 3, 1, 1), "wl": (3, 4)} | shapes),
        )
    )


def many(count: int) -> onnx.ModelProto:
    """So many convolutions in a row, of 2, 3, 4... channels."""
    convs = " ".join(f"c{i} = Conv({f'c{i - 1}' if i else 'image'}, w{i})" for i in range(count))
    weights = {f"w{i}": (i + 2, i + 1 if i else 3, 1, 1) for i in range(count)}
    text = f"{convs} p = GlobalAveragePool(c{count - 1})  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)"
    return net(f"g (float[N,3,4,4] image) => (float[N,3] logits) {{ {text} }}", **weights, wl=(3, count + 1))


def renamed(model: onnx.ModelProto, prefix: str) -> onnx.ModelProto:
    """The model with `prefix` before the names of its nodes and of what they compute."""
    outputs = {o.name for o in model.graph.output}
    inner = {o for n in model.graph.node for o in n.output} - outputs
    for index, node in enumerate(model.graph.node):
        node.name = f"{prefix}{node.op_type}_{index}"
        for names in (node.input, node.output):
            names[:] = [prefix + name if name in inner else name for name in names]
    del model.graph.value_info[:]
    return model


# --- the data ---------------------------------------------------------------------------------------


def test_classes_are_told_with_units_members_and_their_share() -> None:
    classes = about(residual())["classes"]
    assert [(c["channels"], c["units"], len(c["producers"])) for c in classes] == [(4, 4, 2), (6, 6, 1), (3, 3, 1)]
    assert [c["macs"] for c in classes] == pytest.approx([(STEM + BACK) / TOTAL, INNER / TOTAL, LINEAR / TOTAL])
    assert [(c["splittable"], c["reason"]) for c in classes] == [
        (True, None),
        (True, None),
        (False, "holds the logits"),
    ]


@pytest.mark.parametrize("name", VARIED)
def test_shares_sum_to_one_and_grow_along_the_taps(name: str) -> None:
    graph = graph_from_proto(export(name))
    channels = analyse(graph)
    said = describe(AnalysedModel(graph, channels))
    assert sum(c["macs"] for c in said["classes"]) == pytest.approx(1)
    assert said["splittable_macs"] == pytest.approx(sum(c["macs"] for c in said["classes"] if c["splittable"]))
    before = {t["tensor"]: t["macs_before"] for t in said["taps"]}
    assert before == pytest.approx(
        mac_shares(AnalysedModel(graph, channels), candidate_taps(AnalysedModel(graph, channels)))
    )
    assert list(before.values()) == sorted(before.values())
    counts = [sum(t["operators"].values()) for t in [*said["taps"], said["last_stretch"]]]
    assert sum(counts) == len(graph.nodes)


def test_stretches_name_their_operators_the_costly_ones_first() -> None:
    said = about(residual())
    assert [list(t["operators"].items()) for t in said["taps"]] == [
        [("Conv", 1), ("Relu", 1)],
        [("Conv", 2), ("Add", 1), ("Relu", 2), ("GlobalAveragePool", 1), ("Flatten", 1)],
    ]
    assert said["last_stretch"] == {"operators": {"Gemm": 1}}


def test_an_opaque_node_costs_the_share_of_the_class_that_it_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, "Relu")
    said = about(residual())
    of_relu = "operator Relu has no channel rule"
    stream, inner, _ = said["classes"]
    first, middle, last = said["opaque"]
    assert {n["op"] for n in said["opaque"]} == {"Relu"}
    assert {n["reason"] for n in said["opaque"]} == {of_relu}
    assert [n["macs"] for n in (first, middle, last)] == [stream["macs"], inner["macs"], stream["macs"]]
    assert [n["class"] for n in (first, middle, last)] == [stream["name"], inner["name"], stream["name"]]
    assert (stream["reason"], stream["tied_by"]) == ("one unit, tied by opaque nodes", [first["node"], last["node"]])
    assert (inner["units"], inner["splittable"], inner["tied_by"]) == (1, False, [middle["node"]])
    assert said["splittable_macs"] == 0
    assert said["unsupported"] == []


def test_an_opaque_node_around_the_logits_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, "Tanh")
    model = residual()
    model.graph.node[-1].output[0] = "raw"
    model.graph.node.append(helper.make_node("Tanh", ["raw"], ["logits"], "last"))
    said = about(model)
    assert [(n["node"], n["macs"]) for n in said["opaque"]] == [("last", 0.0)]
    assert said["classes"][-1]["reason"] == "holds the logits"
    assert "no cost: 1 node around what is whole anyway" in shown(said)


def test_one_channel_is_a_reason() -> None:
    said = tied("o = Conv(x, wo)  y = Conv(o, wy)", wo=(1, 4, 1, 1), wy=(4, 1, 1, 1))
    assert [c["reason"] for c in said["classes"]] == [None, "one channel", None, "holds the logits"]


def test_grouped_convolutions_that_tie_everything_are_named() -> None:
    said = tied(
        "g = Conv<group=2>(x, wg)  t = Gather<axis=1>(g, turned)  y = Conv<group=2>(t, wy)",
        wg=(4, 2, 1, 1), wy=(4, 2, 1, 1),
    )  # fmt: skip
    whole, _ = said["classes"]
    assert (whole["units"], whole["reason"]) == (1, "one unit, tied by Conv on groups of channels")
    assert len(whole["tied_by"]) == 2
    assert set(whole["tied_by"]) < set(whole["producers"])


def test_operands_in_other_orders_that_tie_everything_are_named() -> None:
    said = tied("t = Gather<axis=1>(x, turned)  y = Add(x, t)")
    whole, _ = said["classes"]
    assert (whole["units"], len(whole["tied_by"])) == (1, 1)
    assert whole["reason"] == "one unit, tied by operands with their channels in other orders"


def refusing(node: Node, constants: Constants) -> Lowered:
    raise refusal(node, "mode=strange is not supported; plain is allowed")


def test_everything_unsupported_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILDERS, "Tanh", refusing)
    said = tied("a = Acosh(x)  b = Tanh(a)  y = Sinh(b)")
    missing = "the operator has no torch counterpart"
    assert [(n["op"], n["reason"]) for n in said["unsupported"]] == [
        ("Acosh", missing),
        ("Tanh", "mode=strange is not supported; plain is allowed"),
        ("Sinh", missing),
    ]
    lines = shown(said)
    assert "unsupported: the model cannot be converted because of 3 nodes" in lines
    assert all(f"  {n['node']}" in lines for n in said["unsupported"])


# --- how it looks -----------------------------------------------------------------------------------


def test_the_picture_goes_from_the_image_to_the_logits() -> None:
    lines = shown(about(residual()))
    start = next(i for i, line in enumerate(lines) if line.startswith("MACs before"))
    assert [[line[:16], *re.split(r"\s{2,}", line[16:].strip())] for line in lines[start + 2 :]] == [
        ["░░░░░░░░░░   0 %", "3x8x8", "image"],
        ["██░░░░░░░░  20 %", "4x8x8", "x", "1 Conv, 1 Relu"],
        ["██████████ 100 %", "4", "f", "2 Conv, 1 Add, 2 Relu, 1 GlobalAveragePool, …"],
        ["██████████ 100 %", "3", "logits", "1 Gemm"],
    ]


def test_a_class_that_cannot_be_split_tells_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, "Relu")
    said = about(residual())
    lines = shown(said)
    first = said["opaque"][0]["node"]
    reason = f"no: one unit, tied by {first} (operator Relu has no channel rule) and 1 more"
    assert reason in re.sub(r"\s+", " ", " ".join(lines))
    share = 100 * (STEM + BACK) / TOTAL
    start = lines.index(f"{share:.1f} % of the MACs: one unit while any of these 2 nodes is there")
    assert lines[start + 1 : start + 4] == [
        "  operator Relu has no channel rule",
        *(f"    {said['opaque'][i]['node']}" for i in (0, 2)),
    ]


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("prefix", ["", "features/a_rather_long_name_of_a_module/" * 3])
def test_no_line_is_too_long_and_no_name_is_broken(
    monkeypatch: pytest.MonkeyPatch, width: int, ascii_only: bool, prefix: str
) -> None:
    monkeypatch.delitem(RULES, "Sigmoid", raising=False)
    for model in (residual(), many(30), export("shufflenet_v1"), export("mobilenet_v3"), export("efficientnet")):
        said = about(renamed(model, prefix) if prefix else model)
        lines = shown(said, width=width, ascii_only=ascii_only)
        assert max(map(len, lines)) <= width
        assert all(line.isascii() for line in lines) or not ascii_only
        start = next(i for i, line in enumerate(lines) if line.startswith("MACs before"))
        assert len(lines[start + 2 :]) == len(said["taps"]) + 2
        for node in {n["node"]: n for n in said["opaque"]}.values():
            named = f"    {node['node']}"
            assert named in lines or len(named) > width or len(said["opaque"]) > NAMED


def test_shortened_names_stay_apart() -> None:
    said = about(renamed(many(12), "features/a_rather_long_name_of_a_module/" * 3))
    lines = shown(said)
    start = next(i for i, line in enumerate(lines) if line.startswith("MACs before"))
    names = [re.split(r"\s{2,}", line)[2] for line in lines[start + 3 : -1]]
    assert len(set(names)) == len(said["taps"])
    assert any("…" in name for name in names)


def test_names_from_a_file_cannot_steer_the_terminal() -> None:
    model = residual()
    for node in model.graph.node:
        node.name = f"\x1b[31m[bold]{node.op_type}\n{node.output[0]}"
    text = "\n".join(shown(about(model)))
    assert "\x1b" not in text
    assert "?[31m[bold]Conv?s" in text


def test_a_large_model_shows_its_largest_classes_unless_asked_for_all() -> None:
    said = about(many(30))
    rest = sum(sorted(c["macs"] for c in said["classes"])[:-LARGEST])
    few, every = shown(said), shown(said, everything=True)
    more = f"and {31 - LARGEST} more, {100 * rest:.1f} % of the MACs, 1 of them not split (--all shows them)"
    assert more in few
    assert len(every) == len(few) - 1 + 31 - LARGEST + 1
    assert not any("more" in line for line in every)


def test_many_opaque_nodes_are_all_named_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, "Tanh")
    names = ["x", *(f"t{i}" for i in range(NAMED + 2)), "y"]
    said = tied("  ".join(f"{b} = Tanh({a})" for a, b in pairwise(names)))
    nodes = [n["node"] for n in said["opaque"]]
    assert len(nodes) == NAMED + 3
    few, every = shown(said), shown(said, everything=True)
    assert "    and 3 more (--all names them)" in few
    assert [f"    {n}" in few for n in nodes] == [True] * NAMED + [False] * 3
    assert all(f"    {n}" in every for n in nodes)


def test_a_long_operator_has_room_in_the_picture() -> None:
    said = about(residual())
    said["taps"][0]["operators"] = {"LayerNormalization": 1, "Relu": 2}
    said["taps"][0]["tensor"] = "a_very_long_name_of_a_tap" * 4
    assert any(line.endswith("  1 LayerNormalization, …") for line in shown(said))


# --- the command ------------------------------------------------------------------------------------

SCHEMA: dict[str, Any] = {
    "input": {"name": str, "shape": list},
    "output": {"name": str, "shape": list, "kind": str},
    "opset": int,
    "simplified_opset": int,
    "nodes": int,
    "macs": int,
    "parameters": int,
    "splittable_macs": float,
    "classes": [
        {
            "name": str,
            "units": int,
            "channels": int,
            "producers": list,
            "macs": float,
            "splittable": bool,
            "reason": (str, type(None)),
            "tied_by": list,
        }
    ],
    "opaque": [{"node": str, "op": str, "reason": str, "class": str, "macs": float}],
    "unsupported": [{"node": str, "op": str, "reason": str}],
    "taps": [{"tensor": str, "shape": list, "macs_before": float, "operators": dict}],
    "last_stretch": {"operators": dict},
    "sizes": [{"scale": float, "sides": list, "macs": float}],
    "size_fixed_by": str,
}


def assert_fits(value: Any, schema: Any) -> None:
    """Fails unless a JSON value has the keys and types of the schema."""
    if isinstance(schema, dict):
        assert list(value) == list(schema)
        for key, inner in schema.items():
            assert_fits(value[key], inner)
    elif isinstance(schema, list):
        assert value
        for entry in value:
            assert_fits(entry, schema[0])
    else:
        assert isinstance(value, schema)


def test_json_has_all_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(RULES, "Relu")
    model = residual()
    model.graph.node[1].op_type = "Acosh"
    onnx.save(model, str(tmp_path / "m.onnx"))
    main(["inspect", str(tmp_path / "m.onnx"), "--json"])
    assert_fits(json.loads(capsys.readouterr().out), SCHEMA)


def test_the_command_is_plain_and_80_columns_wide_in_a_pipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    onnx.save(many(30), str(tmp_path / "m.onnx"))
    main(["inspect", str(tmp_path / "m.onnx")])
    few = capsys.readouterr().out
    main(["inspect", str(tmp_path / "m.onnx"), "--all"])
    every = capsys.readouterr().out
    assert "\x1b" not in few + every
    assert max(map(len, (few + every).splitlines())) <= 80
    assert len(every.splitlines()) > len(few.splitlines())
    assert "channel classes: 31" in every


def test_operators_of_strangers_are_named_all_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = chain()
    for node, name in ((model.graph.node[1], "first"), (model.graph.node[3], "second")):
        node.domain, node.op_type, node.name = "my.ops", "Foo", name
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(tmp_path / "m.onnx")])
    err = capsys.readouterr().err
    assert stop.value.code == 4
    assert "2 nodes" in err
    assert "node 'first' (my.ops.Foo), node 'second' (my.ops.Foo)" in err


def test_sizes_of_the_image_and_what_fixes_it() -> None:
    said = about(export("resnet_basic"))
    assert [(size["scale"], size["sides"]) for size in said["sizes"]] == [
        (0.75, [24, 24]),
        (0.625, [20, 20]),
        (0.5, [16, 16]),
    ]
    assert said["sizes"][-1]["macs"] == pytest.approx(0.25, abs=0.01)
    assert said["size_fixed_by"] == ""
    fixed = about(export("lenet"))
    assert fixed["sizes"] == []
    assert fixed["size_fixed_by"] == "a node (Gemm) holds the size of a map"
