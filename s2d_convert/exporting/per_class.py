"""The effect of an exported folder on each class: accuracy, agreement, and classes that a stage loses.

Letters: B images, K classes or labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from s2d_runtime.policies import loss_error

from s2d_convert.base.arrays import Array
from s2d_convert.base.text import listed
from s2d_convert.calibration.chance import FEW_OF_CLASS, LOST, ONE_SIDED, Classes, unequal
from s2d_convert.calibration.task import ONE_CLASS, Task
from s2d_convert.data.images import Images

MOST_ROWS = 30
MOST_MISTAKES = 12


@dataclass(frozen=True)
class ClassResult:
    """One class: how many images have it as their label (without labels: as the static model's answer), which share of them
    is answered rightly, and which share as the static model does.

    Where images have several labels, of one of them: the images that have it, the share of these to which it is given, and
    the share of all images on which it is given or not as by the static model.
    """

    name: str
    images: int
    correct_static: float | None
    correct_dynamic: float | None
    agreement: float
    loss_error: float = 0.0

    @property
    def loss(self) -> float:
        """The share of the class's images that is lost against the static model; `loss_error` is its standard error."""
        if self.correct_static is None or self.correct_dynamic is None:
            return 1 - self.agreement
        return self.correct_static - self.correct_dynamic


@dataclass(frozen=True)
class Mistake:
    """An image that the static model answers rightly (without labels: on which it is followed) and the folder otherwise: its row,
    and the classes that the static model says."""

    row: int
    static: tuple[int, ...]


@dataclass(frozen=True)
class Answers:
    """Answers on the same images: `truth` are the labels, or without them the static model's answers; all are [B], or [B, K]
    where an image has several labels.

    `exits`: the number of the stage that answered, from 1.
    """

    truth: Array
    static: Array
    dynamic: Array
    exits: Classes
    classes: int
    labelled: bool
    task: Task = ONE_CLASS

    def balanced(self, answers: Array) -> float:
        """Return the balanced accuracy: the mean of the accuracies of all classes that have images."""
        counts = self.counts
        hits = np.array([(self.having(k) & self.task.has(answers, k)).sum() for k in range(self.classes)])
        return float((hits[counts > 0] / counts[counts > 0]).mean())

    @cached_property
    def counts(self) -> Array:
        """How many images have each class, int [K]."""
        return self.truth.sum(axis=0) if self.task.several else np.bincount(self.truth, minlength=self.classes)

    @property
    def unequal(self) -> bool:
        """Whether some classes are larger than others by more than chance; always true for several labels."""
        return self.task.several or unequal(self.counts)

    @property
    def present(self) -> list[int]:
        """The classes that some images have."""
        return np.flatnonzero(self.counts).tolist()

    def having(self, k: int) -> NDArray[np.bool_]:
        """Return which images have class k [B]."""
        return self.task.has(self.truth, k)


def class_results(answers: Answers, names: Sequence[str] | None) -> tuple[ClassResult, ...]:
    """Return the classes that have images, those with the largest loss first; at most MOST_ROWS."""
    rows = []
    for k in answers.present:
        here = answers.having(k)
        static, dynamic = (answers.task.has(answered, k) for answered in (answers.static, answers.dynamic))
        right = [float(answered[here].mean()) if answers.labelled else None for answered in (static, dynamic)]
        same = (static == dynamic) if answers.task.several else (answers.static == answers.dynamic)[here]
        name = names[k] if names else str(k)
        lost = (static.astype(np.float64) - dynamic)[here] if answers.labelled else 1.0 - same
        result = ClassResult(name, int(here.sum()), right[0], right[1], float(same.mean()), loss_error(lost))
        rows.append(result)
    return tuple(sorted(rows, key=_gain)[:MOST_ROWS])


def _gain(row: ClassResult) -> tuple[float, float]:
    loss = (
        0.0 if row.correct_static is None or row.correct_dynamic is None else row.correct_dynamic - row.correct_static
    )
    return loss, row.agreement


def mistakes(answers: Answers, confidence: Array) -> tuple[Mistake, ...]:
    """Return the images that became wrong, the surest mistakes first; at most MOST_MISTAKES. confidence: of the folder [B]."""
    task = answers.task
    wrong = task.agree(answers.static, answers.truth) & ~task.agree(answers.dynamic, answers.truth)
    rows = [row for row in np.argsort(-np.nan_to_num(confidence), kind="stable").tolist() if wrong[row]]
    return tuple(Mistake(row, _said(answers.static[row])) for row in rows[:MOST_MISTAKES])


def _said(answer: Array) -> tuple[int, ...]:
    """Return the classes that one answer names: a class, or all labels that are 1."""
    return tuple(np.flatnonzero(answer).tolist()) if np.ndim(answer) else (int(answer),)


def lost_classes(answers: Answers, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return a sentence for every stage that hardly answers a class rightly which the static model knows on the same images, and
    for classes that the static model does not know itself; and one where nearly all images are of one class."""
    texts = list(_one_sided(answers, names))
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


def _one_sided(answers: Answers, names: Sequence[str] | None) -> Iterator[str]:
    most = int(answers.counts.argmax())
    share = answers.counts[most] / max(1, len(answers.truth))
    if answers.classes > 1 and share >= ONE_SIDED and not answers.task.several:
        yield (
            f"{100 * share:.1f} % of the images are of class '{names[most] if names else most}': the numbers say little of the "
            "other classes; give more images of them"
        )


def _lost_at(answers: Answers, leaving: NDArray[np.bool_]) -> Iterator[tuple[int, int, int]]:
    """Yield (class, images, the static model's hits) of the classes that are lost among the images that leave at a stage."""
    for k in answers.present:
        here = leaving & answers.having(k)
        hits, kept = (int(answers.task.has(answered[here], k).sum()) for answered in (answers.static, answers.dynamic))
        if hits >= FEW_OF_CLASS and kept <= LOST * hits:
            yield k, int(here.sum()), hits


def _unknown(answers: Answers) -> Iterator[int]:
    for k in answers.present:
        here = answers.having(k)
        if here.sum() >= FEW_OF_CLASS and answers.task.has(answers.static[here], k).mean() <= LOST:
            yield k


def answers_on(images: Images, static: Array, dynamic: Array, exits: Classes, *, classes: int, task: Task) -> Answers:
    """Return the answers with the labels as truth, or without labels with the static model's answers."""
    labelled = images.labels is not None
    truth = images.labels if images.labels is not None else static
    return Answers(truth, static, dynamic, exits, classes, labelled, task)


# Several labels


@dataclass(frozen=True)
class LabelScores:
    """How well labels are given, each by itself: the share of them that is as by the static model, and, where there are
    labels, the share that is right and F1, over all labels together (micro) and as the mean over those that occur (macro)."""

    agreement: float
    right_static: float | None = None
    right_dynamic: float | None = None
    micro_f1_static: float | None = None
    micro_f1_dynamic: float | None = None
    macro_f1_static: float | None = None
    macro_f1_dynamic: float | None = None


def label_scores(answers: Answers) -> LabelScores:
    """Return the scores of answers with several labels."""
    agreement = float((answers.static == answers.dynamic).mean())
    if not answers.labelled:
        return LabelScores(agreement)
    right = [float((answered == answers.truth).mean()) for answered in (answers.static, answers.dynamic)]
    (micro, macro), (micro_dynamic, macro_dynamic) = (
        f1_scores(answered, answers.truth) for answered in (answers.static, answers.dynamic)
    )
    return LabelScores(agreement, right[0], right[1], micro, micro_dynamic, macro, macro_dynamic)


def f1_scores(answers: Array, truth: Array) -> tuple[float, float]:
    """Return F1 of labels 0 or 1 [B, K]: over all of them together, and the mean over the labels that occur in either."""
    hits, given, true = (x.sum(axis=0).astype(np.float64) for x in (answers & truth, answers, truth))
    occurs = given + true > 0
    each = 2 * hits[occurs] / (given + true)[occurs]
    total = float((given + true).sum())
    return (float(2 * hits.sum() / total), float(each.mean())) if total else (1.0, 1.0)
