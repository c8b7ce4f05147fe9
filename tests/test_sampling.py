from __future__ import annotations

import numpy as np
import pytest

from hpcai500.pipelines import sampling

SIZES = np.array([[375, 500], [500, 375], [64, 64], [30, 400], [400, 30], [1, 1], [2, 1000]], dtype=np.int32)


def many_crops(size: tuple[int, int], count: int = 20_000) -> np.ndarray:
    return sampling.random_crops(1, 2, np.arange(count), np.tile(np.array(size), (count, 1)))


def test_uniforms_are_uniform_and_uncorrelated_over_samples_draws_epochs_and_seeds():
    ids = np.arange(20_000)
    draws = sampling.uniforms(3, 1, ids, 4)
    assert draws.min() >= 0
    assert draws.max() < 1
    columns = [
        *draws.T,
        sampling.uniforms(3, 2, ids, 1)[:, 0],
        sampling.uniforms(4, 1, ids, 1)[:, 0],
        np.roll(draws[:, 0], 1),
    ]
    for column in columns:
        counts = np.histogram(column, bins=20, range=(0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 50  # chi-squared with 19 degrees of freedom: one in 10,000
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlations).max() < 5 / np.sqrt(len(ids))


def test_a_draw_does_not_depend_on_its_company():
    alone = sampling.uniforms(1, 1, np.array([77]), 1, first_draw=5)
    together = sampling.uniforms(1, 1, np.arange(100), 10)
    assert alone[0, 0] == together[77, 5]


def test_crops_stay_inside_pictures_of_any_shape():
    sizes = np.repeat(SIZES, 3000, axis=0)
    top, left, height, width = sampling.random_crops(0, 0, np.arange(len(sizes)), sizes).T
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height <= sizes[:, 0]).all()
    assert (left + width <= sizes[:, 1]).all()


def test_crops_have_the_areas_aspects_and_places_of_random_resized_crop():
    count = 20_000
    crops = many_crops((375, 500), count)
    top, left, height, width = crops.T
    share = height * width / (375 * 500)
    aspect = width / height
    assert 0.049 < share.min() < 0.06
    assert 0.9 < share.max() <= 1.0
    assert aspect.min() > 0.73
    assert aspect.max() < 1.37
    # Small windows always fit, so theirs are the distributions as drawn: log-uniform aspect, uniform area and place.
    small = share < 0.3
    assert np.log(aspect[small]).mean() == pytest.approx(0, abs=0.01)
    assert np.log(aspect[small]).std() == pytest.approx(2 * np.log(4 / 3) / np.sqrt(12), rel=0.03)
    assert share[small].mean() == pytest.approx(0.175, abs=0.005)
    assert (top[small] / (375 - height[small])).mean() == pytest.approx(0.5, abs=0.02)
    assert (left[small] / (500 - width[small])).mean() == pytest.approx(0.5, abs=0.02)


def test_crops_agree_in_distribution_with_torchvisions_algorithm():
    rng = np.random.default_rng(0)
    expected = np.array([torchvision_crop(rng, 375, 500) for _ in range(10_000)])
    crops = many_crops((375, 500), 10_000)
    for ours, theirs in zip(crops.T, expected.T, strict=True):
        assert ours.mean() == pytest.approx(theirs.mean(), abs=5 * theirs.std() / np.sqrt(5_000))
        assert ours.std() == pytest.approx(theirs.std(), rel=0.04)


def torchvision_crop(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """RandomResizedCrop.get_params, written down once more, one try after the other."""
    for _ in range(10):
        area = height * width * rng.uniform(0.05, 1.0)
        aspect = np.exp(rng.uniform(np.log(0.75), np.log(4 / 3)))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    w = min(width, round(height * 4 / 3))
    return 0, (width - w) // 2, height, w


@pytest.mark.parametrize(("size", "expected"), [((10, 400), (0, 193, 10, 13)), ((400, 12), (192, 0, 16, 12))])
def test_a_picture_too_long_for_any_window_gets_the_central_one(size: tuple[int, int], expected: tuple[int, ...]):
    crops = sampling.random_crops(0, 0, np.arange(50), np.tile(np.array(size), (50, 1)), area=(0.9, 1.0))
    assert (crops == expected).all()


def test_half_of_the_samples_are_flipped_and_others_in_the_next_epoch():
    ids = np.arange(10_000)
    flips, later = sampling.random_flips(0, 0, ids), sampling.random_flips(0, 1, ids)
    assert flips.sum() == pytest.approx(5000, abs=250)  # five standard deviations
    assert (flips == later).sum() == pytest.approx(5000, abs=250)


@pytest.mark.parametrize(
    ("size", "resized", "corner"),
    [
        ((375, 500), (256, 341), (16, 58)),  # 341 = int(256 * 500 / 375); corner round(58.5) = 58, half to even
        ((500, 375), (341, 256), (58, 16)),
        ((256, 256), (256, 256), (16, 16)),
        ((100, 101), (256, 258), (16, 17)),
    ],
)
def test_centre_crops_follow_torchvisions_rounding(
    size: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int]
):
    sizes, corners = sampling.centre_crops(np.array([size], dtype=np.int32), 256, 224)
    assert tuple(sizes[0]) == resized
    assert tuple(corners[0]) == corner
