"""Other names, another order, other words around the same graph."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import onnx
from onnx import helper

from graph_changes.base import Subject, UnfitError, all_names, all_nodes, change, set_nodes
from s2d_convert.frontend.proto import graphs

# What the tool itself, the stage files and people use as names.
TAKEN = (
    "output", "confidence", "inverse_temperature", "logits", "image", "input", "images", "x", "y", "stage", "stage1", "threshold",
    "temperature", "N", "batch", "s1", "t0", "w0", "weights", "head", "exit", "link", "tap", "count", "sizes", "graph",
)  # fmt: skip
# What it puts behind names.
SUFFIXES = (".s1", ".s2", ".float32", ".inner", ".copy", ".sizes", ".batch", ".target", ".relu", ".gemm", ".free1", ".free8",
            ".unpadded2", ".unsqueezed", ".positive", ".logarithm", ".probabilities", ".half", ".cast", "_1", "_")  # fmt: skip
ODD = (" ", "/", ":", ".", "..", "\\", "'", '"', "%s", "{0}", "<b>", "é", "图像", "\n", "\t", "#", "?", "*", "-", "0", "$",
       "--output")  # fmt: skip
# Of an image and an answer, as converters call them; and as no converter should.
PAIRS = (
    ("input.1", "495"), ("serving_default_x:0", "StatefulPartitionedCall:0"), ("data", "prob"), ("pixel_values", "logits"),
    ("input", "output"), ("actual_input_1", "output1"), ("x", "softmax_0.tmp_0"), ("output", "input"), ("confidence", "output"),
    ("image", "confidence"),
)  # fmt: skip
Rename = Callable[[Random, int, str], str]


def rename_tensors(subject: Subject, rename: Rename) -> None:
    """Give every tensor a new name, in branches too."""
    if subject.model.functions:
        raise UnfitError
    names = sorted(all_names(subject.graph) - {""})
    new: dict[str, str] = {"": ""}
    taken: set[str] = set()
    for number, name in enumerate(names):
        fresh = rename(subject.rng, number, name)
        while fresh in taken or not fresh:
            fresh += f"{number}"
        taken.add(fresh)
        new[name] = fresh
    for graph in graphs(subject.graph):
        for value in (*graph.input, *graph.output, *graph.initializer):
            value.name = new[value.name]
        del graph.value_info[:]
    for node in all_nodes(subject.graph):
        node.input[:] = [new[name] for name in node.input]
        node.output[:] = [new[name] for name in node.output]
    if subject.output is not None:
        subject.output = new[subject.output]


@change
def odd_tensor_names(s: Subject) -> None:
    rename_tensors(
        s, lambda rng, number, name: rng.choice((f"{rng.choice(ODD)}{name}", f"{rng.choice(ODD)}{number}", name))
    )


@change
def numbers_as_tensor_names(s: Subject) -> None:
    start = s.rng.choice((0, 1, 100))
    rename_tensors(s, lambda rng, number, name: str(start + number))


@change
def long_tensor_names(s: Subject) -> None:
    rename_tensors(s, lambda rng, number, name: f"model/{'block/' * 60}{name}:0")


@change
def tensor_names_that_are_taken(s: Subject) -> None:
    rename_tensors(s, lambda rng, number, name: rng.choice((*TAKEN, name)))


@change
def tensor_names_with_taken_suffixes(s: Subject) -> None:
    names = sorted(all_names(s.graph) - {""})
    rename_tensors(s, lambda rng, number, name: rng.choice((name, f"{rng.choice(names)}{rng.choice(SUFFIXES)}")))


@change
def tensor_names_by_case(s: Subject) -> None:
    letters = ["a", "A", "aA", "Aa", "AA", "aa"]
    rename_tensors(s, lambda rng, number, name: letters[number % 6] * (1 + number // 6))


@change
def image_and_answer_named_by_others(s: Subject) -> None:
    kind = s.rng.choice(PAIRS)
    image, answer = s.image.name, s.output or s.graph.output[0].name
    swap = {image: kind[0], answer: kind[1]}
    taken = all_names(s.graph) - {image, answer}
    if taken & set(kind):
        raise UnfitError
    rename_tensors(s, lambda rng, number, name: swap.get(name, name))


@change
def node_names(s: Subject) -> None:
    """None, those of tensors, odd ones. No two nodes may have one name; a node and a tensor may."""
    nodes, tensors = list(all_nodes(s.graph)), sorted(all_names(s.graph) - {""})
    s.rng.shuffle(tensors)
    kind = s.rng.choice(("none", "tensors", "odd", "numbers", "some", "outputs", "kinds"))
    for number, node in enumerate(nodes):
        node.name = {
            "none": "", "tensors": tensors[number] if number < len(tensors) else "", "odd": f"{s.rng.choice(ODD)}{number}",
            "numbers": str(number), "some": s.rng.choice(("", f"{node.op_type}_{number}")),
            "outputs": next((o for o in node.output if o), ""), "kinds": f"Conv_{len(nodes) - number}",
        }[kind]  # fmt: skip


@change
def node_order(s: Subject) -> None:
    """Any order: onnxruntime sorts."""
    nodes = list(s.graph.node)
    if s.rng.random() < 0.5:
        s.rng.shuffle(nodes)
    else:
        nodes.reverse()
    set_nodes(s.graph, nodes)


@change
def sorted_otherwise(s: Subject) -> None:
    """Another order that is valid."""
    waiting, ordered = list(s.graph.node), []
    pending = {o for n in waiting for o in n.output if o}
    while waiting:
        ready = [n for n in waiting if not pending & {r for m in all_nodes(onnx.GraphProto(node=[n])) for r in m.input}]
        if not ready:
            raise UnfitError
        chosen = s.rng.choice(ready)
        waiting.remove(chosen)
        ordered.append(chosen)
        pending.difference_update(chosen.output)
    set_nodes(s.graph, ordered)


@change
def graph_name(s: Subject) -> None:
    s.graph.name = s.rng.choice(("", "torch_jit", " ", "main graph/1", "图", s.graph.output[0].name))


@change
def words_around_the_graph(s: Subject) -> None:
    s.model.producer_name = s.rng.choice(("", "pytorch", "tf2onnx", "é"))
    s.model.doc_string = s.graph.doc_string = "text\n" * s.rng.randint(0, 50)
    s.model.domain = s.rng.choice(("", "org.example"))
    s.model.model_version = s.rng.choice((0, 7, -1))
    helper.set_model_props(s.model, {"classes": "a,b", "mean": "[0.485]", "": ""})
    for node in s.graph.node:
        node.doc_string = s.rng.choice(("", 'File "model.py", line 3'))


@change
def domains_spelled_out(s: Subject) -> None:
    """`ai.onnx` is another name of the default domain; other domains may be listed and unused."""
    if s.rng.random() < 0.5:
        s.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        s.model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    if s.model.functions:
        return
    if s.rng.random() < 0.5:
        for opset in s.model.opset_import:
            opset.domain = opset.domain or "ai.onnx"
    if s.rng.random() < 0.5:
        for node in all_nodes(s.graph):
            node.domain = node.domain or "ai.onnx"
