"""Whether the static model works on the user's images, before anything is trained on its answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from s2d_convert.base.arrays import Array
from s2d_convert.base.text import listed
from s2d_convert.calibration.chance import LEVEL, ONE_SIDED, Judged, judge
from s2d_convert.data.decode import ImageFiles
from s2d_convert.data.images import Images
from s2d_convert.data.preprocess import Preprocess, make_preprocess
from s2d_convert.data.presets import PRESETS, Order, PixelOptions
from s2d_convert.errors import StaticCheckError
from s2d_convert.frontend.reference import StaticModel

TRIED = 200  # images on which other ways from pixels to model input are tried
BETTER = 0.1  # accuracy that another way must be better by to be named
POSITIVE = 0.5  # a label is given where its probability is larger
SEVERAL = 0.1  # a share of images that is no accident
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
    _refuse_several_labels(static, logits)
    said, classes = logits.argmax(axis=1), logits.shape[1]
    if images.labels is None:
        return _unlabelled(images, said, classes, force=force)
    judged = judge(said, images.labels, classes)
    balanced = f" (balanced {100 * judged.balanced:.2f} %)" if judged.unequal else ""
    note = f"static model: accuracy {100 * judged.accuracy:.2f} %{balanced} on {len(images)} held-out images"
    if not judged.better_than_largest and not judged.knows_classes:
        return _near_chance(static, images, judged, note, force=force)
    warnings = [*_below_largest(judged, images), *_lost(judged, images)]
    if judged.accuracy < (1 + judged.share) / 2:
        other = _better_way(static, images)
        warnings += [f"the static model's accuracy is {100 * judged.accuracy:.1f} %; {other}"] if other else []
    return Checked(note, tuple(warnings))


def _refuse_several_labels(static: StaticModel, answers: Array) -> None:
    """Raise StaticCheckError where a Sigmoid at the end gives many images several labels: they are not one class of many."""
    several = float(((answers > POSITIVE).sum(axis=1) > 1).mean())
    if several > SEVERAL and (last := static.graph.producer[static.graph.output]).op == "Sigmoid":
        raise StaticCheckError(
            f"{last}: the model ends in a Sigmoid and gives {100 * several:.0f} % of the images several labels (answers above "
            f"{POSITIVE}); networks with several labels per image cannot be converted yet, and as one class of many they would "
            "be trained wrongly"
        )


def _unlabelled(images: Images, said: Array, classes: int, *, force: bool) -> Checked:
    counts = np.bincount(said, minlength=classes)
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
    """The problem as a warning where it was forced. Raises StaticCheckError."""
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
        names = listed([images.class_names[k] if images.class_names else str(k) for k in judged.lost])
        count = int(judged.counts[list(judged.lost)].sum())
        yield f"the static model answers hardly any of the {count} images of {names} rightly (recall near 0)"


def _name(images: Images, k: int) -> str:
    return f"class {k}" + (f" ('{images.class_names[k]}')" if images.class_names else "")


def _better_way(static: StaticModel, images: Images) -> str:
    """Another way from pixels to model input that would be clearly better, in words; empty where there is none."""
    now = images.preprocess
    if images.is_model_input or images.labels is None or now.dtype == "uint8":
        return ""
    some = np.arange(min(TRIED, len(images)))
    labels, classes = images.labels[some], static.graph.classes

    def accuracy(other: Preprocess, pixels: Array) -> float:
        judged = judge(static.logits(other(pixels)).argmax(axis=1), labels, classes)
        return judged.accuracy if judged.better_than_largest or judged.knows_classes else 0.0

    pixels = images.raw(some)
    base = judge(static.logits(now(pixels)).argmax(axis=1), labels, classes).accuracy
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
    """The other order of channels, then every preset in both orders, with the options that choose it."""
    orders: Sequence[Order] = ("RGB", "BGR") if now.channels == 3 else ("RGB",)
    for order in orders:
        if {order, now.order} == {"RGB", "BGR"}:
            yield f"--order {order.lower()}", replace(now, order=order, mean=now.mean[::-1], std=now.std[::-1])
    for name, preset in PRESETS.items():
        for order in orders:
            said = PixelOptions(order=order.lower() if now.channels == 3 else None)
            made = make_preprocess(name, size=now.size, channels=now.channels, layout=now.layout, pixels=said)
            option = f"--preprocess {name}" + (f" --order {said.order}" if said.order and order != preset.order else "")
            yield option, replace(made, fit=now.fit, crop_ratio=now.crop_ratio, fill=now.fill, bits=now.bits)


def _other_fits(now: Preprocess) -> Iterator[tuple[str, Preprocess]]:
    for fit in FITS:
        if fit != now.fit:
            yield fit, replace(now, fit=fit, crop_ratio=1.0)  # type: ignore[arg-type]
