"""`--plan`: what each name leaves to the search, written plans, and what a conversion says about its time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_spaces import by_hand
from tiny import Listener, ask, make_folder, use_tiny_effort

from s2d_convert.channels.analysis import AnalysedModel, Channels, analyse
from s2d_convert.conversion.estimate import measuring_seconds, predicted_latency, time_shares
from s2d_convert.conversion.options import PLANS
from s2d_convert.conversion.pipeline import convert
from s2d_convert.errors import UsageError
from s2d_convert.frontend.graph import Graph
from s2d_convert.frontend.load import load_graph
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.decisions import random_actions
from s2d_convert.plans.exit_points import candidate_taps
from s2d_convert.plans.plan import PRUNED, Conversion, Plan, identity_plan
from s2d_convert.plans.plan_option import LIMITS, restricted


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model and its data, made once."""
    return make_folder(tmp_path_factory.mktemp("planned"), 600)


def test_every_name_has_its_limits() -> None:
    assert tuple(LIMITS) == PLANS


@given(seed=st.integers(0, 10**6), stages=st.integers(2, 4), name=st.sampled_from(PLANS))
def test_a_restricted_space_holds_only_plans_of_its_sort(seed: int, stages: int, name: str) -> None:
    whole = by_hand(stages)
    space = restricted(whole, name)
    found = space.decode(random_actions(space, np.random.default_rng(seed)))
    first = found.chains[0]
    if name in ("depth", "width"):
        assert len(found.chains) == 1
        assert PRUNED not in first.stages_of_units
    if name == "depth":
        assert is_by_depth(space.graph, space.channels, first)
    if name == "width":
        assert set(first.taps[:-1]) == {whole.taps[-1]}
    if name == "cascade":
        assert found.chains[1] == identity_plan(space.model)


def is_by_depth(graph: Graph, channels: Channels, plan: Plan) -> bool:
    """Whether every node is computed whole, in the first stage that needs it."""
    effective = Effective(AnalysedModel(graph, channels), plan)
    made = ((n, name) for n in graph.nodes for name in n.outputs if channels.is_root(name))
    return all((effective.of(name) == effective.depth[n.name]).all() for n, name in made)


def test_all_depth_plans_by_hand() -> None:
    space = restricted(by_hand(2), "depth")
    found = {space.decode(actions) for actions in space.starts()}
    assert {plan.chains[0].taps for plan in found} == {("x", "logits"), ("f", "logits")}
    assert all(is_by_depth(space.graph, space.channels, plan.chains[0]) for plan in found)


@pytest.mark.parametrize("name", ["depth", "width", "uniform"])
def test_a_conversion_keeps_to_the_plan_that_was_asked_for(
    name: str, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny_effort(monkeypatch)
    listener = Listener()
    result = convert(ask(template, out=tmp_path / "out", plan=name), listener)
    graph = load_graph(template / "tiny.onnx")
    channels = analyse(graph)
    first = Conversion.from_json(json.loads((result.out / "plan.json").read_text()), channels).chains[0]
    if name == "depth":
        assert is_by_depth(graph, channels, first)
    if name == "width":
        assert first.taps[0] == candidate_taps(AnalysedModel(graph, channels))[-1]
        assert set(first.stages_of_units) <= {1, 2}, (
            "nothing is left out; whether stage 2 has any is the machine's business"
        )
    lines = [json.loads(line) for line in (result.out / "search.jsonl").read_text().splitlines()]
    if name == "width":
        tried = [set(Conversion.from_json(line["plan"], channels).chains[0].stages_of_units) for line in lines]
        assert all(stages <= {1, 2} for stages in tried)
        assert {1, 2} in tried
    methods = {line["method"] for line in lines}
    assert methods == {"uniform" if name == "uniform" else "reinforce", "finals"}
    assert any(text.startswith("time: ") and "training" in text and "measuring" in text for text in listener.texts)
    assert any(text.startswith("mean latency: ") and "measured from the files" in text for text in listener.texts)


def test_a_written_plan_is_trained_as_it_is(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_effort(monkeypatch)
    first = convert(ask(template, out=tmp_path / "first", plan="cascade"), Listener()).out / "plan.json"
    again = convert(ask(template, out=tmp_path / "again", plan=str(first), budget=0.9), Listener())
    assert json.loads((again.out / "plan.json").read_text()) == json.loads(first.read_text())
    assert not (again.out / "search.jsonl").exists()


@pytest.mark.parametrize("linked", [True, False])
def test_a_written_plan_may_have_exits_where_no_search_puts_one(
    linked: bool, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny_effort(monkeypatch)
    graph = load_graph(template / "tiny.onnx")
    before_relu, in_block = [n.outputs[0] for n in graph.nodes if n.op == "Conv"][:2]
    assert not {before_relu, in_block} & {*candidate_taps(AnalysedModel.of(graph))}
    taps = [before_relu, in_block, graph.output]
    chains = [{"taps": taps, "units": {}}] if linked else [{"taps": [t], "units": {}} for t in (in_block, graph.output)]
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"version": 1, "chains": chains}))
    result = convert(ask(template, out=tmp_path / "out", plan=str(plan)), Listener())
    made = json.loads((result.out / "plan.json").read_text())
    assert [chain["taps"] for chain in made["chains"]] == [chain["taps"] for chain in chains]
    assert len(result.manifest.stages) == (3 if linked else 2)


def test_a_last_chain_with_fewer_channels_gets_solved_weights(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny_effort(monkeypatch)
    graph = load_graph(template / "tiny.onnx")
    channels = analyse(graph)
    inner = max((c for c in channels.classes if c.splittable), key=lambda c: len(c.units))
    slim = {"taps": [graph.output], "units": {inner.name: f"1x{len(inner.units) - 4} 0x4"}}
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"version": 1, "chains": [slim, slim]}))
    result = convert(ask(template, out=tmp_path / "out", plan=str(plan)), Listener())
    assert result.manifest.exactness is None, "the last stage is not the model"
    whole = sum(value.size for name, value in graph.constants.items())
    last = onnx.load(result.out / "stage2.onnx")
    assert 0 < sum(int(np.prod(weight.dims)) for weight in last.graph.initializer) < whole


def test_what_would_not_be_trained_is_refused(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_effort(monkeypatch)
    graph = load_graph(template / "tiny.onnx")
    channels = analyse(graph)
    inner = next(c for c in channels.classes if c.splittable)
    both = [{"taps": [graph.output], "units": {}}] * 2
    narrow = {"taps": [graph.output], "units": {inner.name: f"1x8 0x{len(inner.units) - 8}"}}
    plan = tmp_path / "plan.json"
    for chains, words in (
        (
            [both[0], {"taps": [candidate_taps(AnalysedModel(graph, channels))[0], graph.output], "units": {}}],
            "chain 2 has exits",
        ),
        ([narrow, {"taps": []}], "chain 2"),
    ):
        plan.write_text(json.dumps({"version": 1, "chains": chains}))
        with pytest.raises(UsageError, match=words):
            convert(ask(template, out=tmp_path / "out", plan=str(plan)), Listener())
    assert not (tmp_path / "out.run").exists()
    with pytest.raises(UsageError, match="--plan sideways: expected search, depth"):
        ask(template, plan="sideways")


def test_time_is_told_in_shares() -> None:
    trace = [
        {"seconds": 2.0, "info": {"measure_s": 1.5}},
        {"seconds": 0.0, "info": {"measure_s": 1.5}},  # a plan that another search had met
        {"seconds": 1.0, "info": {}},
    ]
    assert measuring_seconds(trace) == 1.5
    seconds = {"search": 60.5, "finals": 11.0, "fine-tune": 20.0, "finish": 8.5}
    told = time_shares(seconds, {"search": 0.5, "finals": 1.0})
    assert told == "time: 100 s (training 30 %, search 60 %, measuring 10 %)"


def test_the_predicted_mean_weighs_ways_out_by_their_share() -> None:
    assert predicted_latency((0.3, 1.0), (0.75, 0.25)) == pytest.approx(0.3 * 0.75 + 1.3 * 0.25)
