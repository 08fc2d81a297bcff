"""Changes of ONNX files at random that stay valid: the same network as somebody else's tools would write it.

`CHANGES` leave the answers as they are, `ENDS` make another network of it. Adding one is one function in a module here.
"""

from __future__ import annotations

from graph_changes import ends, forms, heads, names, spare_nodes, weights
from graph_changes.base import CHANGES, ENDS, Change, Subject, UnfitError

__all__ = ["CHANGES", "ENDS", "Change", "Subject", "UnfitError"]

# Importing these modules fills the tables.
MODULES = (ends, forms, heads, names, spare_nodes, weights)
