"""Images with the static model's answers, on which stages are judged. Letters: S stages, B rows (images), K classes or labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s2d_convert.base.arrays import Array
from s2d_convert.calibration.task import Task
from s2d_convert.data.images import Images


@dataclass(frozen=True, eq=False)
class Answered:
    """Images, the static model's logits [B, K] on them, and their right classes: the labels, or its answers where there are
    none."""

    images: Images
    logits: Array
    right_classes: Array

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: slice) -> Answered:
        """Return these rows."""
        return Answered(self.images.take(rows), self.logits[rows], self.right_classes[rows])

    def static_right(self, task: Task) -> NDArray[np.bool_]:
        """Return on which images the static model is right, bool [B]."""
        return self.counted(task, self.logits)

    def counted(self, task: Task, logits: Array) -> NDArray[np.bool_]:
        """Return on which images stages with these logits [..., B, K] are right, bool [..., B]."""
        return task.agree(task.answers(logits), self.right_classes)

    def expected(self, task: Task, logits: Array) -> Array:
        """Return how often such stages can be expected to be right on each image, [S, B]; without labels, whether they are."""
        if self.told_logits is None:
            return self.counted(task, logits)
        return task.expected_right(logits, self.told_logits, self.right_classes)

    @property
    def told_logits(self) -> Array | None:
        """The static model's logits where they say more than the right classes do: beside labels of the user's own."""
        return self.logits if self.images.kind == "labelled" else None
