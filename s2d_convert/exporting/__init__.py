"""From stage models to an exported folder, and from a folder to other formats.

This package's own names only read a folder. `folder` and `renewal` write one. The other formats are modules of their own,
so that their libraries (onnxruntime's quantiser among them) are loaded only where they are needed.
"""

from s2d_convert.exporting.provenance import Origin, model_sha256, recorded_preprocess

__all__ = ["Origin", "model_sha256", "recorded_preprocess"]
