"""From a plan to one ONNX model per stage."""

from s2d_convert.slicing.chain import Chain, build_stages, chains_of, read_chain, stage_logits
from s2d_convert.slicing.stage_graph import StageModel

__all__ = ["Chain", "StageModel", "build_stages", "chains_of", "read_chain", "stage_logits"]
