"""How long and how to train, and the learning rate of every step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from s2d_convert.data.augment import Level

BATCH_BYTES, LEAST_BATCH = 1_500_000_000, 8  # of all values of a batch
STEP = 4.0  # forward and backward in torch, relative to onnxruntime's forward pass of as much work
TEACHER = 0.33  # of the images of a training are new to the teacher; the answers to the others are kept


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


def batch_size(image_bytes: int) -> int:
    """Return how many images a training step takes: as many as usual, or fewer where their values would not fit BATCH_BYTES.

    image_bytes: bytes of all values of a network for one image.
    """
    size = TrainSettings.batch_size
    while size > LEAST_BATCH and size * image_bytes > BATCH_BYTES:
        size //= 2
    return size


def step_seconds(images: int, image_seconds: float, share: float) -> float:
    """Return about how long a training step takes.

    image_seconds: of the static model in onnxruntime; share: the trained network's part of the static model's work.
    """
    return images * image_seconds * (TEACHER + STEP * share)


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
