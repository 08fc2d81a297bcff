"""Joint training of all exits of a staged network.

Targets are the labels, if there are any, and the static model's logits (knowledge distillation, Hinton et al., 2015, arXiv
1503.02531). With hints, the features behind these logits are targets too. Muon trains hidden weights, SGD all others.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2d_convert.base.arrays import Array, slices
from s2d_convert.data.augment import Level
from s2d_convert.data.images import Images
from s2d_convert.errors import DataError
from s2d_convert.network.masks import Masks
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.training.distillation import Hints, Lesson
from s2d_convert.training.muon import Muon

logger = logging.getLogger(__name__)

EVAL_BATCH = 250
CHECKPOINT_SECONDS = 30.0
MOMENTUM = 0.9
Say = Callable[[Array], Lesson]
Choose = Callable[[int, float], Sequence[Masks]]


@dataclass(frozen=True)
class TrainSettings:
    """How long and how to train.

    `muon_rate` is the learning rate of Muon, `learning_rate` that of SGD. `distill` is the weight of the static model's
    logits in the loss (1 without labels), `hint` that of its features. With `mixed`, products are computed in bfloat16;
    weights, the norms' statistics and losses stay in float32.
    """

    steps: int
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


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device has bfloat16 products in hardware; without them mixed precision is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@dataclass(frozen=True)
class Progress:
    """The progress of a training: steps done, all steps, the smoothed loss, and the estimated seconds left."""

    step: int
    steps: int
    loss: float
    seconds_left: float


def train(
    net: StagedNet,
    teacher: Say,
    images: Images,
    choose: Choose,
    *,
    settings: TrainSettings,
    seed: int,
    hints: Hints | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> None:
    """Train `net` in place. `choose(step, progress)` returns the plans (as masks) of a step; progress is in 0..1.

    hints: maps to the teacher's features, trained together with the exits.

    checkpoint: a file to which the state is saved every CHECKPOINT_SECONDS. If it exists, training resumes from it; the
    same seed then gives the same batches as an uninterrupted run.

    Raises DataError when the loss is not finite.
    """
    device = next(net.parameters()).device
    trained = nn.ModuleDict({"net": net} if hints is None else {"net": net, "hints": hints})
    rates = _optimizers(trained, net.hidden_weights(), settings)
    first = _restore(trained, rates, checkpoint)
    loss_average, started, saved = math.nan, time.monotonic(), time.monotonic()
    for step, (batch, lesson, labels) in _batches(images, teacher, settings, seed, first):
        for optimizer, rate in rates.items():
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule(step / settings.steps, settings.warmup)
        net.train()
        plans = choose(step, step / settings.steps)
        data = torch.from_numpy(batch).to(device)
        truth = None if labels is None else torch.from_numpy(labels).to(device)
        soft = lesson.logits.to(device)
        features = None if lesson.features is None else lesson.features.to(device)
        trained.zero_grad(set_to_none=True)
        total = 0.0
        for masks in plans:
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.mixed):
                exits = net.exits(data, masks)
            found = [one.logits.float() for one in exits]
            loss = exit_loss(found, soft, truth, settings, several=net.graph.task.several)
            if hints is not None and features is not None:
                loss = loss + settings.hint * hints.loss(masks.taps, exits, features)
            loss = loss / len(plans)
            loss.backward()
            total += float(loss.detach())
        if not math.isfinite(total):
            raise DataError(
                f"training: the loss is {total} at step {step + 1} of {settings.steps}; look at the images' range and at "
                "--preprocess, and whether the model's answers on them are finite"
            )
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 5.0)
        for optimizer in rates:
            optimizer.step()
        loss_average = total if math.isnan(loss_average) else 0.95 * loss_average + 0.05 * total
        if on_step is not None:
            elapsed = time.monotonic() - started
            seconds_left = elapsed / (step + 1 - first) * (settings.steps - step - 1)
            on_step(Progress(step + 1, settings.steps, loss_average, seconds_left))
        if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
            states = [optimizer.state_dict() for optimizer in rates]
            save_state(checkpoint, {"step": step + 1, "net": trained.state_dict(), "optimizers": states})
            saved = time.monotonic()
    net.eval()


def _optimizers(
    trained: nn.Module, hidden: Sequence[Tensor], settings: TrainSettings
) -> dict[torch.optim.Optimizer, float]:
    """Return SGD, and Muon if there are hidden weights, each with its learning rate.

    SGD decays weights, but not norms and biases. Muon decays nothing: its steps do not shrink with the gradient.
    """
    hidden_ids = {id(weight) for weight in hidden}
    others = [p for p in trained.parameters() if id(p) not in hidden_ids]
    matrices = [p for p in others if sum(n > 1 for n in p.shape) > 1]
    vectors = [p for p in others if sum(n > 1 for n in p.shape) <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    sgd = torch.optim.SGD(groups, lr=1.0, momentum=MOMENTUM, nesterov=True)
    rates: dict[torch.optim.Optimizer, float] = {sgd: settings.learning_rate}
    if hidden:
        rates[Muon(hidden, momentum=MOMENTUM)] = settings.muon_rate
    return rates


def schedule(progress: float, warmup: float) -> float:
    """Return the factor of the learning rate: a linear warm-up, then a cosine that falls to zero. progress: 0 to 1."""
    if progress < warmup:
        return (progress + 1e-3) / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def exit_loss(
    exits: Sequence[Tensor], soft: Tensor, labels: Tensor | None, settings: TrainSettings, *, several: bool = False
) -> Tensor:
    """Return the mean over exits of cross entropy with the labels and divergence from the static model's softened answer, both
    summed over the labels where an image has `several`.

    exits: logits [B, K] each; soft: the static model's; labels: classes [B], or 0 and 1 [B, K].
    """
    divergence, entropy = (_label_divergence, _label_entropy) if several else (_class_divergence, F.cross_entropy)
    t = settings.temperature
    distill = 1.0 if labels is None else settings.distill
    total = soft.new_zeros(())
    for logits in exits:
        total = total + distill * divergence(logits / t, soft / t) * t * t
        if labels is not None:
            total = total + (1 - distill) * entropy(logits, labels)
    return total / len(exits)


def _class_divergence(logits: Tensor, soft: Tensor) -> Tensor:
    target = F.log_softmax(soft, dim=1)
    return F.kl_div(F.log_softmax(logits, dim=1), target, log_target=True, reduction="batchmean")


def _label_divergence(logits: Tensor, soft: Tensor) -> Tensor:
    """The divergence of independent labels: that of each one, in sum."""
    return _label_entropy(logits, soft.sigmoid()) - _label_entropy(soft, soft.sigmoid())


def _label_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum") / len(logits)


def _batches(
    images: Images, teacher: Say, settings: TrainSettings, seed: int, first: int
) -> Iterator[tuple[int, tuple[Array, Lesson, Array | None]]]:
    """Yield (step, (model input, lesson, labels)) from step `first` on. A thread prepares each batch one step ahead."""
    size = min(settings.batch_size, len(images))
    per_epoch = max(1, len(images) // size)

    def make(step: int) -> tuple[Array, Lesson, Array | None]:
        epoch, number = divmod(step, per_epoch)
        order = np.random.default_rng([seed, 1, epoch]).permutation(len(images))
        indices = order[number * size : (number + 1) * size]
        rng = np.random.default_rng([seed, 2, step])
        batch = np.ascontiguousarray(images.augmented(indices, rng, level=settings.level, flip=settings.flip))
        return batch, teacher(batch), None if images.labels is None else images.labels[indices]

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make, first) if first < settings.steps else None
        for step in range(first, settings.steps):
            assert ahead is not None, "every batch is submitted one step ahead"
            ready = ahead.result()
            ahead = pool.submit(make, step + 1) if step + 1 < settings.steps else None
            yield step, ready


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a torch state completely or not at all."""
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    partial.replace(path)


def _restore(net: nn.Module, optimizers: Iterable[torch.optim.Optimizer], checkpoint: Path | None) -> int:
    if checkpoint is None or not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    net.load_state_dict(state["net"])
    for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(optimizer_state)
    return int(state["step"])


@torch.no_grad()
def exit_logits(net: StagedNet, images: Images, masks: Masks, *, batch_statistics: bool = False) -> Array:
    """Return the logits of all exits, float32 [S, B, K], on images without augmentation.

    batch_statistics: let the norms use the statistics of each batch. This judges a plan fairly that was not trained by
    itself, without measuring its statistics first.
    """
    device = next(net.parameters()).device
    net.eval()
    norms = net.all_norms()
    for norm in norms:
        norm.training = batch_statistics
        norm.momentum = 0.0 if batch_statistics else norm.momentum
    rows = []
    for part in slices(len(images), EVAL_BATCH):
        data = torch.from_numpy(np.ascontiguousarray(images.batch(part))).to(device)
        rows.append(np.stack([logits.float().cpu().numpy() for logits in net(data, masks)]))
    net.reset_norms()
    return np.concatenate(rows, axis=1)


def input_batches(images: Images, device: torch.device, *, count: int, size: int = EVAL_BATCH) -> Iterator[Tensor]:
    """Yield the first `count` images as batches of model input on `device`, for measuring statistics."""
    for part in slices(min(count, len(images)), size):
        yield torch.from_numpy(np.ascontiguousarray(images.batch(part))).to(device)
