"""Made-up images: repeatable, of any size, varied, and with the statistics that natural images have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from s2d_convert.data.synthetic.drawing import made_up
from s2d_convert.data.synthetic.families import FAMILIES, Family
from s2d_convert.data.synthetic.finishing import sampled
from s2d_convert.errors import UsageError


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return made_up(400, size=(32, 32), channels=3, seed=7)


@pytest.mark.parametrize(
    ("size", "channels", "count"),
    [((32, 32), 3, 40), ((28, 28), 1, 40), ((224, 224), 3, 9), ((17, 64), 3, 5), ((9, 9), 4, 5), ((1, 1), 1, 3)],
)
def test_any_size_and_number_of_channels(size: tuple[int, int], channels: int, count: int) -> None:
    got = made_up(count, size=size, channels=channels, seed=0)
    assert got.dtype == np.uint8
    assert got.shape == (count, *size, channels)
    assert got.std() > 30


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**63), count=st.integers(0, 40), more=st.integers(1, 300))
def test_the_same_seed_begins_with_the_same_images(seed: int, count: int, more: int) -> None:
    some = made_up(count, size=(8, 8), channels=3, seed=seed)
    many = made_up(count + more, size=(8, 8), channels=3, seed=seed)
    np.testing.assert_array_equal(many[:count], some)


def test_seeds_differ_and_blocks_of_images_differ() -> None:
    one, other = (made_up(600, size=(8, 8), channels=3, seed=seed) for seed in (1, 2))
    assert len(np.unique(np.concatenate([one, other]).reshape(1200, -1), axis=0)) > 1180


def test_images_are_varied(images: NDArray[np.uint8]) -> None:
    flat = images.reshape(len(images), -1).astype(np.float64)
    contrast, brightness = flat.std(1), flat.mean(1)
    assert (contrast < 2).mean() < 0.05
    assert np.quantile(contrast, 0.9) > 2 * np.quantile(contrast, 0.1)
    assert np.quantile(brightness, 0.9) - np.quantile(brightness, 0.1) > 60
    np.testing.assert_allclose(images.mean((0, 1, 2)), 128, atol=25)
    assert images.min() == 0
    assert images.max() == 255


def test_colours_and_neighbours_hang_together_as_in_photos(images: NDArray[np.uint8]) -> None:
    pixels = images.astype(np.float64)
    red_green = np.corrcoef(pixels[..., 0].ravel(), pixels[..., 1].ravel())[0, 1]
    neighbours = np.corrcoef(pixels[:, :, :-1].ravel(), pixels[:, :, 1:].ravel())[0, 1]
    assert 0.5 < red_green < 0.98
    assert 0.8 < neighbours < 0.99


def test_the_mean_spectrum_falls_like_that_of_photos(images: NDArray[np.uint8]) -> None:
    """Photos have an amplitude of about 1 / f: on a log-log scale the slope is near -1."""
    gray = images.mean(3) - images.mean((1, 2, 3))[:, None, None]
    amplitude = np.sqrt((np.abs(np.fft.rfft2(gray)) ** 2).mean(0))
    fy, fx = np.fft.fftfreq(32)[:, None], np.fft.rfftfreq(32)[None, :]
    frequency = np.hypot(fy, fx)
    inside = (frequency > 0) & (frequency < 0.4)
    slope, _ = np.polyfit(np.log(frequency[inside]), np.log(amplitude[inside]), 1)
    assert -1.9 < slope < -0.7


@pytest.mark.parametrize("family", [family for family, _ in FAMILIES])
@pytest.mark.parametrize(("count", "height", "width"), [(5, 24, 24), (1, 8, 30)])
def test_every_family_draws_finite_canvases_that_differ(family: Family, count: int, height: int, width: int) -> None:
    canvas = family(np.random.default_rng(0), count, height, width)
    assert canvas.dtype == np.float32
    assert canvas.shape == (count, height, width, 3)
    assert np.isfinite(canvas).all()
    assert len(np.unique(canvas.reshape(count, -1), axis=0)) == count


def test_shares_of_the_families_add_up() -> None:
    assert sum(weight for _, weight in FAMILIES) == pytest.approx(1)


def test_sampling_at_the_pixels_gives_back_the_canvas_and_reflects_beyond_it() -> None:
    canvas = np.random.default_rng(0).random((2, 5, 6, 3), np.float32)
    rows, columns = (np.broadcast_to(grid.astype(np.float32), (2, 5, 6)) for grid in np.indices((5, 6)))
    np.testing.assert_allclose(sampled(canvas, rows, columns), canvas, atol=5e-3)
    np.testing.assert_allclose(sampled(canvas, -rows, 10 - columns), canvas, atol=5e-3)
    between = sampled(canvas, rows, columns + np.float32(0.5))[:, :, :5]
    np.testing.assert_allclose(between, (canvas[:, :, :5] + canvas[:, :, 1:]) / 2, atol=5e-3)


def test_impossible_images_are_refused() -> None:
    with pytest.raises(UsageError, match="count -1"):
        made_up(-1, size=(8, 8), channels=3, seed=0)
