"""From an ONNX file to a normalised graph, and the static model as the reference."""

from s2d_convert.frontend.graph import Graph, Node
from s2d_convert.frontend.load import graph_from_proto, load_graph, read_model
from s2d_convert.frontend.reference import StaticModel, to_logits

__all__ = ["Graph", "Node", "StaticModel", "graph_from_proto", "load_graph", "read_model", "to_logits"]
