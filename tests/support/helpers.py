"""What tests need to run an ONNX model and to compare two answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

Array = NDArray[Any]
Runnable: TypeAlias = onnx.ModelProto | bytes | str | Path | ort.InferenceSession


def open_session(model: onnx.ModelProto | bytes | str | Path, *, optimise: bool = True) -> ort.InferenceSession:
    """A quiet CPU session with one thread, for a model in memory or a file; without onnxruntime's optimisations sums
    are not reordered, and nets that amplify rounding can be compared."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(model: Runnable, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """All outputs of `model` by name; pass a session of `open_session` to run one model several times."""
    session = model if isinstance(model, ort.InferenceSession) else open_session(model)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def image_input(model: onnx.ModelProto) -> tuple[str, tuple[int, ...]]:
    """Name of the model's one image input and its shape without the batch."""
    constants = {initializer.name for initializer in model.graph.initializer}
    (image,) = [value for value in model.graph.input if value.name not in constants]
    return image.name, tuple(dim.dim_value for dim in image.type.tensor_type.shape.dim[1:])


def random_images(model: onnx.ModelProto, batch: int, seed: int) -> dict[str, Array]:
    """Feeds for `model`: images, float32 or as bytes, that differ in colour, contrast and gradient, not only in their noise.

    Global pooling averages plain noise away, so that a net would answer the same for every image. The first images
    are the same whatever the batch.
    """
    name, (channels, height, width) = image_input(model)
    ramp_h, ramp_w = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    images = np.empty((batch, channels, height, width), np.float32)
    for index in range(batch):
        rng = np.random.default_rng((seed, index))
        colour, slope_h, slope_w = rng.normal(size=(3, channels, 1, 1))
        noise = rng.normal(size=images.shape[1:])
        images[index] = rng.uniform(0.3, 1.2) * (colour + slope_h * ramp_h + slope_w * ramp_w + noise)
    if model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8:
        return {name: np.clip(48 * images + 128, 0, 255).astype(np.uint8)}
    return {name: images}


def assert_close(got: Any, expected: Any, *, rel: float = 1e-4, what: str = "output") -> None:
    """Fails unless `got` is `expected` up to `rel * max(1, max|expected|)`, with equal shapes and no NaN in either.

    For mappings every entry is compared, and their names must be the same; the tolerance is taken entry by entry.
    """
    __tracebackhide__ = True
    if isinstance(expected, Mapping):
        assert isinstance(got, Mapping), f"{what}: got a {type(got).__name__}, expected {sorted(expected)} by name"
        assert sorted(got) == sorted(expected), f"{what}: got the names {sorted(got)}, expected {sorted(expected)}"
        for name in expected:
            assert_close(got[name], expected[name], rel=rel, what=f"{what} '{name}'")
        return
    a, b = np.asarray(got), np.asarray(expected)
    assert a.shape == b.shape, f"{what}: got shape {a.shape}, expected {b.shape}"
    for side, values in (("got", a), ("expected", b)):
        bad = np.argwhere(~np.isfinite(values))
        assert not len(bad), (
            f"{what}: {len(bad)} of {values.size} values {side} are not finite, first {bad[0].tolist()}"
        )
    if not a.size:
        return
    error = np.abs(a.astype(np.float64) - b.astype(np.float64))
    allowed = rel * max(1.0, float(np.abs(b).max()))
    worst = np.unravel_index(int(error.argmax()), error.shape)
    assert error.max() <= allowed, (
        f"{what}: |got - expected| is {error.max():.3g} at {[int(i) for i in worst]} ({a[worst]:.6g} against "
        f"{b[worst]:.6g}); at most {allowed:.3g} is allowed, {(error > allowed).sum()} of {error.size} values exceed it"
    )
