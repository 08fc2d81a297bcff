"""What runs for a graph: worked examples by hand, and onnxruntime's own optimised graphs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import nets
import onnx
import onnxruntime as ort
import pytest
from chain_law import analysed
from s2d_runtime import profile
from text_nets import net, residual

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.latency.kernels import Work, without_geometry, work_of
from s2d_convert.plans.divisions import divide
from s2d_convert.plans.space import PlanSpace
from s2d_convert.workflows.profile_kit import PROBE, KitOptions, stage_files, write_kit

CONVS = ("conv", "stem", "depthwise", "grouped", "BatchNormalization")


def shaped(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(model)


def calls(work: Work) -> dict[str, float]:
    """How often every kind runs, whatever the geometry."""
    found: Counter[str] = Counter()
    for key, amount in work.items():
        kind, _, quantity = without_geometry(key).split("|")
        if quantity == "calls":
            found[kind] += int(amount)
    return dict(found)


def test_a_residual_block_in_blocks_of_eight() -> None:
    model = net(
        """g (float[N,3,8,8] image) => (float[N,16,4,4] y) {
            s = Conv<pads=[1,1,1,1]>(image, ws, bs)  x = Relu(s)
            a = Conv<pads=[1,1,1,1]>(x, wa)  b = Add(a, x)  r = Relu(b)
            y = Conv<pads=[1,1,1,1], strides=[2,2]>(r, wy)
        }""",
        ws=(8, 3, 3, 3), bs=(8,), wa=(8, 8, 3, 3), wy=(16, 8, 3, 3),
    )  # fmt: skip
    work = work_of(shaped(model), block=8)
    assert calls(work) == {"stem": 1, "conv": 2, "ReorderOutput": 1, "session": 1}
    assert work["stem|3x3/1x1 8x8|mmac"] == pytest.approx(8 * 3 * 9 * 64 / 1e6)
    assert work["conv|3x3/1x1 8x8|mmac"] == pytest.approx(8 * 8 * 9 * 64 / 1e6)
    assert work["conv|3x3/2x2 4x4|kout"] == pytest.approx(16 * 16 / 1e3)
    assert work["conv|3x3/2x2 4x4|kin"] == pytest.approx(8 * 64 / 1e3)
    assert work["sum in conv||kout"] == pytest.approx(8 * 64 / 1e3)
    assert work["ReorderOutput||kin"] == work["session||kout"] == pytest.approx(16 * 16 / 1e3)
    assert work["session||kin"] == pytest.approx(3 * 64 / 1e3)


def test_without_a_blocked_layout_nothing_is_reordered() -> None:
    work = calls(work_of(shaped(residual()), block=1))
    assert work == {"conv in plain layout": 3, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1, "session": 1}


@pytest.mark.parametrize(("channels", "kind"), [(8, "conv"), (12, "conv"), (6, "stem"), (9, "conv in plain layout")])
def test_channels_that_do_not_fill_blocks_fall_out(channels: int, kind: str) -> None:
    model = net(
        f"g (float[N,{channels},4,4] image) => (float[N,8,4,4] y) {{ y = Conv<pads=[1,1,1,1]>(image, w) }}",
        w=(8, channels, 3, 3),
    )
    work = calls(work_of(shaped(model), block=8))
    assert work[kind] == 1
    assert work.get("ReorderInput", 0) == (kind == "conv")
    assert work.get("ReorderOutput", 0) == (kind != "conv in plain layout")


def test_blocks_of_sixteen_take_narrow_inputs_as_they_are_and_fill_up_the_last_block() -> None:
    model = net(
        "g (float[N,8,4,4] image) => (float[N,24,4,4] y) { a = Conv(image, w)  y = Conv(a, v) }",
        w=(24, 8, 1, 1), v=(24, 24, 1, 1),
    )  # fmt: skip
    work = work_of(shaped(model), block=16)
    assert calls(work) == {"stem": 1, "conv": 1, "ReorderOutput": 1, "session": 1}
    assert work["conv|1x1/1x1 4x4|kout"] == pytest.approx(32 * 16 / 1e3)
    assert work["conv|1x1/1x1 4x4|mmac"] == pytest.approx(32 * 24 * 16 / 1e6)


def test_a_link_in_the_middle_is_reordered_and_keeps_its_activation_apart() -> None:
    text = "g (float[N,8,4,4] image) => (float[N,8,4,4] y{}) {{ a = Conv(image, w)  r = Relu(a)  y = Conv(r, v) }}"
    plain = calls(work_of(shaped(net(text.format(""), w=(8, 8, 1, 1), v=(8, 8, 1, 1))), block=8))
    linked = net(text.format(", float[N,8,4,4] a"), w=(8, 8, 1, 1), v=(8, 8, 1, 1))
    work = calls(work_of(shaped(linked), block=8))
    assert "Relu" not in plain
    assert (work["Relu"], work["ReorderOutput"]) == (1, 2)


def test_depthwise_channels_are_filled_up_to_whole_blocks() -> None:
    text = "g (float[N,{0},4,4] image) => (float[N,{0},4,4] y) {{ y = Conv<group={0}>(image, w) }}"
    filled, odd = (work_of(shaped(net(text.format(n), w=(n, 1, 1, 1))), block=16) for n in (24, 6))
    assert calls(filled) == {"ReorderInput": 1, "depthwise": 1, "ReorderOutput": 1, "session": 1}
    assert filled["depthwise|1x1/1x1 4x4|mmac"] == pytest.approx(32 * 16 / 1e6)
    assert calls(odd) == {"depthwise in plain layout": 1, "session": 1}


@pytest.mark.parametrize("widths", [8, 16])
@pytest.mark.parametrize("name", ["resnet_option_a", "mobilenet_v2"])
def test_onnxruntime_runs_what_was_counted(name: str, widths: int, tmp_path: Path) -> None:
    """Its own optimised graphs of stages of random plans, operator by operator; multiples of `widths` channels."""
    graph, channels, weights = analysed(nets.export(name, width=2.0))
    probe = tmp_path / "probe.onnx"
    write_kit_probe(probe)
    block = profile.layout_block(probe.read_bytes(), "CPUExecutionProvider")
    space = PlanSpace(
        AnalysedModel(graph, channels),
        divide(AnalysedModel(graph, channels), weights, groups=4, block=widths),
        stages=2,
    )
    for stage in stage_files(space, weights, KitOptions(files=5)):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(stage.SerializeToString(), options, providers=["CPUExecutionProvider"])
        runs = Counter(n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node)
        counted = Counter(calls(work_of(stage, block=block)))
        assert runs["Conv"] + runs["FusedConv"] == sum(counted[k] for k in CONVS)
        for kind in ("ReorderInput", "ReorderOutput", "Relu", "Clip", "Add", "Slice", "Pad"):
            assert runs[kind] == counted[kind], kind


def write_kit_probe(path: Path) -> None:
    """The probe of a kit of any model."""
    onnx.save(residual(), str(path.parent / "model.onnx"))
    write_kit(path.parent / "model.onnx", path.parent / "kit", KitOptions(files=1))
    path.write_bytes((path.parent / "kit" / PROBE).read_bytes())
