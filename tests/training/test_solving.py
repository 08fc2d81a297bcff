"""First chains with solved weights: solved once, on as many images as the work allows, and better than the plain cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import random_images
from text_nets import residual

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.data.images import Images
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.frontend.load import graph_from_proto
from s2d_convert.plans.divisions import divide
from s2d_convert.plans.plan import identity_plan
from s2d_convert.plans.space import CASCADE, LINKED, PlanSpace
from s2d_convert.plans.weights import static_weights
from s2d_convert.slicing.chain import Chain, build_stages, stage_logits
from s2d_convert.training import solving
from s2d_convert.training.solving import Solver


def solver(count: int = 80) -> Solver:
    """A solver for a small net with skip connections."""
    proto = residual()
    model = AnalysedModel.of(graph_from_proto(proto))
    pixels = next(iter(random_images(proto, count, 0).values()))
    preprocess = make_preprocess("unit", size=pixels.shape[2:], channels=pixels.shape[1])
    images = Images(pixels, preprocess, np.arange(count), None, "unlabelled")
    return Solver(model, static_weights(model.graph, model.channels), images, torch.device("cpu"))


@pytest.mark.parametrize("kind", [LINKED, CASCADE])
def test_a_chain_is_solved_once_and_nearer_to_the_static_model_than_the_plain_cut(kind: int) -> None:
    solved = solver()
    space = PlanSpace(solved.model, divide(solved.model, solved.weights, groups=2, block=1), stages=2)
    plan = space.decode(space.actions(kind, [len(space.taps) - 1], [0.5])).chains[0]
    chain = solved.chain(plan)
    assert solved.chain(plan) is chain
    (whole,) = build_stages([Chain(solved.model, identity_plan(solved.model), solved.weights)])
    wanted = stage_logits(solved.model.graph, [whole], solved.images)[0]

    def error(weights_chain: Chain) -> float:
        last = stage_logits(solved.model.graph, build_stages([weights_chain]), solved.images)[-1]
        return float(np.square(last - wanted).mean())

    assert error(chain) < error(Chain(solved.model, plan, solved.weights))


def test_the_rough_reconstruction_goes_when_a_chain_is_solved_fully() -> None:
    solved = solver()
    assert solved.rough.samples.count == 80
    solved.chain(identity_plan(solved.model))
    assert "rough" not in vars(solved)


def test_images_follow_the_work_that_they_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    assert solver().rough.samples.count == 80
    monkeypatch.setattr(solving, "ROUGH_MACS", 1.0)
    assert solver().rough.samples.count == solving.LEAST_IMAGES


def test_importance_has_a_score_for_every_unit() -> None:
    solved = solver()
    assert solved.importance.shape == (solved.model.channels.units,)
    assert np.isfinite(solved.importance).all()


@pytest.mark.parametrize(("seconds", "images"), [(0.0, 16), (6 * 2.0, 32), (1e6, 80)])
def test_full_solves_take_as_many_images_as_the_time_allows(
    seconds: float, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solving, "ROUGH_IMAGES", 16)
    solved = solver()
    assert solved.rough.samples.count == 16
    # A rough solve of 16 images took a second, so a full one of 32 takes twice as long, times what a full one costs more.
    solved.afford(seconds, rough_seconds=1.0)
    assert solving.FULL_COST == 6
    solved.chain(identity_plan(solved.model))
    assert solved._full.samples.count == images


def test_what_was_released_is_made_again() -> None:
    solved = solver()
    plan = identity_plan(solved.model)
    chain, rough = solved.chain(plan), solved.rough
    solved.release()
    assert not {"_full", "_chains", "rough"} & set(vars(solved))
    assert solved.rough is not rough
    assert solved.rough.samples.count == rough.samples.count
    again = solved.chain(plan)
    assert again is not chain
    assert all(np.array_equal(weight, again.weights.mix[name][0]) for name, (weight, _) in chain.weights.mix.items())
