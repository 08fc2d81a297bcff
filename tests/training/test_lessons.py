"""The batches of a training: every image once in an epoch, equal seeds the same, and the teacher asked once for what recurs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from s2d_convert.base.arrays import Array
from s2d_convert.data.images import Images
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.training.distillation import Lesson
from s2d_convert.training.lessons import KEPT_BYTES, LEAST_VIEWS, MOST_VIEWS, REPEATS, Batch, Lessons, views_to_keep
from s2d_convert.training.settings import TrainSettings

IMAGES, BATCH = 48, 16
EPOCH = IMAGES // BATCH


class Teacher:
    """A teacher that says the sum of each image, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, images: Array) -> Lesson:
        self.asked += 1
        return Lesson(torch.from_numpy(images.reshape(len(images), -1).sum(axis=1, keepdims=True)))


def numbered() -> Images:
    """Images of noise whose label is their number."""
    pixels = np.random.default_rng(0).normal(size=(IMAGES, 3, 8, 8)).astype(np.float32)
    preprocess = make_preprocess(size=(8, 8), channels=3)
    return Images(pixels, preprocess, np.arange(IMAGES), np.arange(IMAGES), "labelled")


def epochs(lessons: Lessons, count: int, *, first: int = 0) -> list[list[Batch]]:
    """The batches of so many epochs, by epoch."""
    settings = TrainSettings(steps=count * EPOCH, batch_size=BATCH)
    batches = lessons.batches(settings, first=first * EPOCH)
    return [list(itertools.islice(batches, EPOCH)) for _ in range(count - first)]


def contents(epoch: list[Batch]) -> set[bytes]:
    """The batches of an epoch, whatever their order."""
    return {batch.images.tobytes() for batch in epoch}


@pytest.mark.parametrize("views", [None, 1, 2])
def test_an_epoch_has_every_image_once_with_its_label_and_what_the_teacher_says(views: int | None) -> None:
    teacher = Teacher()
    for epoch in epochs(Lessons(numbered(), teacher, 3, views), 5):
        labels = np.concatenate([batch.labels for batch in epoch if batch.labels is not None])
        assert sorted(labels) == list(range(IMAGES))
        assert all(torch.equal(batch.lesson.logits, Teacher()(batch.images).logits) for batch in epoch)


def test_views_come_again_in_another_order_and_the_teacher_is_asked_once_for_each() -> None:
    teacher = Teacher()
    seen = epochs(Lessons(numbered(), teacher, 3, 2), 4 * REPEATS)
    assert teacher.asked == 2 * EPOCH
    first, second, *again = [seen[r * REPEATS : (r + 1) * REPEATS] for r in range(4)]
    for epoch in (*first, *again[0]):
        assert contents(epoch) == contents(first[0])
    for epoch in (*second, *again[1]):
        assert contents(epoch) == contents(second[0])
    assert contents(first[0]).isdisjoint(contents(second[0]))
    orders = {tuple(batch.images.tobytes() for batch in epoch) for epoch in (*first, *again[0])}
    assert len(orders) > 2


def test_without_views_nothing_comes_again() -> None:
    teacher = Teacher()
    seen = epochs(Lessons(numbered(), teacher, 3), 6)
    assert teacher.asked == 6 * EPOCH
    assert len(set.union(*map(contents, seen))) == 6 * EPOCH


def test_trainings_from_the_same_lessons_share_what_the_teacher_said() -> None:
    teacher = Teacher()
    lessons = Lessons(numbered(), teacher, 3, 4)
    first, second = epochs(lessons, 4 * REPEATS), epochs(lessons, 8 * REPEATS)
    assert teacher.asked == 4 * EPOCH
    assert [contents(epoch) for epoch in first] == [contents(epoch) for epoch in second[: len(first)]]


def test_other_batches_are_asked_for_anew() -> None:
    teacher = Teacher()
    lessons = Lessons(numbered(), teacher, 3, 1)
    for settings in (
        TrainSettings(3, batch_size=16),
        TrainSettings(6, batch_size=8),
        TrainSettings(3, batch_size=16, level="none"),
    ):
        for batch in lessons.batches(settings):
            assert torch.equal(batch.lesson.logits, Teacher()(batch.images).logits)
    assert teacher.asked == 3 + 6 + 3


@pytest.mark.parametrize("views", [None, 2])
def test_lessons_go_on_from_any_step_as_without_a_break(views: int | None) -> None:
    whole, rest = (epochs(Lessons(numbered(), Teacher(), 5, views), 6, first=first) for first in (0, 4))
    assert [[b.images.tobytes() for b in e] for e in whole[4:]] == [[b.images.tobytes() for b in e] for e in rest]


def test_views_are_as_many_as_fit_but_none_where_they_were_few() -> None:
    assert views_to_keep(1000, 100) == MOST_VIEWS
    fits = KEPT_BYTES // LEAST_VIEWS
    assert views_to_keep(fits // 1000, 1000) == LEAST_VIEWS
    assert views_to_keep(fits // 1000 + 1, 1000) is None
