"""From stage models to an exported folder, and what else can be made of one.

The door has what reads a folder. What writes one is in `folder` and `renewal`, and the other formats in modules of their
own, whose libraries (onnxruntime's quantiser among them) are loaded only by who asks for them.
"""

from s2d_convert.exporting.provenance import Origin, model_sha256, recorded_preprocess

__all__ = ["Origin", "model_sha256", "recorded_preprocess"]
