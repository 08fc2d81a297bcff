"""Joint training of all exits of a staged network.

Targets are the labels, if there are any, and the static model's logits. With hints, the features behind these logits are
targets too. Muon trains hidden weights, SGD all others.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from s2d_convert.base.arrays import Array
from s2d_convert.base.files import write_bytes
from s2d_convert.data.images import Images
from s2d_convert.errors import DataError
from s2d_convert.network.masks import Masks
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.training.distillation import Hints
from s2d_convert.training.lessons import EVAL_BATCH, Batch, Lessons, input_batches
from s2d_convert.training.loss import exit_loss
from s2d_convert.training.muon import Muon
from s2d_convert.training.settings import Progress, TrainSettings, schedule

CHECKPOINT_SECONDS = 30.0
MOMENTUM = 0.9
LARGEST_GRADIENT = 5.0  # the norm of all gradients together is cut to this


@dataclass(frozen=True)
class Learner:
    """A network, the masks of the plan that it is trained under, and maps to the teacher's features that learn with it."""

    net: StagedNet
    masks: Masks
    hints: Hints | None = None

    def modules(self) -> nn.ModuleDict:
        """Return all that is trained, as one module."""
        return nn.ModuleDict({"net": self.net} if self.hints is None else {"net": self.net, "hints": self.hints})

    def loss(self, batch: Batch, settings: TrainSettings) -> Tensor:
        """Return the loss of all exits on a batch."""
        device = next(self.net.parameters()).device
        images = torch.from_numpy(batch.images).to(device)
        labels = None if batch.labels is None else torch.from_numpy(batch.labels).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.mixed):
            exits = self.net.exits(images, self.masks)
        logits, target = [exit_.logits.float() for exit_ in exits], batch.lesson.logits.to(device)
        loss = exit_loss(logits, target, labels, settings, several=self.net.graph.task.several)
        if self.hints is None or batch.lesson.features is None:
            return loss
        return loss + settings.hint * self.hints.loss(self.masks.taps, exits, batch.lesson.features.to(device))


def train(
    learner: Learner,
    lessons: Lessons,
    *,
    settings: TrainSettings,
    checkpoint: Path | None = None,
    on_step: Callable[[Progress], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Train in place, until the steps or seconds of the settings are spent, or something has `stopped` it.

    checkpoint: a file to which the state is saved every CHECKPOINT_SECONDS. If it exists, training resumes from it; the
    same seed then gives the same batches as an uninterrupted run.

    Raises DataError when the loss is not finite.
    """
    state = _State(learner, settings)
    first = 0 if checkpoint is None or not checkpoint.exists() else state.restore(checkpoint)
    progress, started, saved = Progress(first, settings.steps, math.nan, math.inf), time.monotonic(), time.monotonic()
    share_before = first / settings.steps
    learner.net.train()
    for batch in lessons.batches(settings, first=first):
        # The share of the training that is done, by steps or by the clock, whichever is further.
        by_clock = share_before + (1 - share_before) * (time.monotonic() - started) / settings.seconds
        share = max(progress.step / settings.steps, by_clock)
        if share >= 1 or stopped():
            break
        loss = state.step(batch, schedule(share, settings.warmup))
        if not math.isfinite(loss):
            raise DataError(
                f"training: the loss is {loss} at step {progress.step + 1} of {settings.steps}; look at the images' range "
                "and at --preprocess, and whether the model's answers on them are finite"
            )
        progress = _next(progress, loss, since=time.monotonic() - started, first=first, most=settings.seconds)
        if on_step is not None:
            on_step(progress)
        if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
            save_state(checkpoint, {"step": progress.step, **state.state()})
            saved = time.monotonic()
    learner.net.eval()


def _next(before: Progress, loss: float, *, since: float, first: int, most: float) -> Progress:
    """Return the progress after one more step. since: the seconds that the steps from `first` on have taken, `most` in all."""
    step = before.step + 1
    smoothed = loss if math.isnan(before.loss) else 0.95 * before.loss + 0.05 * loss
    left = min(since / (step - first) * (before.steps - step), max(0.0, most - since))
    return replace(before, step=step, loss=smoothed, seconds_left=left)


class _State:
    """What changes while a learner is trained: its parameters, and the optimizers with their momentum."""

    def __init__(self, learner: Learner, settings: TrainSettings) -> None:
        self.learner, self.settings, self.modules = learner, settings, learner.modules()
        self.rates = _optimizers(self.modules, learner.net.hidden_weights(), settings)

    def step(self, batch: Batch, factor: float) -> float:
        """Take a step at `factor` times the learning rates and return the loss before it; take none if that is not finite."""
        self.modules.zero_grad(set_to_none=True)
        loss = self.learner.loss(batch, self.settings)
        loss.backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            return value
        torch.nn.utils.clip_grad_norm_(self.modules.parameters(), LARGEST_GRADIENT)
        for optimizer, rate in self.rates.items():
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
        return value

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs."""
        return {"net": self.modules.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in self.rates]}

    def restore(self, checkpoint: Path) -> int:
        """Load the state of a checkpoint and return how many steps it has seen."""
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        self.modules.load_state_dict(saved["net"])
        for optimizer, state in zip(self.rates, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        return int(saved["step"])


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


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a torch state completely or not at all."""
    content = io.BytesIO()  # torch does not say why it could not write a file
    torch.save(state, content)
    write_bytes(path, content.getvalue())


@torch.no_grad()
def exit_logits(net: StagedNet, images: Images, masks: Masks) -> Array:
    """Return the logits of all exits, float32 [S, B, K], on images without augmentation."""
    net.eval()
    batches = input_batches(images, next(net.parameters()).device, batch=net.graph.batch_of(EVAL_BATCH))
    rows = [np.stack([logits.float().cpu().numpy() for logits in net(batch, masks)]) for batch in batches]
    return np.concatenate(rows, axis=1)
