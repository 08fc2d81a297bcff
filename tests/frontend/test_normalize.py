"""Each pass of the normalisation on its own: what it changes, what it refuses, and that the answers stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from helpers import assert_close, random_images, run
from onnx import TensorProto, helper
from patterns.base import around, norm, number
from text_nets import chain

from s2d_convert.errors import ModelError
from s2d_convert.frontend.normalize import Pass, normalised, passes
from s2d_convert.frontend.passes.cleaning import MIN_OPSET
from s2d_convert.frontend.proto import copy_of, opset_of, set_nodes

PASSES = passes("logits")
RUN = {step.name: step.run for step in PASSES}


def operators(model: onnx.ModelProto) -> set[str]:
    return {n.op_type for n in model.graph.node}


def with_function() -> onnx.ModelProto:
    body = '<domain: "own", opset_import: ["" : 17]> Swish (a) => (b) { h = Sigmoid(a) b = Mul(a, h) }'
    return around("y = own.Swish(x)", functions=body)


def with_spare_values() -> onnx.ModelProto:
    """Weights among the inputs, a shape that names a batch, and a mask that nobody reads."""
    model = around("y, mask = Dropout(x)")
    for i in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(i.name, i.data_type, list(i.dims)))
    model.graph.value_info.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 8, 8]))
    return model


def with_half_weights() -> onnx.ModelProto:
    return around("h = Cast<to=10>(x)  k = Mul(h, two)  y = Cast<to=1>(k)", two=np.array(2, np.float16))


def old() -> onnx.ModelProto:
    model = chain()
    model.opset_import[0].version = 11
    return model


def without_graph_name() -> onnx.ModelProto:
    model = chain()
    model.graph.name = ""
    return model


def with_domains_spelled_out() -> onnx.ModelProto:
    model = chain()
    model.opset_import[0].domain = "ai.onnx"
    for node in model.graph.node:
        node.domain = "ai.onnx"
    return model


def unsorted() -> onnx.ModelProto:
    model = chain()
    set_nodes(model.graph, list(model.graph.node)[::-1])
    return model


def is_sorted(model: onnx.ModelProto) -> bool:
    made = {o for n in model.graph.node for o in n.output}
    for node in model.graph.node:
        if made.intersection(node.input):
            return False
        made.difference_update(node.output)
    return True


def with_classes() -> onnx.ModelProto:
    """The logits, and the class that they stand for."""
    model = chain()
    model.graph.node.append(helper.make_node("ArgMax", ["logits"], ["class"], axis=1))
    model.graph.output.insert(0, helper.make_tensor_value_info("class", TensorProto.INT64, ["N", 1]))
    return model


CASES: dict[str, tuple[Callable[[], onnx.ModelProto], Callable[[onnx.ModelProto], bool]]] = {
    "name the graph": (without_graph_name, lambda m: bool(m.graph.name)),
    "name the default domain": (
        with_domains_spelled_out,
        lambda m: m.opset_import[0].domain == "" and not any(n.domain for n in m.graph.node),
    ),
    "sort the nodes": (unsorted, is_sorted),
    "leave one output": (with_classes, lambda m: len(m.graph.output) == 1 and "ArgMax" not in operators(m)),
    "inline the model's own functions": (with_function, lambda m: not m.functions and "Swish" not in operators(m)),
    "drop what nobody reads or what depends on the batch": (
        with_spare_values,
        lambda m: len(m.graph.input) == 1 and not m.graph.value_info and all(len(n.output) == 1 for n in m.graph.node),
    ),
    "make float16 and float64 float32": (
        with_half_weights,
        lambda m: all(i.data_type != TensorProto.FLOAT16 for i in m.graph.initializer),
    ),
    "upgrade an old opset": (old, lambda m: opset_of(m) >= MIN_OPSET),
    "replace If, CastLike, GroupNormalization and Attention": (
        lambda: around("y = CastLike(x, two)", two=number(2)),
        lambda m: "CastLike" not in operators(m),
    ),
}


def quantised() -> onnx.ModelProto:
    return around(
        "q = QuantizeLinear(x, qs, qz)  y = DequantizeLinear(q, qs, qz)", qs=number(0.1), qz=np.array(0, np.uint8)
    )


def in_training() -> onnx.ModelProto:
    return around("y, m, v = BatchNormalization<training_mode=1>(x, ns, nb, nm, nv)", norm("n", 8))


def old_and_in_training() -> onnx.ModelProto:
    """Before opset 14 the further outputs were what said so."""
    return around("y, m, v, sm, sv = BatchNormalization(x, ns, nb, nm, nv)", norm("n", 8), opset=13)


def with_dropout_in_training() -> onnx.ModelProto:
    return around("y = Dropout(x, half, yes)", half=number(0.5), yes=np.array(True))


def looping() -> onnx.ModelProto:
    model = around("y = Identity(x)", trip=np.array(3), yes=np.array(True))
    body = helper.make_graph(
        [helper.make_node("Relu", ["xi"], ["xo"]), helper.make_node("Identity", ["ci"], ["co"])],
        "body",
        [
            helper.make_tensor_value_info("it", TensorProto.INT64, []),
            helper.make_tensor_value_info("ci", TensorProto.BOOL, []),
            helper.make_tensor_value_info("xi", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("co", TensorProto.BOOL, []),
            helper.make_tensor_value_info("xo", TensorProto.FLOAT, None),
        ],
    )
    node = next(n for n in model.graph.node if n.output[0] == "y")
    node.CopyFrom(helper.make_node("Loop", ["trip", "yes", "x"], ["y"], body=body))
    return model


def with_foreign_node() -> onnx.ModelProto:
    model = around("y = Identity(x)")
    next(n for n in model.graph.node if n.output[0] == "y").domain = "custom"
    return model


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "refuse nodes without a definition": (with_foreign_node, r"'y' \(custom\.Identity\).*standard operators"),
    "refuse sequences and loops": (looping, r"'y' \(Loop\): loops are not supported; .* unrolled"),
    "refuse quantised operators": (quantised, r"\(QuantizeLinear\).*quantised"),
    "refuse normalisation and dropout as in training": (in_training, r"'y' \(BatchNormalization\).*model\.eval"),
}


def test_every_pass_has_a_test() -> None:
    assert {*CASES, *REFUSED} == {step.name for step in PASSES}
    assert len({step.name for step in PASSES}) == len(PASSES)


@pytest.mark.parametrize("name", list(CASES))
def test_a_pass_changes_the_form_and_not_the_answers(name: str) -> None:
    make, holds = CASES[name]
    model = make()
    assert not holds(model)
    feeds = random_images(model, 3, 0)
    expected = run(model, feeds)
    changed = RUN[name](copy_of(model))
    assert holds(changed)
    assert_close(run(changed, feeds)["logits"], expected["logits"])


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_pass_refuses_and_names_the_node(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ModelError, match=message):
        RUN[name](make())
    assert RUN[name](chain()) == chain()


@pytest.mark.parametrize("make", [old_and_in_training, with_dropout_in_training])
def test_everything_that_trains_is_refused(make: Callable[[], onnx.ModelProto]) -> None:
    with pytest.raises(ModelError, match=r"'y' .* as in training; export the model for inference"):
        RUN["refuse normalisation and dropout as in training"](make())


def test_the_statistics_of_a_weight_are_those_of_a_constant() -> None:
    model = around(
        """w, m, v = BatchNormalization<training_mode=1>(wc, ones, zeros, zeros, ones)
        y = Conv<pads=[1,1,1,1]>(x, w)""",
        wc=(8, 8, 3, 3), ones=np.ones(8, np.float32), zeros=np.zeros(8, np.float32),
    )  # fmt: skip
    assert RUN["refuse normalisation and dropout as in training"](model) is model


def test_sequences_are_refused() -> None:
    model = around(
        "q = SplitToSequence<axis=1>(x, four)  y = SequenceAt(q, first)",
        made=4,
        four=np.array([4, 4]),
        first=np.array(0),
    )
    with pytest.raises(ModelError, match=r"'q' \(SplitToSequence\), 'y' \(SequenceAt\): sequences .* tensors only"):
        RUN["refuse sequences and loops"](model)


def test_all_passes_in_order() -> None:
    met: list[str] = []

    def noted(name: str) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
        def step(model: onnx.ModelProto) -> onnx.ModelProto:
            met.append(name)
            return RUN[name](model)

        return step

    model = old()
    feeds = random_images(model, 3, 0)
    changed = normalised(copy_of(model), [Pass(step.name, noted(step.name)) for step in PASSES])
    assert_close(run(changed, feeds), run(model, feeds))
    assert met == [step.name for step in PASSES]
