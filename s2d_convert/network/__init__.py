"""The staged network in torch: one masked forward pass gives all exits."""

from s2d_convert.network.layers import Exit
from s2d_convert.network.masks import Masks
from s2d_convert.network.staged_net import StagedNet, feature_source, unsupported_nodes

__all__ = ["Exit", "Masks", "StagedNet", "feature_source", "unsupported_nodes"]
