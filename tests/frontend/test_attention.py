"""The operator Attention in simpler words: the same answers as onnxruntime's own, whole and cut at a depth."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from chain_law import check_depth_law, check_identity_law
from helpers import assert_close, random_images, run
from patterns.base import Weight, around, normal

from s2d_convert.errors import ModelError
from s2d_convert.frontend import graph_from_proto

TOKENS = "r = Reshape(x, rows)  t = Transpose<perm=[0,2,1]>(r)  "  # [N, 64, 8]
HEADS = TOKENS + "h = Reshape(t, split)  q = Transpose<perm=[0,2,1,3]>(h)  "  # [N, 2, 64, 4]
BACK = "  b = Transpose<perm=[0,2,1]>(u)  k = Reshape(b, map)  y = Add(k, x)"
MERGED = "  m = Transpose<perm=[0,2,1,3]>(a)  u = Reshape(m, flat)" + BACK
CASES = {
    "three axes": TOKENS + "u = Attention<q_num_heads=2, kv_num_heads=2>(t, t, t)" + BACK,
    "shared keys": TOKENS + "n = MatMul(t, narrow)  u = Attention<q_num_heads=4, kv_num_heads=2>(t, n, n)" + BACK,
    "four axes": HEADS + "a = Attention(q, q, q)" + MERGED,
    "a scale": HEADS + "a = Attention<scale=0.25>(q, q, q)" + MERGED,
    "a mask of booleans": HEADS + "a = Attention(q, q, q, seen)" + MERGED,
    "a mask of numbers": HEADS + "a = Attention(q, q, q, bias)" + MERGED,
}


def model_with(middle: str) -> onnx.ModelProto:
    weights: dict[str, Weight] = {
        "rows": [0, 8, 64], "map": [0, 8, 8, 8], "split": [0, 64, 2, 4], "flat": [0, 64, 8], "narrow": (8, 4),
        "seen": np.tri(64, dtype=np.bool_), "bias": normal(64, 64), "past": normal(1, 2, 3, 4),
    }  # fmt: skip
    return around(middle, weights, opset=23)


@pytest.mark.parametrize("name", list(CASES))
def test_the_answers_are_those_of_the_operator(name: str) -> None:
    model = model_with(CASES[name])
    graph = graph_from_proto(model)
    assert "Attention" not in {n.op for n in graph.nodes}
    feeds = random_images(model, 4, 0)
    assert_close(run(graph.to_model(), feeds)["logits"], run(model, feeds)["logits"])


@pytest.mark.parametrize("name", ["three axes", "a mask of booleans"])
def test_such_a_model_can_be_cut(name: str) -> None:
    check_identity_law(model_with(CASES[name]))
    check_depth_law(model_with(CASES[name]))


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ("a = Attention<is_causal=1>(q, q, q)", "is_causal"),
        ("a = Attention<softcap=2.0>(q, q, q)", "softcap"),
        ("a, pk, pv = Attention(q, q, q)", "further outputs"),
    ],
)
def test_what_belongs_to_text_is_refused(made: str, reason: str) -> None:
    with pytest.raises(ModelError, match=rf"\(Attention\): {reason} cannot be taken over"):
        graph_from_proto(model_with(HEADS + made + MERGED))
