"""The batches of a training: images, what the teacher answers to them, and their labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from s2d_convert.base.arrays import Array, slices
from s2d_convert.data.images import Images
from s2d_convert.training.distillation import Lesson
from s2d_convert.training.settings import TrainSettings

EVAL_BATCH = 250
MOST_VIEWS, LEAST_VIEWS = 32, 8  # of an image, where the teacher's answers are kept; fewer would be learnt by heart
KEPT_BYTES = 2**28  # of the teacher's answers
REPEATS = 3  # epochs with the same view, before the next one


@dataclass(frozen=True)
class Batch:
    """One batch: model input float32 [B, ...], the teacher's targets, and labels int64 [B] (0 and 1 [B, K] where an image
    has several), None without."""

    images: Array
    lesson: Lesson
    labels: Array | None


def views_to_keep(images: int, answer_bytes: int) -> int | None:
    """Return in how many ways each of so many images is shown, so that all answers fit KEPT_BYTES; None where they do not."""
    views = KEPT_BYTES // max(1, images * answer_bytes)
    return min(MOST_VIEWS, views) if views >= LEAST_VIEWS else None


@dataclass(frozen=True, eq=False)
class Lessons:
    """Training images with a teacher. `say` returns its targets for model input [B, ...]; equal seeds give equal batches.

    views: in how many ways an image is shown; None: in another one in every epoch. With views, REPEATS epochs have the same
    batches in another order each, and the teacher, which takes as long as the training of a small network, is asked once for
    each batch, in all trainings from these lessons.
    """

    images: Images
    say: Callable[[Array], Lesson]
    seed: int
    views: int | None = None

    _said: dict[tuple[object, ...], Lesson] = field(default_factory=dict, repr=False)

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
        count = max(1, len(images) // size)
        epoch, place = divmod(step, count)
        view = epoch if self.views is None else epoch // REPEATS % self.views
        number = int(np.random.default_rng([self.seed, 3, epoch]).permutation(count)[place])
        order = np.random.default_rng([self.seed, 1, view]).permutation(len(images))
        indices = order[number * size : (number + 1) * size]
        rng = np.random.default_rng([self.seed, 2, view, number])
        batch = np.ascontiguousarray(images.augmented(indices, rng, level=settings.level, flip=settings.flip))
        lesson = self._lesson((view, number, size, settings.level, settings.flip), batch)
        return Batch(batch, lesson, None if images.labels is None else images.labels[indices])

    def _lesson(self, key: tuple[object, ...], batch: Array) -> Lesson:
        """Return the teacher's targets for a batch, which is always the same one under this key."""
        if self.views is None:
            return self.say(batch)
        if key not in self._said:
            self._said[key] = self.say(batch)
        return self._said[key]


def input_batches(
    images: Images, device: torch.device, *, count: int | None = None, batch: int = EVAL_BATCH
) -> Iterator[Tensor]:
    """Yield the first `count` images (None: all) as batches of model input on `device`, without augmentation."""
    for part in slices(len(images) if count is None else min(count, len(images)), batch):
        yield torch.from_numpy(np.ascontiguousarray(images.batch(part))).to(device)
