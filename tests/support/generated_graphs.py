"""Networks made at random as somebody's tools might write them, each with a plain form that says what it must answer.

A number makes a case, always the same one: a base (a pattern, a small net), perhaps another end, and then some changes that
leave the answers as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random

import nets
import numpy as np
import onnx
import text_nets
from graph_changes import CHANGES, ENDS, Subject, UnfitError
from graph_changes.base import all_names
from helpers import Array, open_session
from onnx import helper
from patterns import PATTERNS

MOST_CHANGES = 7
BASES: dict[str, Callable[[], onnx.ModelProto]] = {
    **PATTERNS, "chain": text_nets.chain, "residual": text_nets.residual,
    **{f"family {name}": partial(nets.export, name) for name in nets.FAMILIES},
}  # fmt: skip
SMALL = (*PATTERNS, "chain", "residual")
FAMILIES = tuple(name for name in BASES if name not in SMALL)


@dataclass(frozen=True)
class Case:
    """A file `subject`, and the same network in a plain form, `reference`, which answers for it."""

    number: int
    name: str
    reference: onnx.ModelProto
    subject: Subject

    def write(self, folder: Path) -> Path:
        """Write the file, its weights beside it where that is one of its changes."""
        path = folder / f"case {self.number}.onnx"
        saving = self.subject.saving
        if any(not name.isidentifier() for name in all_names(self.subject.graph)):  # they would be names of files
            saving = saving and {**saving, "all_tensors_to_one_file": True, "location": "w.bin"}
        onnx.save(self.subject.model, str(path), **saving)
        return path

    def feed(self, images: Array) -> Array:
        """Images as the file takes them."""
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1)) if self.subject.transposed else images


def case_of(number: int, changes: Sequence[str] = (), *, base: str = "", end: str | None = None) -> Case:
    """Make case `number`; base, end and changes can be given to narrow a finding down."""
    rng = Random(number)
    drawn, plain = _drawn_base(rng)
    subject = Subject(_base(base) if base else plain, rng)
    drawn_end = rng.choice(tuple(ENDS)) if rng.random() < 0.5 else ""
    chosen = drawn_end if end is None else end
    if chosen:
        _apply(subject, ENDS[chosen], chosen)
    reference = onnx.ModelProto.FromString(subject.model.SerializeToString())
    name = " + ".join([base or drawn, *subject.told])
    subject.told.clear()
    if changes:
        for change in changes:
            _apply(subject, CHANGES[change], change)
        return Case(number, name, reference, subject)
    wanted, tries = rng.randint(1, MOST_CHANGES), 0
    while len(subject.told) < wanted and tries < 20:
        change, tries = rng.choice(tuple(CHANGES)), tries + 1
        _apply(subject, CHANGES[change], change)
    return Case(number, name, reference, subject)


def _drawn_base(rng: Random) -> tuple[str, onnx.ModelProto]:
    """Name and model of what a case starts from: a pattern, two of them in a row, or one of the architectures."""
    kind = rng.random()
    if kind < 0.03:
        name = rng.choice(FAMILIES)
        return name, _base(name)
    first, second = rng.choice(SMALL), rng.choice(SMALL)
    if kind < 0.5:
        return first, _base(first)
    both = stacked(_base(first), _base(second))
    return (f"{first} > {second}", both) if both is not None else (first, _base(first))


def stacked(first: onnx.ModelProto, second: onnx.ModelProto) -> onnx.ModelProto | None:
    """Two patterns of `around` in one net, one behind the other; None where they do not fit together."""
    weights = [{i.name: i for i in model.graph.initializer} for model in (first, second)]
    makers = [{o: n for n in model.graph.node for o in n.output} for model in (first, second)]
    if not all({"s", "x", "y", "e"} <= set(m) and {"ws", "we"} <= set(w) for m, w in zip(makers, weights, strict=True)):
        return None
    if first.opset_import[0] != second.opset_import[0] or second.functions or first.ir_version != second.ir_version:
        return None
    if weights[0]["we"].dims[1] != weights[1]["ws"].dims[0]:
        return None
    middle = [n for n in second.graph.node if n.output[0] not in ("s", "x", "e", "z", "p", "f", "logits")]
    names = {n for m in middle for n in (*m.input, *m.output)} - {"x", ""}
    new = {"x": "y", "": "", **{name: f"second_{name}" for name in names}}
    model = onnx.ModelProto.FromString(first.SerializeToString())
    for node in model.graph.node:
        if node.output[0] == "e":
            node.input[0] = new["y"]
    place = next(i for i, n in enumerate(model.graph.node) if n.output[0] == "e")
    for node in reversed(middle):
        fresh = onnx.NodeProto.FromString(node.SerializeToString())
        fresh.name = f"second_{node.name}" if node.name else ""
        fresh.input[:] = [new[name] for name in node.input]
        fresh.output[:] = [new[name] for name in node.output]
        model.graph.node.insert(place, fresh)
    kept = [i for name, i in weights[1].items() if name in names]
    for weight in kept:
        model.graph.initializer.add().CopyFrom(weight)
        model.graph.initializer[-1].name = new[weight.name]
    (last,) = (i for i in model.graph.initializer if i.name == "we")
    last.CopyFrom(weights[1]["we"])
    return model if _runs(model) else None


def _runs(model: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(model, full_check=True)
        found = answers_of(model, images_of(model, 2))
    except Exception:  # noqa: BLE001 - neither onnx's nor onnxruntime's exceptions share a public base class
        return False
    return bool(np.isfinite(found).all())


def _base(name: str) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(_serialised(name))


@cache
def _serialised(name: str) -> bytes:
    return BASES[name]().SerializeToString()


def _apply(subject: Subject, change: Callable[[Subject], None], name: str) -> None:
    """Make a change, or none at all where it does not fit."""
    before = subject.model.SerializeToString(), subject.output, subject.size, subject.transposed, dict(subject.saving)
    try:
        change(subject)
    except UnfitError:
        content, subject.output, subject.size, subject.transposed, subject.saving = before
        subject.model = onnx.ModelProto.FromString(content)
    else:
        subject.told.append(name)


def images_of(reference: onnx.ModelProto, batch: int) -> Array:
    """Images for a plain form, of different colours, as global pooling averages noise away."""
    value = _image(reference)
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    shape = [d.dim_value for d in value.type.tensor_type.shape.dim[1:]]
    rng = np.random.default_rng(batch)
    colours = rng.normal(size=(batch, *(n if n <= 4 else 1 for n in shape)))
    images = colours + rng.normal(size=(batch, *shape))
    if kind == np.uint8:
        return np.clip(48 * images + 128, 0, 255).astype(np.uint8)
    return images.astype(np.float32)


def answers_of(model: onnx.ModelProto, images: Array) -> Array:
    """What onnxruntime answers, image by image where the file is for one."""
    session = open_session(model)
    image, name = session.get_inputs()[0], session.get_outputs()[0].name
    images = images.astype({"tensor(float16)": np.float16, "tensor(double)": np.float64}.get(image.type, images.dtype))
    feeds = {
        i.name: np.zeros([d if isinstance(d, int) else 1 for d in i.shape], np.float32)
        for i in session.get_inputs()[1:]
    }
    if isinstance(image.shape[0], int) and image.shape[0] > 0:
        parts = [session.run([name], {**feeds, image.name: images[i : i + 1]})[0] for i in range(len(images))]
        return np.concatenate([p.reshape(1, -1) for p in parts]).astype(np.float32)
    return session.run([name], {**feeds, image.name: images})[0].astype(np.float32)


def loads(path: Path) -> bool:
    """Whether onnxruntime loads a file: what it refuses is no valid case."""
    try:
        open_session(path)
    except Exception:  # noqa: BLE001 - onnxruntime's exceptions share no public base class
        return False
    return True


def _image(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    constants = {i.name for i in model.graph.initializer}
    return next(i for i in model.graph.input if i.name not in constants)
