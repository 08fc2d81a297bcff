"""What an exported folder does to each class: agreement and loss where classes are unequal, and classes that a stage loses.

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
    """One class: how many images have it as their label (without labels: as the static model's answer), which share of them
    is answered rightly, and which share as the static model does."""

    name: str
    images: int
    correct_static: float | None
    correct_dynamic: float | None
    agreement: float


@dataclass(frozen=True)
class Answers:
    """Answers on the same images: `truth` are the labels, or without them the static model's answers; all are [B].

    `exits` is the stage that answered, counted from 1.
    """

    truth: Classes
    static: Classes
    dynamic: Classes
    exits: Classes
    classes: int
    labelled: bool

    def balanced(self, answers: Classes) -> float:
        """Return the mean over the classes with images of the share that is answered rightly."""
        counts = np.bincount(self.truth, minlength=self.classes)
        hits = np.bincount(self.truth[answers == self.truth], minlength=self.classes)
        return float((hits[counts > 0] / counts[counts > 0]).mean())

    @property
    def unequal(self) -> bool:
        """Whether some classes are larger than others by more than chance."""
        return unequal(np.bincount(self.truth, minlength=self.classes))


def class_results(answers: Answers, names: Sequence[str] | None) -> tuple[ClassResult, ...]:
    """Return the classes that have images, those that lose most first; at most MOST_ROWS."""
    rows = []
    for k in np.unique(answers.truth):
        here = answers.truth == k
        static, dynamic = answers.static[here], answers.dynamic[here]
        right = [float((said == k).mean()) if answers.labelled else None for said in (static, dynamic)]
        name = names[k] if names else str(k)
        rows.append(ClassResult(name, int(here.sum()), right[0], right[1], float((static == dynamic).mean())))
    return tuple(sorted(rows, key=_gain)[:MOST_ROWS])


def _gain(row: ClassResult) -> tuple[float, float]:
    loss = (
        0.0 if row.correct_static is None or row.correct_dynamic is None else row.correct_dynamic - row.correct_static
    )
    return loss, row.agreement


def lost_classes(answers: Answers, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return a sentence for every stage that hardly answers a class rightly which the static model knows on the same
    images, and for classes that the static model does not know itself; and one where nearly all images are of one class."""
    texts = []
    counts = np.bincount(answers.truth, minlength=answers.classes)
    most = int(counts.argmax())
    share = counts[most] / max(1, len(answers.truth))
    if answers.classes > 1 and share >= ONE_SIDED:
        texts.append(
            f"{100 * share:.1f} % of the images are of class '{names[most] if names else most}': the numbers say little of the "
            "other classes; give more images of them"
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
    """Yield (class, images, the static model's hits) of the classes that are lost among the images that leave at a
    stage."""
    for k in np.unique(answers.truth):
        here = leaving & (answers.truth == k)
        hits = int((answers.static[here] == k).sum())
        kept = int((answers.dynamic[here] == k).sum())
        if hits >= FEW_OF_CLASS and kept <= LOST * hits:
            yield int(k), int(here.sum()), hits


def _unknown(answers: Answers) -> Iterator[int]:
    for k in np.unique(answers.truth):
        here = answers.truth == k
        if here.sum() >= FEW_OF_CLASS and (answers.static[here] == k).mean() <= LOST:
            yield int(k)


def answers_on(images: Images, static: Classes, dynamic: Classes, exits: Classes, *, classes: int) -> Answers:
    """Return the answers with their labels, or without labels with the static model's answers in their place."""
    labelled = images.labels is not None
    truth = images.labels if images.labels is not None else static
    return Answers(truth, static, dynamic, exits, classes, labelled)
