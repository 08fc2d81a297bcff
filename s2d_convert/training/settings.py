"""How long and how to train, and the learning rate of every step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from s2d_convert.data.augment import Level


@dataclass(frozen=True)
class TrainSettings:
    """How long and how to train: `steps` at most, and `seconds` at most.

    `muon_rate` is the learning rate of Muon, `learning_rate` that of SGD. `distill` is the weight of the static model's
    logits in the loss (1 without labels), `hint` that of its features. With `mixed`, products are computed in bfloat16;
    weights, the norms' statistics and losses stay in float32.
    """

    steps: int
    seconds: float = math.inf
    batch_size: int = 128
    learning_rate: float = 0.03
    muon_rate: float = 0.005
    weight_decay: float = 1e-4
    warmup: float = 0.05
    distill: float = 0.7
    temperature: float = 3.0
    hint: float = 5.0
    level: Level = "light"
    flip: bool = True
    mixed: bool = False


@dataclass(frozen=True)
class Progress:
    """The progress of a training: steps done, all steps, the smoothed loss, and the estimated seconds left."""

    step: int
    steps: int
    loss: float
    seconds_left: float


def schedule(progress: float, warmup: float) -> float:
    """Return the factor of the learning rate: a linear warm-up, then a cosine that falls to zero. progress: 0 to 1."""
    if progress < warmup:
        return (progress + 1e-3) / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device has bfloat16 products in hardware; without them mixed precision is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
