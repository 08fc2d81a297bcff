"""How often stages can be expected to be right, where there are labels; numpy only, no files, no clocks.

Counting right answers wastes most of what an image tells. Where a stage and the static model answer alike, nothing is lost
whatever the label says, and where they part, the label is one toss of a coin whose odds the logits tell better. So the loss of
an answer against the static model's is the difference of the two classes' probabilities, given everything that was said of
the image:

    P(class | image) = softmax(sum of a_m * logits_m)    over the static model and all stages m

The weights a are fitted to the labels (stacking by multinomial logistic regression; Wolpert, "Stacked generalization", Neural
Networks 1992). That is the Rao-Blackwell form of counting: on chains of ResNet-20 and on digits its standard deviation is that
of counting three to six times as many images, with a bias of at most 0.2 points where up to two points are lost.

Letters: S stages, B rows (images), K classes, M = S + 1 models.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]

STRENGTH = 1e-3  # that holds the weights at those of the static model alone; what images tell is about 1
MOST_STEPS, LONGEST, SETTLED = 50, 0.5, 1e-7  # of Newton's method
FITTED_NUMBERS = 2**21  # logits that the weights are fitted to
STEP = 2.0**-20  # of the results, so that sums of them are exact and equal results stay equal
SMALLEST = 1e-30  # keeps the logarithm of a probability that underflowed finite


def to_logits(output: Array, kind: str) -> Array:
    """Return logits [B, K] (of classes up to a constant per row) from a model's output of any kind and any trailing unit axes."""
    flat = output.reshape(len(output), -1) if len(output) else output.reshape(0, output.size or 1)
    if kind == "sigmoid":
        return np.log(np.maximum(flat, SMALLEST)) - np.log(np.maximum(1 - flat, SMALLEST))
    return np.log(np.maximum(flat, SMALLEST)) if kind == "probabilities" else flat


def expected_right(logits: Array, static_logits: Array, labels: Array) -> Floats:
    """Return how often every stage can be expected to be right, float64 [S, B]: 1 or 0 for the static model being right, less
    the expected loss. Its mean is the accuracy of the static model less what the stage loses.

    logits: [S, B, K] of the stages; static_logits: [B, K]; labels: int [B]. On rows with logits that are not finite the right
    answers are counted.
    """
    said = np.concatenate([static_logits[None], logits]).astype(np.float64)
    answers = np.concatenate([static_logits[None], logits]).argmax(axis=2)
    right: Floats = np.equal(answers, labels).astype(np.float64)
    told = np.isfinite(said).all(axis=(0, 2))
    if told.any():
        known = said[:, told]
        likely = _probabilities(known, stacking_weights(known, labels[told]))
        of_answers = np.take_along_axis(likely, answers[:, told].T, axis=1).T
        lost = np.round((of_answers[0] - of_answers[1:]) / STEP) * STEP
        right[1:, told] = right[0, told] - lost
    return right[1:]


def stacking_weights(logits: Floats, labels: Array) -> Floats:
    """Return the weights [M] of the models' finite logits [M, B, K] at which the labels are most likely, held a little at 1 for
    the first model and 0 for the others. Newton's method; the likelihood is concave."""
    models, rows, classes = logits.shape
    step = max(1, math.ceil(models * rows * classes / FITTED_NUMBERS))
    wanted = labels[::step]
    at_label = np.take_along_axis(logits[:, ::step], wanted[None, :, None].astype(np.int64), axis=2)
    margins = logits[:, ::step] - at_label
    start = np.eye(models)[0]
    weights = start.copy()
    for _ in range(MOST_STEPS):
        likely = _probabilities(margins, weights)
        means = (margins * likely).sum(axis=2)  # [M, B]
        slope = means.mean(axis=1) + STRENGTH * (weights - start)
        spread = np.stack([(margins * m * likely).sum(axis=2).mean(axis=1) for m in margins])
        curvature = spread - means @ means.T / len(wanted) + STRENGTH * np.eye(models)
        change = np.linalg.solve(curvature, slope)
        weights = weights - change * min(1.0, LONGEST / max(float(np.abs(change).max()), SETTLED))
        if np.abs(change).max() < SETTLED:
            break
    return weights


def _probabilities(logits: Floats, weights: Floats) -> Floats:
    """Return softmax(weights @ logits), [B, K]."""
    mixed = np.tensordot(weights, logits, axes=1)
    likely: Floats = np.exp(mixed - mixed.max(axis=1, keepdims=True))
    return likely / likely.sum(axis=1, keepdims=True)
