"""Exports with one thing changed, and what a dispatcher may make of them.

    python fuzzing.py FOLDER FIRST COUNT

makes the cases FIRST to FIRST + COUNT - 1 in FOLDER, one after the other, and writes a line for each: its number when it
begins, then what came of it. Another process reads that, because onnxruntime could take its own down.

A stage file whose hash was made anew is as good as any to a reader: it is another model. So "the right answer" is what
onnxruntime gives for these very files, stage by stage, with the exit rule between them: `expected`.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from s2d_runtime import Answer, Dispatcher, DispatcherError
from s2d_runtime.dispatcher import default_options
from toy_exports import MIXED, PAIR, images_of, policy, write_export

Floats = NDArray[np.float32]
WHOLE = (0, 1, -1, 2, 3, 5, 8, 255, -(2**31), 2**31 - 1, 2**31, 10**9, 2**62, 2**63 - 1, -(2**63))
REAL = (0.0, -0.0, 1.0, -1.0, 0.5, 1.01, 1e-30, 1e30, 1e308, 2**53)
TEXTS = (
    "",
    "a",
    "image",
    "output",
    "confidence",
    "link1",
    "stage1.onnx",
    "../stage1.onnx",
    "/dev/zero",
    "\u0000",
    "\x1b[2J",
)
OPERATORS = (
    "Abs", "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "ConvTranspose", "CumSum",
    "DepthToSpace", "Div", "Einsum", "Elu", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Gemm",
    "GlobalAveragePool", "Identity", "InstanceNormalization", "LRN", "LpPool", "MatMul", "MaxPool", "Mod", "NonZero",
    "OneHot", "Pad", "ReduceMax", "ReduceMean", "Relu", "Reshape", "Resize", "ReverseSequence", "ScatterND", "Shape",
    "Slice", "Softmax", "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where",
)  # fmt: skip


# --- whole exports --------------------------------------------------------------------------------------------------


def conv_export(folder: Path) -> None:
    """Two stages with the operators of real networks; an image is float32 [3, 8, 8]."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array((0.4 * rng.normal(size=shape)).astype(np.float32), name)

    def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, inputs.split(), outputs.split(), name=outputs, **attributes)

    def head(features: str) -> list[onnx.NodeProto]:
        return [
            node("GlobalAveragePool", features, "pooled"),
            node("Reshape", "pooled flat_shape", "flat"),
            node("Gemm", "flat head bias", "output", transB=1),
            node("Softmax", "output", "shares", axis=1),
            node("ReduceMax", "shares", "confidence", axes=[1], keepdims=0),
        ]

    def save(name: str, nodes: list[onnx.NodeProto], inputs: Any, links: Any, weights: list[TensorProto]) -> bytes:
        ends = [("output", ["N", 4]), ("confidence", ["N"]), *links]
        weights = [*weights, numpy_helper.from_array(np.array([0, -1]), "flat_shape"), weight("bias", 4)]
        into, out = (
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in side] for side in (inputs, ends)
        )
        graph = helper.make_graph(nodes, name, into, out, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        (folder / name).write_bytes(model.SerializeToString())
        return bytes(model.SerializeToString())

    link = [("link1", ["N", 8, 4, 4])]
    first = [
        node("Conv", "image w1 b1", "c1", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1]),
        node("Relu", "c1", "r1"),
        node("MaxPool", "r1", "link1", kernel_shape=[2, 2], strides=[2, 2]),
        *head("link1"),
    ]
    second = [
        node("Conv", "link1 w2", "c2", kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=4, dilations=[1, 1]),
        node("Transpose", "c2", "t2", perm=[0, 1, 3, 2]),
        node("Slice", "t2 zeros ends axes", "s2"),
        node("Pad", "s2 padding", "p2"),
        node("Concat", "p2 link1", "j2", axis=1),
        node("AveragePool", "j2", "a2", kernel_shape=[2, 2], ceil_mode=0),
        *head("a2"),
    ]
    constants = {"zeros": [0, 0], "ends": [3, 4], "axes": [2, 3], "padding": [0, 0, 0, 0, 0, 0, 1, 0]}
    more = [numpy_helper.from_array(np.array(values), name) for name, values in constants.items()]
    image = [("image", ["N", 3, 8, 8])]
    weights = [weight("w1", 8, 3, 3, 3), weight("b1", 8), weight("head", 4, 8)]
    files = [save("stage1.onnx", first, image, link, weights)]
    files.append(save("stage2.onnx", second, link, [], [weight("w2", 8, 2, 3, 3), weight("head", 4, 16), *more]))
    base = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
    base["input"]["shape"] = [None, 3, 8, 8]
    base["stages"][0]["links_out"] = [{"name": "link1", "shape": [None, 8, 4, 4]}]
    for entry, data in zip(base["stages"], files, strict=True):
        entry["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(base), encoding="utf-8")


def write_base(folder: Path, kind: int) -> Floats:
    """Write one of three sound exports and return images for it."""
    toys = (PAIR, MIXED, PAIR)[kind]
    thresholds = [0.3] * (len(toys) - 1)
    write_export(folder, toys, policies=[policy(0.5, thresholds), policy(1.0, [0.6] * len(thresholds))])
    if kind < 2:
        return images_of(np.random.default_rng(1).choice([0.1, 0.4, 0.9], (6, 4)))
    conv_export(folder)
    return np.random.default_rng(1).normal(size=(6, 3, 8, 8)).astype(np.float32)


# --- changes --------------------------------------------------------------------------------------------------------


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in parsed JSON."""
    items = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    return [found for key, item in items for found in [(*path, key), *places(item, (*path, key))]]


def at(node: Any, path: tuple[Any, ...]) -> Any:
    """What stands at a place."""
    for step in path:
        node = node[step]
    return node


def change_json(folder: Path, random_: random.Random) -> None:
    """One value of the manifest replaced, removed, doubled or exchanged with another."""
    file = folder / "manifest.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    path = random_.choice(places(data))
    home, key = at(data, path[:-1]), path[-1]
    other = at(data, random_.choice(places(data)))
    how = random_.randrange(5)
    if how == 0:
        del home[key]
    elif how == 1 and isinstance(home, list):
        home.append(home[key])
    elif how == 2 and isinstance(home, list):
        home.reverse()
    else:
        home[key] = random_.choice(
            [*WHOLE, *REAL, *TEXTS, None, True, False, [], {}, other, [other], {"a": other}, 10**400]
        )
    file.write_text(json.dumps(data), encoding="utf-8")


def change_bytes(data: bytes, random_: random.Random) -> bytes:
    """Some bytes replaced, cut out, doubled or put in."""
    found = bytearray(data)
    for _ in range(random_.choice([1, 1, 1, 2, 8])):
        if not found:
            break
        place, length = random_.randrange(len(found)), random_.choice([1, 1, 2, 8, 200])
        how = random_.randrange(5)
        if how == 0:
            found[place] ^= 1 << random_.randrange(8)
        elif how == 1:
            found[place] = random_.choice([0, 1, 127, 128, 255])
        elif how == 2:
            del found[place : place + length]
        elif how == 3:
            found[place:place] = found[place : place + length]
        else:
            found[place:place] = random_.randbytes(length)
    return bytes(found)


def change_text(folder: Path, random_: random.Random) -> None:
    """Some bytes of the manifest changed."""
    file = folder / "manifest.json"
    file.write_bytes(change_bytes(file.read_bytes(), random_))


def stage_file(folder: Path, random_: random.Random) -> Path:
    """One of the stage files."""
    return random_.choice(sorted(folder.glob("stage*.onnx")))


def change_file(folder: Path, random_: random.Random) -> None:
    """Some bytes of a stage file changed; the manifest keeps the old hash."""
    file = stage_file(folder, random_)
    file.write_bytes(change_bytes(file.read_bytes(), random_))


def rehash(folder: Path) -> None:
    """Write the hashes of the stage files into the manifest."""
    file = folder / "manifest.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    for entry in data["stages"]:
        entry["sha256"] = hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest()
    file.write_text(json.dumps(data), encoding="utf-8")


def change_file_and_hash(folder: Path, random_: random.Random) -> None:
    """Some bytes of a stage file changed, and its hash with it."""
    change_file(folder, random_)
    rehash(folder)


def change_model(folder: Path, random_: random.Random) -> None:
    """One part of a stage's graph changed, and its hash with it."""
    file = stage_file(folder, random_)
    model = onnx.load_model_from_string(file.read_bytes())
    for _ in range(random_.choice([1, 1, 2])):
        random_.choice(
            [change_attribute, change_attribute, change_operator, change_edge, change_weight, change_shape, add_trap]
        )(model.graph, model, random_)
    file.write_bytes(model.SerializeToString())
    rehash(folder)


def change_attribute(graph: Any, model: Any, random_: random.Random) -> None:
    """A number of an attribute is another, or the attribute is gone."""
    nodes = [node for node in graph.node if node.attribute]
    if not nodes:
        return
    node = random_.choice(nodes)
    attribute = random_.choice(list(node.attribute))
    if attribute.ints and random_.random() < 0.8:
        values = list(attribute.ints)
        values[random_.randrange(len(values))] = random_.choice(WHOLE)
        del attribute.ints[:]
        attribute.ints.extend(values if random_.random() < 0.8 else values[1:] or [*values, 1])
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = random_.choice(WHOLE)
    else:
        node.attribute.remove(attribute)


def change_operator(graph: Any, model: Any, random_: random.Random) -> None:
    """A node has another operator, stands elsewhere, twice or not at all; or the opset is another."""
    place = random_.randrange(len(graph.node))
    how = random_.randrange(6)
    if how == 0:
        del graph.node[place]
    elif how == 1:
        graph.node.append(graph.node[place])
    elif how == 2:
        model.opset_import[0].version = random_.choice([1, 7, 11, 13, 18, 21, 999, -1])
    else:
        graph.node[place].op_type = random_.choice(OPERATORS)


def change_edge(graph: Any, model: Any, random_: random.Random) -> None:
    """A node reads something else, or writes to another name."""
    node = random_.choice(list(graph.node))
    names = ["", "nothing", *(n for other in graph.node for n in other.output), *(w.name for w in graph.initializer)]
    side = node.input if node.input and random_.random() < 0.8 else node.output
    side[random_.randrange(len(side))] = random_.choice(names)


def change_weight(graph: Any, model: Any, random_: random.Random) -> None:
    """A constant has other values, another type, or a shape that does not fit."""
    if not graph.initializer:
        return
    weight = random_.choice(list(graph.initializer))
    how = random_.randrange(4)
    if how == 0 and weight.dims:
        weight.dims[random_.randrange(len(weight.dims))] = random_.choice(WHOLE)
    elif how == 1:
        weight.data_type = random_.randrange(25)
    elif how == 2 and weight.raw_data:
        weight.raw_data = change_bytes(weight.raw_data, random_)
    else:
        values = numpy_helper.to_array(weight).copy()
        extreme = random_.choice(WHOLE if values.dtype.kind == "i" else (*REAL, np.nan, np.inf))
        with np.errstate(all="ignore"):
            values.reshape(-1)[random_.randrange(max(1, values.size)) :][:1] = np.asarray(extreme).astype(values.dtype)
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def change_shape(graph: Any, model: Any, random_: random.Random) -> None:
    """What the file says of the shape of an input or output is something else."""
    value = random_.choice([*graph.input, *graph.output])
    axes = value.type.tensor_type.shape.dim
    axis = random_.choice(list(axes))
    if random_.random() < 0.5:
        axis.dim_param = random_.choice(["N", "M", ""])
    else:
        axis.dim_value = random_.choice(WHOLE)


def add_trap(graph: Any, model: Any, random_: random.Random) -> None:
    """What reaches out of the file, runs for ever, or takes all memory."""
    how = random_.randrange(6)
    if how == 0 and graph.initializer:
        weight = graph.initializer[0]
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=random_.choice(["/etc/passwd", "../outside", "stage1.onnx"]))
    elif how == 1:
        graph.node.add(op_type="Anything", domain="com.evil", output=["x"])
    elif how == 2:
        body = helper.make_graph([], "body", [], [])
        graph.node.append(helper.make_node("Loop", ["", ""], ["x"], body=body))
    elif how == 3:
        model.functions.add(name="Relu", domain="")
    elif how == 4:
        graph.initializer.append(numpy_helper.from_array(np.array([2**40, 2**20]), "huge"))
        graph.node.append(helper.make_node("ConstantOfShape", ["huge"], ["x"]))
    else:
        graph.initializer.append(numpy_helper.from_array(np.array([2**30] * 4), "huge"))
        graph.node.append(helper.make_node("Expand", [graph.node[0].output[0], "huge"], ["x"]))


CHANGES: tuple[tuple[Callable[[Path, random.Random], None], int], ...] = (
    (change_json, 4),
    (change_text, 2),
    (change_file, 1),
    (change_file_and_hash, 4),
    (change_model, 6),
)


# --- what may come of it --------------------------------------------------------------------------------------------


def expected(folder: Path, images: Floats, number: int) -> Answer:
    """The answer with policy `number` of the manifest, from the files themselves: masks over the whole batch."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    chosen = manifest["policies"][number]
    limits = [np.float32(t) for t in chosen["thresholds"]]
    values = {manifest["input"]["name"]: images}
    here = np.arange(len(images))
    parts: list[tuple[NDArray[Any], int, Floats, Floats]] = []
    for k, entry in enumerate(manifest["stages"]):
        data = (folder / entry["file"]).read_bytes()
        session = ort.InferenceSession(data, default_options(1), providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_outputs()]
        values |= dict(
            zip(names, session.run(names, {n.name: values[n.name] for n in session.get_inputs()}), strict=True)
        )
        gone = np.ones(len(here), bool) if k == len(limits) else values["confidence"] >= limits[k]
        parts.append((here[gone], k + 1, values["output"][gone], values["confidence"][gone]))
        here, values = here[~gone], {name: value[~gone] for name, value in values.items()}
        if not len(here):
            break
    order = np.argsort(np.concatenate([part[0] for part in parts]), kind="stable")
    stage = np.concatenate([np.full(len(part[0]), part[1]) for part in parts])
    return Answer(
        np.concatenate([p[2] for p in parts])[order], stage[order], np.concatenate([p[3] for p in parts])[order]
    )


def outcome(folder: Path, images: Floats) -> str:
    """`refused` with the sentence, or `answered`; anything else is raised."""
    try:
        with Dispatcher(folder) as run:
            policies = run.manifest.policies
            found = [run(images, policy=chosen) for chosen in policies]
            found.append(run(images[:0]))
            straight = run(images, exits=False)
    except DispatcherError as error:
        if not str(error).isprintable():
            raise AssertionError(f"not one clean sentence: {error!r}") from error
        return f"refused: {error}"
    assert found[-1].output.shape[0] == 0
    for number, answer in enumerate(found[:-1]):
        reference = expected(folder, images, number)
        for name in ("output", "stage", "confidence"):
            np.testing.assert_array_equal(getattr(answer, name), getattr(reference, name))
    assert (straight.stage == len(run.manifest.stages)).all()
    return "answered"


def base_of(number: int) -> int:
    """Which of the sound exports a case changes."""
    return number % 3


def make_case(folder: Path, number: int) -> Floats:
    """Write the case of this number and return images for it."""
    random_ = random.Random(number)
    images = write_base(folder, base_of(number))
    changes, weights = zip(*CHANGES, strict=True)
    for _ in range(20):
        try:
            random_.choices(changes, weights)[0](folder, random_)
        except (ValueError, TypeError, OverflowError, IndexError, AttributeError, DecodeError):
            continue  # the change itself does not work here; try another
        break
    return images


def main() -> None:
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for number in range(first, first + count):
        case = folder / f"case{number}"
        case.mkdir()
        images = make_case(case, number)
        sys.stdout.write(f"{number} ")
        sys.stdout.flush()
        sys.stdout.write(f"{outcome(case, images)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
