"""The effect of an exported folder on each class: accuracy, agreement, and classes that a stage loses.

Letters: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from s2d_convert.base.text import listed
from s2d_convert.calibration.chance import FEW_OF_CLASS, LOST, ONE_SIDED, Classes, unequal
from s2d_convert.data.images import Images

MOST_ROWS = 30


@dataclass(frozen=True)
class ClassResult:
    """One class: its number of images, and the accuracy and agreement on them.

    An image belongs to the class of its label, or without labels to that of the static model's answer.
    """

    name: str
    images: int
    correct_static: float | None
    correct_dynamic: float | None
    agreement: float


@dataclass(frozen=True)
class Answers:
    """Answers on the same images, all [B]. `truth`: the labels, or without labels the static model's answers.

    `exits`: the number of the stage that answered, from 1.
    """

    truth: Classes
    static: Classes
    dynamic: Classes
    exits: Classes
    classes: int
    labelled: bool

    def balanced(self, answers: Classes) -> float:
        """Return the balanced accuracy: the mean of the accuracies of all classes that have images."""
        counts = np.bincount(self.truth, minlength=self.classes)
        hits = np.bincount(self.truth[answers == self.truth], minlength=self.classes)
        return float((hits[counts > 0] / counts[counts > 0]).mean())

    @property
    def unequal(self) -> bool:
        """Whether the sizes of the classes differ by more than chance."""
        return unequal(np.bincount(self.truth, minlength=self.classes))


def class_results(answers: Answers, names: Sequence[str] | None) -> tuple[ClassResult, ...]:
    """Return the classes that have images, those with the largest loss first; at most MOST_ROWS."""
    rows = []
    for k in np.unique(answers.truth):
        in_class = answers.truth == k
        static, dynamic = answers.static[in_class], answers.dynamic[in_class]
        accuracies = [float((predicted == k).mean()) if answers.labelled else None for predicted in (static, dynamic)]
        name = names[k] if names else str(k)
        rows.append(
            ClassResult(name, int(in_class.sum()), accuracies[0], accuracies[1], float((static == dynamic).mean()))
        )
    return tuple(sorted(rows, key=_gain)[:MOST_ROWS])


def _gain(row: ClassResult) -> tuple[float, float]:
    loss = (
        0.0 if row.correct_static is None or row.correct_dynamic is None else row.correct_dynamic - row.correct_static
    )
    return loss, row.agreement


def lost_classes(answers: Answers, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return warnings about classes, as sentences.

    There is one for every stage that gets a class wrong which the static model gets right on the same images, one for
    classes that the static model gets wrong itself, and one where nearly all images belong to one class.
    """
    texts = []
    counts = np.bincount(answers.truth, minlength=answers.classes)
    largest = int(counts.argmax())
    share = counts[largest] / max(1, len(answers.truth))
    if answers.classes > 1 and share >= ONE_SIDED:
        texts.append(
            f"{100 * share:.1f} % of the images are of class '{names[largest] if names else largest}': the numbers say little "
            "of the other classes; give more images of them"
        )
    for stage in np.unique(answers.exits):
        lost = list(_lost_at(answers, answers.exits == stage))
        if lost:
            named = listed([names[k] if names else str(k) for k, _, _ in lost])
            images, known = sum(n for _, n, _ in lost), sum(hits for _, _, hits in lost)
            texts.append(
                f"stage {stage} loses class {named}: of the {images} such images that leave there, the static model answers "
                f"{known} rightly, the stage hardly any"
            )
    if answers.labelled and (unknown := list(_unknown(answers))):
        named = listed([names[k] if names else str(k) for k in unknown])
        texts.append(f"the static model itself hardly answers an image of class {named} rightly")
    return tuple(texts)


def _lost_at(answers: Answers, leaving: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Iterator[tuple[int, int, int]]:
    """Yield (class, images, right answers of the static model) for the classes that are lost among the images that leave at
    a stage. leaving: bool [B]."""
    for k in np.unique(answers.truth):
        in_class = leaving & (answers.truth == k)
        hits = int((answers.static[in_class] == k).sum())
        exit_hits = int((answers.dynamic[in_class] == k).sum())
        if hits >= FEW_OF_CLASS and exit_hits <= LOST * hits:
            yield int(k), int(in_class.sum()), hits


def _unknown(answers: Answers) -> Iterator[int]:
    for k in np.unique(answers.truth):
        in_class = answers.truth == k
        if in_class.sum() >= FEW_OF_CLASS and (answers.static[in_class] == k).mean() <= LOST:
            yield int(k)


def answers_on(images: Images, static: Classes, dynamic: Classes, exits: Classes, *, classes: int) -> Answers:
    """Return the answers with the labels as truth, or without labels with the static model's answers."""
    labelled = images.labels is not None
    truth = images.labels if images.labels is not None else static
    return Answers(truth, static, dynamic, exits, classes, labelled)
