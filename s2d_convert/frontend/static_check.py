"""Whether the static model works on the user's images, before anything is trained on its answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from s2d_runtime.preprocess import Order

from s2d_convert.base.arrays import Array
from s2d_convert.base.text import listed
from s2d_convert.calibration.chance import LEVEL, ONE_SIDED, Judged, judge
from s2d_convert.calibration.label_chance import judge_labels
from s2d_convert.data.decode import ImageFiles
from s2d_convert.data.images import Images
from s2d_convert.data.preprocess import Preprocess, make_preprocess
from s2d_convert.data.presets import PRESETS, PixelOptions
from s2d_convert.errors import StaticCheckError
from s2d_convert.frontend.reference import StaticModel

TRIED = 200  # images on which other ways from pixels to model input are tried
BETTER = 0.1  # accuracy that another way must be better by to be named
FITS = ("crop", "stretch", "pad", "pad-right")
CHECK = (
    "check how pictures become model input (--preprocess, --mean, --std, --scale, --order rgb or bgr or grey, --resize crop or "
    "stretch or pad, --crop-ratio, --bits, --size) and the order of the class folders"
)


@dataclass(frozen=True)
class Checked:
    """What the check has found: a note, and what the user should mind."""

    note: str
    warnings: tuple[str, ...] = ()


def check_static(static: StaticModel, images: Images, logits: Array, *, force: bool) -> Checked:
    """Hold the static model's logits [B, K] against the images. Raises StaticCheckError when they are not finite, or no
    better than chance and not `force`."""
    if not np.isfinite(logits).all():
        raise StaticCheckError(
            "the static model answers NaN or infinity on the data; check the images and the preprocessing"
        )
    task, classes = static.graph.task, logits.shape[1]
    answers = task.answers(logits)
    if task.several:
        return _check_labels(static, images, answers, force=force)
    if images.labels is None:
        return _unlabelled(images, answers, classes, force=force)
    judged = judge(answers, images.labels, classes)
    balanced = f" (balanced {100 * judged.balanced:.2f} %)" if judged.unequal else ""
    note = f"static model: accuracy {100 * judged.accuracy:.2f} %{balanced} on {len(images)} held-out images"
    if not judged.better_than_largest and not judged.knows_classes:
        return _near_chance(static, images, judged, note, force=force)
    warnings = [*_below_largest(judged, images), *_lost(judged, images)]
    if judged.accuracy < (1 + judged.share) / 2:
        other = _better_way(static, images)
        warnings += [f"the static model's accuracy is {100 * judged.accuracy:.1f} %; {other}"] if other else []
    return Checked(note, tuple(warnings))


def _check_labels(static: StaticModel, images: Images, answers: Array, *, force: bool) -> Checked:
    """Return the same for a model that gives labels, each by itself; answers: 0 or 1 [B, K]."""
    if images.labels is None:
        given = np.flatnonzero(answers.any(axis=0))
        note = f"static model: {len(given)} of {answers.shape[1]} labels occur among its answers"
        if images.kind == "unlabelled" and (answers == answers[0]).all():
            problem = (
                f"the static model gives every one of {len(images)} images the same labels: images with other labels are needed "
                "too, or, if there are some, " + CHECK
            )
            return Checked(note, (_refused(problem, force=force),))
        return Checked(note)
    judged = judge_labels(answers, images.labels)
    note = (
        f"static model: {100 * judged.right:.2f} % of the labels right (always the commonest answer: "
        f"{100 * judged.commonest:.2f} %), F1 {judged.f1:.3f}, all labels right in {100 * judged.exact:.2f} % of {len(images)} "
        "held-out images"
    )
    lost = []
    if judged.lost:
        count = int(images.labels[:, list(judged.lost)].any(axis=1).sum())
        lost = [f"the static model gives hardly any of the {count} images of {_named(images, judged.lost)} that label"]
    if judged.knows_labels:
        return Checked(note, tuple(lost))
    hint = _better_way(static, images)
    problem = (
        f"the static model's labels are right in {100 * judged.right:.1f} %, near chance: no better on {len(images)} images than "
        f"always giving each label its commonest answer ({100 * judged.commonest:.1f} %){''.join(f'; {text}' for text in lost)}; "
        f"{CHECK}{f'; {hint}' if hint else ''}"
    )
    return Checked(note, (_refused(problem, force=force),))


def _unlabelled(images: Images, answers: Array, classes: int, *, force: bool) -> Checked:
    counts = np.bincount(answers, minlength=classes)
    most, occurring = int(counts.argmax()), int((counts > 0).sum())
    note = f"static model: {occurring} of {classes} classes occur among its answers"
    if images.kind != "unlabelled":
        return Checked(note)
    if occurring == 1:
        problem = (
            f"the static model answers {_name(images, most)} for every one of {len(images)} images: images of other classes are "
            "needed too (a filter must see what it is to find), or, if there are some, " + CHECK
        )
        return Checked(note, (_refused(problem, force=force),))
    share = counts[most] / len(images)
    if share < ONE_SIDED:
        return Checked(note)
    return Checked(
        note,
        (
            f"the static model answers {_name(images, most)} for {100 * share:.1f} % of the images: agreement says little of the "
            "other classes; give more images of them",
        ),
    )


def _near_chance(static: StaticModel, images: Images, judged: Judged, note: str, *, force: bool) -> Checked:
    """Refuse a model that is no better than chance; let it pass with a warning where that cannot be told, or by force."""
    largest = f"always answering {_name(images, judged.largest)} ({100 * judged.share:.1f} %)"
    if judged.tells_nothing and judged.accuracy > judged.share:
        text = (
            f"{judged.images} images are too few to tell whether the static model is better than {largest}; give more images, "
            "of the other classes above all"
        )
        return Checked(note, (text,))
    sure = f"{100 * (1 - LEVEL):.0f} %"
    lost = "".join(f"; {text}" for text in _lost(judged, images))
    hint = _better_way(static, images)
    problem = (
        f"the static model's accuracy is {100 * judged.accuracy:.1f} % on {judged.images} images, near chance: not better than "
        f"{largest} with {sure} confidence{lost}; {CHECK}{f'; {hint}' if hint else '; no preset of --preprocess does better'}"
    )
    return Checked(note, (_refused(problem, force=force),))


def _refused(problem: str, *, force: bool) -> str:
    """Return the problem as a warning where it was forced. Raises StaticCheckError."""
    if not force:
        raise StaticCheckError(f"{problem}; --force goes on all the same")
    return problem


def _below_largest(judged: Judged, images: Images) -> Iterator[str]:
    if judged.accuracy < judged.share:
        yield (
            f"always answering {_name(images, judged.largest)} would be right more often than the static model "
            f"({100 * judged.share:.1f} against {100 * judged.accuracy:.1f} %): mind balanced accuracy and the recall of the "
            "classes, not accuracy"
        )


def _lost(judged: Judged, images: Images) -> Iterator[str]:
    if judged.lost:
        count = int(judged.counts[list(judged.lost)].sum())
        names = _named(images, judged.lost)
        yield f"the static model answers hardly any of the {count} images of {names} rightly (recall near 0)"


def _named(images: Images, classes: Sequence[int]) -> str:
    return listed([images.class_names[k] if images.class_names else str(k) for k in classes])


def _name(images: Images, k: int) -> str:
    return f"class {k}" + (f" ('{images.class_names[k]}')" if images.class_names else "")


def _better_way(static: StaticModel, images: Images) -> str:
    """Return another way from pixels to model input that would be clearly better, in words; "" where there is none."""
    now = images.preprocess
    if images.is_model_input or images.labels is None or now.dtype == "uint8":
        return ""
    some = np.arange(min(TRIED, len(images)))
    labels, graph = images.labels[some], static.graph

    def accuracy(other: Preprocess, pixels: Array, *, at_all: bool = False) -> float:
        answers = graph.task.answers(static.logits(other(pixels)))
        if graph.task.several:
            held = judge_labels(answers, labels)
            return held.right if at_all or held.knows_labels else 0.0
        judged = judge(answers, labels, graph.classes)
        return judged.accuracy if at_all or judged.better_than_largest or judged.knows_classes else 0.0

    pixels = images.raw(some)
    base = accuracy(now, pixels, at_all=True)
    ways = [(accuracy(other, pixels), option, other) for option, other in _other_numbers(now)]
    numbers = max(ways, key=lambda way: way[0])
    best: Sequence[tuple[float, str]] = [numbers[:2]]
    if images.files is not None:
        starts = [("", now)] + ([(numbers[1], numbers[2])] if numbers[0] > base else [])
        best = [*best, *(
            (accuracy(other, ImageFiles(images.files, other)[images.rows[some]]), f"{option} --resize {fit}".strip())
            for option, start in starts
            for fit, other in _other_fits(start)
        )]  # fmt: skip
    share, option = max(best)
    return f"with {option} it would be {100 * share:.0f} %" if share >= base + BETTER else ""


def _other_numbers(now: Preprocess) -> Iterator[tuple[str, Preprocess]]:
    """Yield the other order of channels, then every preset in both orders, with the options that choose it."""
    orders: Sequence[Order] = ("RGB", "BGR") if now.channels == 3 else ("RGB",)
    for order in orders:
        if {order, now.order} == {"RGB", "BGR"}:
            yield f"--order {order.lower()}", replace(now, order=order, mean=now.mean[::-1], std=now.std[::-1])
    for name, preset in PRESETS.items():
        for order in orders:
            overrides = PixelOptions(order=order.lower() if now.channels == 3 else None)
            made = make_preprocess(name, size=now.size, channels=now.channels, layout=now.layout, pixels=overrides)
            option = f"--preprocess {name}" + (
                f" --order {overrides.order}" if overrides.order and order != preset.order else ""
            )
            yield option, replace(made, fit=now.fit, crop_ratio=now.crop_ratio, fill=now.fill, bits=now.bits)


def _other_fits(now: Preprocess) -> Iterator[tuple[str, Preprocess]]:
    for fit in FITS:
        if fit != now.fit:
            yield fit, replace(now, fit=fit, crop_ratio=1.0)  # type: ignore[arg-type]
