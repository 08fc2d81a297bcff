"""The batches of a training: images, what the teacher answers to them, and their labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from s2d_convert.base.arrays import Array, slices
from s2d_convert.data.images import Images
from s2d_convert.training.distillation import Lesson
from s2d_convert.training.settings import TrainSettings

EVAL_BATCH = 250


@dataclass(frozen=True)
class Batch:
    """One batch: model input float32 [B, ...], the teacher's targets, and labels int64 [B] (0 and 1 [B, K] where an image
    has several), None without."""

    images: Array
    lesson: Lesson
    labels: Array | None


@dataclass(frozen=True)
class Lessons:
    """Training images with a teacher. `say` returns its targets for model input [B, ...]; equal seeds give equal batches."""

    images: Images
    say: Callable[[Array], Lesson]
    seed: int

    def batches(self, settings: TrainSettings, *, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of the steps from `first` on, augmented. A thread prepares each one a step ahead."""
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self._batch, settings, first) if first < settings.steps else None
            for step in range(first, settings.steps):
                assert ahead is not None, "every batch is submitted one step ahead"
                ready = ahead.result()
                ahead = pool.submit(self._batch, settings, step + 1) if step + 1 < settings.steps else None
                yield ready

    def _batch(self, settings: TrainSettings, step: int) -> Batch:
        images = self.images
        size = min(settings.batch_size, len(images))
        epoch, number = divmod(step, max(1, len(images) // size))
        order = np.random.default_rng([self.seed, 1, epoch]).permutation(len(images))
        indices = order[number * size : (number + 1) * size]
        rng = np.random.default_rng([self.seed, 2, step])
        batch = np.ascontiguousarray(images.augmented(indices, rng, level=settings.level, flip=settings.flip))
        return Batch(batch, self.say(batch), None if images.labels is None else images.labels[indices])


def input_batches(
    images: Images, device: torch.device, *, count: int | None = None, batch: int = EVAL_BATCH
) -> Iterator[Tensor]:
    """Yield the first `count` images (None: all) as batches of model input on `device`, without augmentation."""
    for part in slices(len(images) if count is None else min(count, len(images)), batch):
        yield torch.from_numpy(np.ascontiguousarray(images.batch(part))).to(device)
