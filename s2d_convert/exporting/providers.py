"""What is known of the single file on execution providers of onnxruntime: it saves time only where an If is lazy."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from s2d_runtime import Manifest

CPU = "CPUExecutionProvider"
# What is wrong with the single file on a provider; the table of docs/deploy.md#providers has the sources.
TROUBLES: Mapping[str, str] = MappingProxyType(
    {
        "QNNExecutionProvider": "QNN computes both branches of an If, so every image pays for all stages",
        "OpenVINOExecutionProvider": (
            "OpenVINO's If keeps an earlier decision, so images get answers of the wrong stage (seen with "
            "onnxruntime-openvino 1.24.1)"
        ),
        "CoreMLExecutionProvider": (
            "CoreML leaves what is inside an If to the CPU unless it is told to enter it, so only stage 1 is accelerated"
        ),
    }
)
INSTEAD = "the folder with its dispatcher works there"
UNKNOWN = "whether its If is lazy was not measured; compare the time of both exits with the folder's"


def recorded_provider(manifest: Manifest) -> str:
    """Return the provider that a folder was converted for, the CPU's where none is recorded."""
    options: Any = manifest.provenance.get("options")
    provider = options.get("provider") if isinstance(options, Mapping) else None
    return provider if isinstance(provider, str) else CPU


def caution(provider: str, *, differs: bool = False) -> str:
    """Return a warning about the single file on a provider, '' for the CPU's. differs: it was seen to answer otherwise there."""
    if provider == CPU:
        return ""
    if differs:
        return f"--single on {provider}: it answers otherwise than the stages there; {INSTEAD}"
    trouble = TROUBLES.get(provider)
    return f"--single on {provider}: {UNKNOWN if trouble is None else f'{trouble}; {INSTEAD}'}"
