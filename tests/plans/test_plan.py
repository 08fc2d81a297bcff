"""Plans: the effective-stage rule by hand, dead channels, JSON, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import nets
import numpy as np
import pytest
import torch
from chain_law import analysed
from helpers import random_images
from text_nets import chain, net, residual

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.movement import keeps_zero
from s2d_convert.errors import UsageError
from s2d_convert.frontend.graph import Node
from s2d_convert.frontend.load import graph_from_proto
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.assignment import NO_STAGE, Effective, check_conversion
from s2d_convert.plans.exit_points import candidate_taps
from s2d_convert.plans.plan import Conversion, Plan, identity_plan
from s2d_convert.slicing.split import split
from s2d_convert.slicing.stage_graph import with_logits


def test_effective_stages_by_hand() -> None:
    graph, channels, _ = analysed(chain())
    # Half of the first conv and a quarter of the second in stage 1, tap of stage 1 at the second ReLU.
    stages = [1] * 4 + [2] * 4 + [1] * 4 + [2] * 12 + [1] * 5
    effective = Effective(AnalysedModel(graph, channels), Plan(("y", "logits"), tuple(stages)))
    assert effective.of("a").tolist() == [1] * 4 + [2] * 4
    assert effective.of("y").tolist() == [1] * 4 + [2] * 12
    assert effective.of("logits").tolist() == [2] * 5  # no earlier tap needs the classifier
    second = next(n for n in graph.nodes if n.outputs[0] == "b")
    mask = effective.mask(second)
    assert mask[:4].tolist() == [[True] * 4 + [False] * 4] * 4
    assert mask[4:].all()


def test_an_early_tap_moves_everything_after_it_to_the_next_stage() -> None:
    graph, channels, _ = analysed(chain())
    effective = Effective(AnalysedModel(graph, channels), Plan(("x", "logits"), (1,) * channels.units))
    assert set(effective.of("a").tolist()) == {1}
    assert set(effective.of("b").tolist()) == {2}


def test_a_block_without_units_in_a_stage_vanishes_from_it() -> None:
    graph, channels, weights = analysed(residual())
    inner = next(c for c in channels.classes if c.width == 6)
    stages = np.ones(channels.units, dtype=int)
    stages[list(inner.units)] = 2
    stages[list(channels.classes[0].units)] = [1, 1, 2, 2]
    plan = Plan(("y", "logits"), tuple(stages.tolist()))
    effective = Effective(AnalysedModel(graph, channels), plan)
    assert effective.live("b").tolist() == [False, False, True, True]
    first, second = split(graph, channels, plan, weights)
    assert [n.op_type for n in first.model.graph.node].count("Conv") == 1
    assert [n.op_type for n in second.model.graph.node].count("Conv") == 3


def test_pruned_units_are_never_computed() -> None:
    graph, channels, weights = analysed(chain())
    stages = [1] * 8 + [1] * 12 + [0] * 4 + [1] * 5
    plan = Plan(("logits",), tuple(stages))
    assert (Effective(AnalysedModel(graph, channels), plan).of("b")[12:] == NO_STAGE).all()
    (stage,) = split(graph, channels, plan, weights)
    assert stage.parameters == 8 * 3 * 9 + 12 * 8 * 9 + 5 * 12 + 1  # and the temperature


def test_taps_are_tensors_that_carry_everything() -> None:
    graph, channels, _ = analysed(residual())
    assert candidate_taps(AnalysedModel(graph, channels)) == ("x", "f")


@pytest.mark.parametrize("end", ["logits = Flatten(q)", "r = Relu(q) logits = Flatten(r)"])
def test_the_logits_in_another_shape_are_no_tap(end: str) -> None:
    graph, channels, weights = analysed(
        net(
            f"""g (float[N,3,8,8] image) => (float[N,2] logits) {{
                s = Conv(image, ws)  p = GlobalAveragePool(s)  f = Flatten(p)  q = Gemm<transB=1>(f, wl)  {end}
            }}""",
            ws=(4, 3, 1, 1), wl=(2, 4),
        )
    )  # fmt: skip
    assert candidate_taps(AnalysedModel(graph, channels)) == ("f",)
    # Asked for all the same, the last stage computes nothing, and the search reads its logits.
    stages = split(graph, channels, Plan(("q", graph.output), (1,) * channels.units), weights)
    for stage in stages:
        assert with_logits(stage.model) is stage.model


def test_a_conversion_survives_json() -> None:
    _, channels, _ = analysed(residual())
    stages = np.random.default_rng(0).integers(0, 3, channels.units).tolist()
    before = Conversion((Plan(("y", "logits"), tuple(stages)), Plan(("logits",), (1,) * channels.units)))
    after = Conversion.from_json(before.to_json(channels), channels)
    assert after == before
    assert after.digest() == before.digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version"),
        ({"chains": []}, "at least one chain"),
        ({"chains": [{"taps": ["logits"]}]}, "units"),
        ({"chains": [{"taps": [1], "units": {}}]}, "tensor names"),
        ({"chains": [{"taps": ["logits"] * 5, "units": {}}]}, "tensor names"),
        ({"chains": [{"taps": ["logits"], "units": {"nope": "1x8"}}]}, "no channel class 'nope'"),
        ({"chains": [{"taps": ["logits"], "units": {"Conv_0": "1x7"}}]}, "names 7 units"),
        ({"chains": [{"taps": ["logits"], "units": {"Conv_0": "x"}}]}, "run lengths"),
        ({"chains": [{"taps": ["logits"], "units": {"Conv_0": 3}}]}, "run lengths"),
        (
            {"chains": [{"taps": ["logits"], "units": {}, "scale": 0.9}]},
            '"scale" must be 0.5, 0.625, 0.75 or 1, got 0.9',
        ),
        ({"chains": [{"taps": ["logits"], "units": {}, "scale": True}]}, "got True"),
        ({"chains": [{"taps": ["logits"], "units": {}, "scale": "1/2"}]}, "got '1/2'"),
        ({"chains": [{"taps": ["logits"], "units": {}, "scale": None}]}, "got None"),
    ],
)
def test_a_wrong_plan_file_is_refused_in_words(change: dict[str, Any], message: str) -> None:
    _, channels, _ = analysed(chain())
    first = channels.classes[0].name
    text = {"version": 1, "chains": [{"taps": ["logits"], "units": {}}], **change}
    for c in text["chains"]:
        if "Conv_0" in c.get("units", {}):
            c["units"] = {first: c["units"]["Conv_0"]}
    with pytest.raises(UsageError, match=message):
        Conversion.from_json(text, channels)


@pytest.mark.parametrize(
    ("taps", "stages", "message"),
    [
        (("nope", "logits"), [1] * 29, "cannot be a tap"),
        (("image", "logits"), [1] * 29, "cannot be a tap"),
        (("logits", "logits"), [1] * 29, "cannot be a tap"),
        (("y", "logits"), [1] * 28, "28 units"),
        (("logits",), [2] * 29, "only 1 taps"),
        (("y", "logits"), [2] * 29, "no channel of its tap"),
        (("logits",), [0] * 29, "pruned"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(taps: tuple[str, ...], stages: list[int], message: str) -> None:
    graph, channels, _ = analysed(chain())
    with pytest.raises(UsageError, match=message):
        Effective(AnalysedModel(graph, channels), Plan(taps, tuple(stages)))


def test_the_last_chain_ends_in_the_logits() -> None:
    graph, channels, _ = analysed(chain())
    with pytest.raises(UsageError, match="last tap"):
        check_conversion(AnalysedModel(graph, channels), Conversion((Plan(("y",), (1,) * channels.units),)))
    check_conversion(AnalysedModel(graph, channels), Conversion((identity_plan(AnalysedModel(graph, channels)),)))


def test_units_are_written_as_run_lengths_per_class() -> None:
    _, channels, _ = analysed(chain())
    stages = (1,) * 4 + (2,) * 4 + (0,) * 16 + (2, 2, 1, 1, 1)
    written = Conversion((Plan(("y", "logits"), stages),)).to_json(channels)
    first, second, logits = (group.name for group in channels.classes)
    units = {first: "1x4 2x4", second: "0x16", logits: "2x2 1x3"}
    assert written == {"version": 1, "chains": [{"taps": ["y", "logits"], "units": units}]}


def test_a_class_that_a_plan_file_leaves_out_is_in_stage_1() -> None:
    _, channels, _ = analysed(chain())
    data = {"version": 1, "chains": [{"taps": ["y", "logits"], "units": {channels.classes[0].name: "2x8"}}]}
    assert Conversion.from_json(data, channels).chains[0].stages_of_units == (2,) * 8 + (1,) * 21


def test_digests_tell_plans_apart() -> None:
    base = Plan(("y", "logits"), (1, 2, 1))
    others = [
        Conversion((Plan(("x", "logits"), (1, 2, 1)),)),
        Conversion((Plan(("y", "logits"), (1, 1, 2)),)),
        Conversion((base, base)),
    ]
    digests = {Conversion((base,)).digest(), *(c.digest() for c in others)}
    assert len(digests) == 4
    assert Conversion((Plan(("y", "logits"), (1, 2, 1)),)).digest() in digests
    assert {len(d) for d in digests} == {16}


def test_a_scale_is_written_only_where_there_is_one() -> None:
    _, channels, _ = analysed(chain())
    ones = (1,) * channels.units
    before = Conversion((Plan(("y",), ones, 0.5), Plan(("logits",), ones)))
    written = before.to_json(channels)
    assert [c.get("scale") for c in written["chains"]] == [0.5, None]
    assert Conversion.from_json(written, channels) == before
    del written["chains"][0]["scale"]
    whole = Conversion.from_json(written, channels)
    assert [c.scale for c in whole.chains] == [1.0, 1.0]
    assert whole.digest() != before.digest()


def test_digests_of_plans_without_a_scale_are_what_they_were() -> None:
    assert Conversion((Plan(("y", "logits"), (1, 2, 1)),)).digest() == "45acb5c5b993675f"


def test_a_scale_that_the_model_cannot_have_is_refused_with_its_chain() -> None:
    model = AnalysedModel.of(graph_from_proto(chain()))
    whole = identity_plan(model)
    check_conversion(model, Conversion((Plan(("y",), whole.stages_of_units, 0.75), whole)))
    wrong = "plan: chain 1: the model cannot read its image at scale 0.5 (node 'b' (Conv) would make [16, 0, 0] of the image); "
    with pytest.raises(UsageError, match=f"^{re.escape(wrong)}0.75 and 1 are possible$"):
        check_conversion(model, Conversion((Plan(("y",), whole.stages_of_units, 0.5), whole)))


@pytest.mark.parametrize("data", [None, [], "plan", {}, {"version": "1"}])
def test_a_file_that_is_no_plan_is_refused(data: object) -> None:
    _, channels, _ = analysed(chain())
    with pytest.raises(UsageError, match="version"):
        Conversion.from_json(data, channels)


@pytest.mark.parametrize(
    ("runs", "message"), [("-1x8", "names 8 units"), ("1x9", "names 9 units"), ("", "names 0 units"), ("1x", "run len")]
)
def test_wrong_run_lengths_are_refused(runs: str, message: str) -> None:
    _, channels, _ = analysed(chain())
    data = {"version": 1, "chains": [{"taps": ["logits"], "units": {channels.classes[0].name: runs}}]}
    with pytest.raises(UsageError, match=message):
        Conversion.from_json(data, channels)


def test_all_chains_together_have_at_most_four_stages() -> None:
    graph, channels, _ = analysed(chain())
    ones = (1,) * channels.units
    three, two = Plan(("x", "y", "logits"), ones), Plan(("y", "logits"), ones)
    check_conversion(AnalysedModel(graph, channels), Conversion((three, identity_plan(AnalysedModel(graph, channels)))))
    with pytest.raises(UsageError, match="5 stages in all"):
        check_conversion(AnalysedModel(graph, channels), Conversion((three, two)))
    with pytest.raises(UsageError, match="5 stages; 1 to 4"):
        Effective(AnalysedModel(graph, channels), Plan(("x", "x", "y", "y", "logits"), ones))


def test_a_pruned_inside_makes_a_block_dead_bias_and_all() -> None:
    graph, channels, _ = analysed(residual())
    stages = np.ones(channels.units, dtype=int)
    stages[list(channels.classes[1].units)] = 0
    effective = Effective(AnalysedModel(graph, channels), Plan(("logits",), tuple(stages.tolist())))
    assert not effective.live("a").any()
    assert not effective.live("b").any()  # although its conv has a bias
    assert effective.live("t").all()  # the identity still flows
    assert effective.live("logits").all()
    assert not effective.mask(graph.producer["b"]).any()


BLIND_FAMILIES = ("resnet_preact", "wide_resnet", "densenet", "mobilenet_v3", "convnext", "shufflenet_v2")


@pytest.mark.parametrize("family", BLIND_FAMILIES)
def test_what_a_tap_sees_is_what_changes_with_the_image(family: str) -> None:
    """Against torch, with so many units pruned that some taps show biases only."""
    graph, channels, weights = analysed(nets.export(family))
    images = torch.from_numpy(random_images(graph.to_model(), 8, 0)[graph.image])
    splittable, blind = [c for c in channels.classes if c.splittable], 0
    for seed in range(12):
        rng, linked = np.random.default_rng(seed), seed % 2
        stages = np.ones(channels.units, dtype=int)
        for group in splittable:
            units = list(group.units)
            out = 2 if linked and rng.random() < 0.5 else 0  # in a later stage, or in none
            some, few = rng.integers(0, 2, len(units)), int(rng.random() < 0.7)
            stages[units] = np.where(some if rng.random() < 0.5 else few, 1, out)
        for tap in candidate_taps(AnalysedModel(graph, channels)):
            plan = Plan((tap, *[graph.output] * linked), tuple(stages.tolist()))
            effective = Effective(AnalysedModel(graph, channels), plan, check_taps=False)
            net = StagedNet(AnalysedModel(graph, channels), weights, taps=(tap,)).eval()
            with torch.no_grad():
                found = net.exits(images, net.masks(effective))[0]
            assert found.features is not None
            spread = (found.features.max(0).values - found.features.min(0).values).numpy()
            changes = (spread > 1e-6 * np.abs(found.features.numpy()).max()).reshape(len(effective.of(tap)), -1).any(1)
            sees = effective.sees(tap, 1)
            assert not (changes & ~sees).any()
            assert changes.any() == sees.any()
            blind += int(effective.readable(tap, 1).any() and not sees.any())
    assert blind > 0 or family in ("mobilenet_v3", "shufflenet_v2")


BEHIND_A_NORM = {
    "softmax": "y = Softmax<axis=1>(v)",
    "maximum of the channels": "m = ReduceMax<axes=[1], keepdims=1>(v)  y = Mul(v, m)",
}


@pytest.mark.parametrize("name", BEHIND_A_NORM)
def test_a_norm_in_stage_1_sees_nothing_of_what_stage_2_makes(name: str) -> None:
    graph, channels, _ = analysed(
        net(
            "g (float[N,3,8,8] image) => (float[N,5] logits) {"
            "s = Conv<pads=[1,1,1,1]>(image, w1)  x = Conv<pads=[1,1,1,1]>(s, w2, b2)  v = Sigmoid(x)"
            f"{BEHIND_A_NORM[name]}  p = GlobalAveragePool(y)  f = Flatten(p)  logits = Gemm<transB=1>(f, w3, b3)"
            "}",
            w1=(4, 3, 3, 3), w2=(4, 4, 3, 3), b2=(4,), w3=(5, 4), b3=(5,),
        )
    )  # fmt: skip
    first, second = channels.classes[:2]
    stages = np.ones(channels.units, dtype=int)
    stages[list(first.units)] = 2
    stages[list(second.units)[2:]] = 2
    effective = Effective(
        AnalysedModel(graph, channels), Plan(("y", "logits"), tuple(stages.tolist())), check_taps=False
    )
    assert effective.readable("y", 1).any()
    assert not effective.sees("y", 1).any()
    assert effective.sees("y", 2).any()


def test_a_channel_of_the_image_among_those_of_a_unit_is_seen() -> None:
    """Four channels become one: three of them are biases, one is the image's own."""
    graph, channels, weights = analysed(
        net(
            "g (float[N,1,8,8] image) => (float[N,5] logits) {"
            "h = Conv<pads=[1,1,1,1]>(image, w1)  r = Relu(h)  s = Conv<pads=[1,1,1,1]>(r, w2)  z = Sigmoid(s)"
            "c = Concat<axis=1>(z, image)  d = DepthToSpace<blocksize=2>(c)  t = Conv(d, w3)  y = Relu(t)"
            "p = GlobalAveragePool(y)  f = Flatten(p)  logits = Gemm<transB=1>(f, w4)"
            "}",
            w1=(4, 1, 3, 3), w2=(3, 4, 3, 3), w3=(6, 1, 3, 3), w4=(5, 6),
        )
    )  # fmt: skip
    stages = np.ones(channels.units, dtype=int)
    stages[list(channels.classes[0].units)] = 0
    effective = Effective(AnalysedModel(graph, channels), Plan((graph.output,), tuple(stages.tolist())))
    images = torch.from_numpy(random_images(graph.to_model(), 8, 0)[graph.image])
    staged = StagedNet(AnalysedModel(graph, channels), weights).eval()
    with torch.no_grad():
        (logits,) = staged(images, staged.masks(effective))
    assert float(logits.std(0).max()) > 1e-3
    assert effective.sees(graph.output, 1).all()


def test_a_tap_that_sees_nothing_of_the_image_is_refused() -> None:
    graph, channels, _ = analysed(nets.export("resnet_preact"))
    stages = np.ones(channels.units, dtype=int)
    stages[list(channels.classes[0].units)] = 0  # the stem: only biases come out of the first norm
    with pytest.raises(UsageError, match="nothing of the image reaches tap"):
        Effective(AnalysedModel(graph, channels), Plan((graph.output,), tuple(stages.tolist())))


def test_depth_is_the_first_stage_that_needs_a_node() -> None:
    graph, channels, _ = analysed(residual())
    depth = Effective(AnalysedModel(graph, channels), Plan(("x", "y", "logits"), (1,) * channels.units)).depth
    found = {name: depth[graph.producer[name].name] for name in ("s", "x", "a", "b", "t", "y", "f", "logits")}
    assert found == {"s": 1, "x": 1, "a": 2, "b": 2, "t": 2, "y": 2, "f": 3, "logits": 3}


def test_a_growing_concat_is_a_tap_and_its_branch_is_not() -> None:
    graph, channels, _ = analysed(
        net(
            """g (float[N,3,8,8] image) => (float[N,2] logits) {
                s = Conv(image, ws)  a = Conv(s, wa)  c = Concat<axis=1>(s, a)
                b = Conv(c, wb)  d = Concat<axis=1>(c, b)  e = Conv(d, we)  y = Relu(e)
                p = GlobalAveragePool(y)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
            }""",
            ws=(4, 3, 1, 1), wa=(2, 4, 1, 1), wb=(2, 6, 1, 1), we=(6, 8, 1, 1), wl=(2, 6),
        )
    )  # fmt: skip
    assert candidate_taps(AnalysedModel(graph, channels)) == ("s", "c", "d", "f")


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [((0, 6), True), ((-1, 1), True), ((None, 6), True), ((0, None), True), ((1, 2), False), ((None, -1), False)],
)
def test_a_clip_keeps_zero_where_zero_lies_in_its_bounds(bounds: tuple[float | None, float | None], kept: bool) -> None:
    names = tuple("" if b is None else name for b, name in zip(bounds, ("low", "high"), strict=True))
    constants = {
        n: np.array(b, dtype=np.float32) for n, b in zip(("low", "high"), bounds, strict=True) if b is not None
    }
    assert keeps_zero(Node("clip", "Clip", ("x", *names), ("y",), {}), constants) == kept
    assert not keeps_zero(Node("clip", "Clip", ("x", "made"), ("y",), {}), {})
