"""Thresholds that keep a bound on the risk with a stated confidence. Needs numpy and scipy.special, no files, no clocks.

The risk of a policy is its mean loss per image against the static model. With labels, the loss is the paired difference
``(static right) - (dynamic right)``, which is 1 (lost), -1 (gained) or 0 (the same); the risk is then the drop in accuracy.
Without labels, the loss is 1 where the two disagree; the risk is then the share of disagreement.

Learn-then-Test (Angelopoulos, Bates, Candès, Jordan, Lei, "Learn then Test: Calibrating Predictive Algorithms to Achieve Risk
Control", 2021) with fixed-sequence testing: policies stand in an order, each has the null hypothesis "risk above the bound"
with a valid p-value, and they are tested in that order until the first p-value is above 1 - confidence. The chance that *any*
of the policies before it breaks the bound is at most 1 - confidence, whatever the data's distribution; no correction for
their number is due. The order must not depend on the images that are tested on: `path` makes it from others, as in Pareto
testing (Laufer-Goldshtein et al., "Efficiently Controlling Multiple Risks with Pareto Testing", ICLR 2023).

Per class, the hypothesis is "some class has a risk above the bound", and its p-value is the largest of the classes' own: if class
c is the one, that is at least the p-value of c, which is seldom small. So the promise holds for all classes together, and the
level is not divided among them (an intersection-union test: Berger, "Multiparameter hypothesis testing and acceptance
sampling", Technometrics 1982). What it takes are enough images of every class.

Letters: S stages, B rows (images), P policies of a path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, betaincinv, gammaln, xlog1py, xlogy

from s2d_convert.calibration.thresholds import ALWAYS_LEAVES, NEVER_LEAVES, exits
from s2d_convert.errors import UsageError

STEPS = 100  # a step of a path lets one in STEPS images leave earlier
RISK_FLOOR = 1e-3  # lower limit of a step's expected losses; among steps without risk, the largest saving goes first
NUISANCE_SHARE = 0.05  # share of 1 - confidence that is spent on bounding how often the two models differ

Floats = NDArray[np.floating[Any]]
Losses = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class RiskBound:
    """The requested bound: with `confidence` over the draw of the calibration images, the risk is at most `max_drop`.

    With `per_class`, the bound holds for the risk of every class. Raises UsageError for values out of range.
    """

    max_drop: float
    confidence: float = 0.95
    per_class: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.max_drop < 1:
            raise UsageError(
                f"--max-drop {self.max_drop:g}: a share of images above 0 and below 1 is allowed, such as 0.01; "
                "no sample can show that nothing is ever lost"
            )
        if not 0.5 <= self.confidence < 1:
            raise UsageError(
                f"--confidence {self.confidence:g}: at least 0.5 and below 1 is allowed, such as 0.95; "
                "no sample makes sure beyond doubt"
            )

    @property
    def level(self) -> float:
        """The largest p-value that rejects a null hypothesis."""
        return 1 - self.confidence


# P-values


def p_value(lost: int, gained: int, images: int, risk_bound: RiskBound, *, paired: bool) -> float:
    """Return a valid p-value for "the risk is above `risk_bound.max_drop`", from counts of the losses 1 and -1 among `images`.

    Not paired (nothing can be gained): the exact binomial tail. Paired, the difference D = lost - gained has a nuisance,
    the share pi of images on which the two models differ. For a given pi the tail is exact; pi is bounded from above with
    the confidence 1 - beta (Clopper and Pearson, 1934), and beta is added to the largest tail below the bound (Berger and
    Boos, "P values maximized over a confidence set for the nuisance parameter", JASA 1994). A bound for any loss in an
    interval (Hoeffding-Bentkus) does not use that most losses are 0, and would need some hundred times the images.
    """
    if not paired:
        return binomial_tail(lost, images, risk_bound.max_drop)
    beta = NUISANCE_SHARE * risk_bound.level
    differing = upper_share(lost + gained, images, beta)
    return min(1.0, beta + difference_tail(lost - gained, images, risk_bound.max_drop, differing))


def binomial_tail(count: int, trials: int, chance: float) -> float:
    """Return P(X <= count) for a binomial X."""
    return float(bdtr(count, trials, min(max(chance, 0.0), 1.0)))


def upper_share(count: int, trials: int, level: float) -> float:
    """Return the share that is exceeded with a chance of at most `level`, after `count` of `trials` (Clopper and
    Pearson)."""
    return float(betaincinv(count + 1, trials - count, 1 - level)) if count < trials else 1.0


def difference_tail(difference: int, trials: int, drop: float, differing: float) -> float:
    """Return the largest P(D <= difference), D the sum of `trials` losses in {-1, 0, 1} whose mean is at least `drop` and
    of which a share of at most `differing` is not 0; 1 where the argument below does not reach.

    At a given share pi the tail is largest where the mean is `drop`. For pi <= (1 + drop^2) / 2 such a loss has the law of
    a difference of two independent Bernoulli variables, with chances v = u + drop and u: v (1 - u) - u (1 - v) = drop and
    v (1 - u) + u (1 - v) = pi give u. So D is a difference of two binomials, and up to a shift a sum of independent
    Bernoulli variables; its mode is less than 1 away from its mean (Darroch, "On the distribution of the number of
    successes in independent trials", 1964). With f the probabilities of D for one trial less,

        d/dpi P(D <= d) = trials / 2 * (f(d + 1) - f(d)),

    which is not negative as long as d + 1 lies below the mode. So the tail is largest at pi = `differing`.
    """
    if differing < drop:  # no loss with so few differences has the mean `drop`
        return 0.0
    if differing > 0.5 or difference > (trials - 1) * drop - 2:
        return 1.0
    less = (1 - drop - math.sqrt(1 + drop**2 - 2 * differing)) / 2
    gains = _binomial(trials, max(0.0, less))
    losses = np.cumsum(_binomial(trials, less + drop))
    reach = np.arange(trials + 1) + difference  # D <= difference: the most losses for each number of gains
    tail = gains * np.where(reach >= 0, losses[np.clip(reach, 0, trials)], 0.0)
    return float(min(1.0, tail.sum()))


def _binomial(trials: int, chance: float) -> NDArray[np.float64]:
    """Return P(X = 0), ..., P(X = trials) for a binomial X."""
    counts = np.arange(trials + 1)
    log_ways = gammaln(trials + 1) - gammaln(counts + 1) - gammaln(trials - counts + 1)
    return np.exp(log_ways + xlogy(counts, chance) + xlog1py(trials - counts, -chance))


def images_needed(risk_bound: RiskBound, *, paired: bool) -> int:
    """Return the smallest number of images with which a policy that loses and gains nothing passes the test."""
    enough = math.ceil(math.log(risk_bound.level) / math.log1p(-risk_bound.max_drop))
    if not paired:
        return enough
    short = enough - 1
    while p_value(0, 0, enough, risk_bound, paired=True) > risk_bound.level:
        short, enough = enough, 2 * enough
    while enough - short > 1:
        middle = (short + enough) // 2
        passes = p_value(0, 0, middle, risk_bound, paired=True) <= risk_bound.level
        short, enough = (short, middle) if passes else (middle, enough)
    return enough


# The order, and the test


def stage_losses(static_right: NDArray[np.bool_], right: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Return the loss of every image at every stage, int8 [S, B] in {-1, 0, 1}.

    static_right: bool [B]; right: bool [S, B]. Without labels the static model is right everywhere.
    """
    losses: NDArray[np.int8] = np.asarray(static_right, dtype=np.int8) - np.asarray(right, dtype=np.int8)
    return losses


def path(confidence: Floats, losses: Losses, *, cost: Sequence[float], steps: int = STEPS) -> NDArray[np.float64]:
    """Return the thresholds of a path of policies, [P, S - 1], from the safest to the cheapest.

    With the first policy no image leaves early; with the last, all leave at stage 1. Each policy has one threshold lower
    than the one before. confidence: [S, B]; losses: [S, B] from `stage_losses`; cost: [S], of every stage alone.

    The path is greedy. A step lowers one threshold until one in `steps` of the images, which went further so far, leaves at
    its stage. It takes the threshold that saves most per expected loss. The expected loss is the mean of the counted loss
    and of one minus the confidence, because in a small sample confidences are more reliable than counts.
    """
    sure = np.nan_to_num(np.asarray(confidence, dtype=np.float32), nan=0.0)
    paid, rows = np.cumsum(cost), np.arange(sure.shape[1])
    expected = (losses - sure) / 2  # the confidence is taken as 1 minus the expected loss
    portion = max(1, len(rows) // steps)
    walk = [[NEVER_LEAVES] * (len(sure) - 1)]
    stage = exits(sure, walk[0])
    while stage.any():
        options = []
        for k in range(stage.max()):
            lower = [*walk[-1][:k], _lets_go(sure[k, stage > k], portion), *walk[-1][k + 1 :]]
            moved = exits(sure, lower)
            saved = float((paid[stage] - paid[moved]).sum())
            risk = float((expected[moved, rows] - expected[stage, rows]).sum())
            options.append((saved / max(risk, RISK_FLOOR), -k, lower, moved))
        *_, lower, stage = max(options, key=lambda option: option[:2])
        walk.append(lower)
    return np.array([*walk, [ALWAYS_LEAVES, *walk[-1][1:]]][: None if len(sure) > 1 else 1], dtype=np.float64)


def _lets_go(confidence: NDArray[np.float32], count: int) -> float:
    """Return the threshold at which `count` rows leave (more if confidences tie), midway to the next lower confidence."""
    ordered = np.sort(confidence)
    last = ordered[-min(count, len(ordered))]
    below = np.append(np.float32(ALWAYS_LEAVES), ordered[ordered < last])[-1]
    middle = np.float32((float(below) + float(last)) / 2)
    return float(middle if middle > below else last)


@dataclass(frozen=True)
class Tested:
    """How far a path keeps the promise: its first `kept` policies do.

    `risk` and `p` are those of the first policy that fails, or of the last one if none does, on the `images` of the test.
    With groups, they are those of the `group` with the largest p-value.
    """

    kept: int
    images: int
    risk: float
    p: float
    group: int | None = None


def fixed_sequence(
    walk: Floats,
    confidence: Floats,
    losses: Losses,
    risk_bound: RiskBound,
    *,
    paired: bool,
    groups: NDArray[np.integer[Any]] | None = None,
) -> Tested:
    """Test the policies of a path in order, until one fails.

    confidence, losses: [S, B], of images on which neither the path nor the temperatures nor the stages depend. groups: int
    [B], such as the class of every image; if given, a policy must pass in each group.
    """
    rows = np.arange(losses.shape[1])
    parts: dict[int | None, NDArray[np.int64]] = {None: rows}
    if groups is not None:
        parts = {int(group): np.flatnonzero(groups == group) for group in np.unique(groups)}
    kept, worst = 0, (1.0, 0.0, next(iter(parts)))
    for thresholds in walk:
        taken = losses[exits(confidence, thresholds.tolist()), rows]
        worst = max(
            ((*_tested(taken[part], risk_bound, paired=paired), group) for group, part in parts.items()), key=_badness
        )
        if worst[0] > risk_bound.level:
            break
        kept += 1
    p, risk, group = worst
    return Tested(kept, len(rows), risk, p, group)


def _tested(losses: Losses, risk_bound: RiskBound, *, paired: bool) -> tuple[float, float]:
    """Return the p-value and the risk of images with these losses [B]."""
    lost, gained = int((losses > 0).sum()), int((losses < 0).sum())
    return p_value(lost, gained, len(losses), risk_bound, paired=paired), (lost - gained) / len(losses)


def _badness(tested: tuple[float, float, int | None]) -> tuple[float, float]:
    """Return what the worst of some groups is the largest in: p-value, then risk."""
    return tested[:2]
