"""Measuring: what is run, how often, and what is remembered. No test says how long anything takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from chain_law import analysed
from helpers import random_images
from text_nets import chain

from s2d_convert.base.sessions import Running, make_session
from s2d_convert.errors import UsageError
from s2d_convert.latency.meter import MIN_ROUNDS, Meter, Timing, interleave, structure
from s2d_convert.plans.plan import Plan
from s2d_convert.slicing.split import split


def stage_files() -> list[bytes]:
    """The two linked stages of a small net."""
    graph, channels, weights = analysed(chain())
    stages = (1,) * 4 + (2,) * 4 + (1,) * 4 + (2,) * 12 + (1,) * 5
    return [s.model.SerializeToString() for s in split(graph, channels, Plan(("y", "logits"), stages), weights)]


@pytest.fixture(scope="module")
def meter() -> Meter:
    model = chain()
    return Meter(model.SerializeToString(), random_images(model, 1, 0)["image"], seconds=0.0)


def test_every_stage_of_a_chain_gets_a_time_and_a_ratio(meter: Meter) -> None:
    timing = meter.measure(stage_files())
    assert len(timing.median_ms) == len(timing.ratios) == 2
    assert timing.reference_ms > 0
    assert all(value > 0 for value in (*timing.median_ms, *timing.ratios))
    assert timing.ratios == pytest.approx([ms / timing.reference_ms for ms in timing.median_ms])


def test_equal_models_are_measured_once(meter: Meter) -> None:
    before = meter.measure(stage_files())
    assert meter.measure(tuple(stage_files())) is before
    assert meter.measure(stage_files()[:1]) is not before


class Counted(Meter):
    """A meter that measures nothing: the first measurement says that a model takes 0.5 of the reference, the next 0.9, 0.6."""

    def __init__(self) -> None:
        model = chain()
        super().__init__(model.SerializeToString(), random_images(model, 1, 0)["image"])
        self.asked: list[int] = []  # how many models

    def _measure(self, models: Sequence[bytes]) -> Timing:
        self.asked.append(len(models))
        ratio = (0.5, 0.9, 0.6, 7.0)[len(self.asked) - 1]
        return Timing((2.0 * ratio,) * len(models), 2.0, (ratio,) * len(models))


def other_weights(model: bytes, seed: int) -> bytes:
    """The same model under other names and with other weights."""
    proto = onnx.load_model_from_string(model)
    renamed = {name: f"renamed{seed}.{name}" for node in proto.graph.node for name in (*node.input, *node.output)}
    renamed |= {value.name: value.name for value in (*proto.graph.input, *proto.graph.output)} | {"": ""}
    for node in proto.graph.node:
        node.input[:], node.output[:] = [renamed[n] for n in node.input], [renamed[n] for n in node.output]
    for constant in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(constant)
        name = renamed.get(constant.name, constant.name)
        constant.CopyFrom(onnx.numpy_helper.from_array(values + seed if values.dtype == np.float32 else values, name))
    return proto.SerializeToString()


def test_models_that_differ_in_their_weights_share_the_median_of_three_measurements() -> None:
    meter, (first, second) = Counted(), stage_files()
    assert [meter.measure([other_weights(first, seed)]).ratios[0] for seed in range(5)] == [0.5, 0.7, 0.6, 0.6, 0.6]
    assert meter.measure([first]).median_ms[0] == pytest.approx(2.0 * 0.6)
    assert meter.asked == [1, 1, 1]
    meter.measure([first, second])
    assert meter.asked == [1, 1, 1, 2]


def test_a_structure_is_what_is_computed_and_no_weight() -> None:
    first, second = stage_files()
    assert structure(first) == structure(other_weights(first, 1))
    assert structure(first) != structure(second)
    wider = onnx.load_model_from_string(first)
    (conv, *_) = (node for node in wider.graph.node if node.op_type == "Conv")
    conv.attribute.append(onnx.helper.make_attribute("dilations", [2, 2]))
    assert structure(first) != structure(wider.SerializeToString())


def test_an_unknown_provider_is_a_usage_error_that_lists_what_there_is() -> None:
    model = chain()
    with pytest.raises(UsageError, match=r"--provider NoSuchProvider: .*CPUExecutionProvider"):
        make_session(model.SerializeToString(), provider="NoSuchProvider")
    with pytest.raises(UsageError, match="NoSuchProvider"):
        Meter(
            model.SerializeToString(), random_images(model, 1, 0)["image"], running=Running(provider="NoSuchProvider")
        )


@pytest.mark.parametrize("threads", [1, 2])
def test_a_session_has_the_threads_that_were_asked_for(threads: int) -> None:
    model = chain()
    session = make_session(model.SerializeToString(), threads=threads)
    assert session.get_session_options().intra_op_num_threads == threads
    assert session.run(None, random_images(model, 2, 0))[0].shape == (2, 5)


def test_calls_take_turns_for_the_least_number_of_rounds() -> None:
    made: list[str] = []
    times = interleave([lambda: made.append("a"), lambda: made.append("b")], seconds=0.0)
    assert made == ["a", "b"] * MIN_ROUNDS
    assert times.shape == (MIN_ROUNDS, 2)
    assert times.dtype == np.float64
    assert (times >= 0).all()


def test_rounds_bound_a_measurement_however_long_it_may_take() -> None:
    assert interleave([lambda: None], seconds=3600.0, rounds=MIN_ROUNDS + 5).shape == (MIN_ROUNDS + 5, 1)
