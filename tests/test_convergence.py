from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcai500.convergence import (
    Point,
    Reference,
    interpolate,
    lower_envelope,
    smallest_smoothed_loss,
    smallest_top_1_loss,
)
from hpcai500.edition import load_edition

RULES = load_edition().convergence
MLPERF = next(one for one in RULES.references if (one.size, one.levels[0]) == ("official", "hardware"))


def point(batch_size: int, mean_epochs: float, num_runs: int = 10) -> Point:
    return Point(
        quality=0.5, batch_size=batch_size, num_runs=num_runs, mean_epochs=mean_epochs, std_epochs=mean_epochs / 100
    )


POINTS = st.lists(
    st.builds(point, st.integers(1, 1000), st.floats(1, 100)), min_size=1, max_size=12, unique_by=lambda p: p.batch_size
)


@given(points=POINTS)
def test_the_envelope_is_convex_never_falls_and_lies_below_all_points(points: list[Point]) -> None:
    envelope = lower_envelope(points)
    slopes = [
        (right.mean_epochs - left.mean_epochs) / (right.batch_size - left.batch_size)
        for left, right in itertools.pairwise(envelope)
    ]
    assert all(slope >= 0 for slope in slopes)
    assert slopes == sorted(slopes)
    assert envelope[-1].batch_size == max(one.batch_size for one in points)
    for one in points:
        assert interpolate(points, one.batch_size).mean_epochs <= one.mean_epochs * (1 + 1e-12)


@given(points=POINTS, batch_size=st.integers(1, 2000))
def test_between_neighbours_the_envelope_is_a_line_and_beyond_the_ends_it_stays(
    points: list[Point], batch_size: int
) -> None:
    envelope = lower_envelope(points)
    found = interpolate(points, batch_size)
    if batch_size >= envelope[-1].batch_size:
        assert found.mean_epochs == envelope[-1].mean_epochs
    elif batch_size <= envelope[0].batch_size:
        assert found.mean_epochs == pytest.approx(envelope[0].mean_epochs)
        steps = interpolate(points, batch_size, below_smallest="steps")
        assert steps.mean_epochs / batch_size == pytest.approx(envelope[0].mean_epochs / envelope[0].batch_size)
    else:
        left = max((one for one in envelope if one.batch_size <= batch_size), key=lambda one: one.batch_size)
        right = min((one for one in envelope if one.batch_size >= batch_size), key=lambda one: one.batch_size)
        share = (batch_size - left.batch_size) / max(1, right.batch_size - left.batch_size)
        expected = left.mean_epochs + share * (right.mean_epochs - left.mean_epochs)
        assert found.mean_epochs == pytest.approx(expected)


def test_the_envelope_of_mlperf_s_points_drops_what_was_tuned_badly() -> None:
    """MLPerf's own pruning gives the same (mlperf_logging, rcp_checker, training 4.0.0)."""
    kept = [(one.batch_size, one.mean_epochs) for one in lower_envelope(MLPERF.points)]
    assert kept == [(1632, 35.0), (3264, 35.2), (32768, 56.0), (49152, 68.0), (67840, 85.857)]


def test_a_point_above_the_line_of_distant_neighbours_falls_out_too() -> None:
    """Each of 2 and 3 lies on or below the line of its own neighbours, but above that from 1 to 4."""
    assert [one.batch_size for one in lower_envelope([point(1, 1), point(2, 4), point(3, 7), point(4, 9)])] == [1, 4]


@pytest.mark.parametrize(
    ("epochs", "least", "most"),
    [([35.2] * 5, 0.4, 0.6), ([34.0] * 5, 0.05, 0.2), ([32.0] * 5, 0.0005, 0.01), ([28.0] * 5, 0, 1e-5)],
)
def test_fewer_epochs_are_less_probable(epochs: list[float], least: float, most: float) -> None:
    [reference] = MLPERF.at(3264)
    assert least <= RULES.probability(reference, epochs) <= most


def test_runs_that_scatter_do_not_widen_their_own_bound() -> None:
    """One forged run among five: pooled with it, the deviation would be so large that the mean passed."""
    [reference] = MLPERF.at(3264)
    assert RULES.probability(reference, [35.0, 35.0, 35.0, 35.0, 5.0]) < RULES.invalid_below


def test_the_error_of_the_first_kind_is_the_one_stated() -> None:
    """Of 4,000 submissions that learn just as the references, as many are refused as the level says."""
    source = random.Random(1)
    level, refused = 0.05, 0
    for _ in range(4000):
        runs = [source.gauss(35, 3) for _ in range(13)]
        mean = sum(runs[:8]) / 8
        std = math.sqrt(sum((run - mean) ** 2 for run in runs[:8]) / 7)
        reference = Point(quality=0.5, batch_size=1, num_runs=8, mean_epochs=mean, std_epochs=std)
        refused += RULES.probability(reference, runs[8:]) < level
    assert 0.04 < refused / 4000 < 0.06


@pytest.mark.parametrize(
    ("qualities", "interpolated", "first"),
    [([0.2, 0.4], 1.5, 2.0), ([0.6, 0.7], 0.4, 1.0), ([0.1, 0.2], None, None)],
)
def test_epochs_are_counted_as_the_reference_counts_them(
    qualities: list[float], interpolated: float | None, first: float | None
) -> None:
    """A first evaluation that is already above the quality is a part of an epoch, on the line from chance."""

    def reference(counted: str) -> Reference:
        return Reference(
            workload="w", size="s", levels=(), data_sources=(), any_recipe=True, source="", below_smallest="epochs",
            chance_quality=0.1, counted=counted,  # type: ignore[arg-type]
        )  # fmt: skip

    epochs = [1.0, 2.0]
    found = reference("interpolated").epochs_to(0.3, epochs, qualities)
    assert found is None if interpolated is None else found == pytest.approx(interpolated)
    assert reference("evaluations").epochs_to(0.3, epochs, qualities) == first


@given(smoothing=st.floats(0, 1), num_classes=st.integers(2, 50), scores=st.lists(st.floats(-5, 5), min_size=50))
def test_no_prediction_has_less_loss_than_the_bound(smoothing: float, num_classes: int, scores: list[float]) -> None:
    exponents = [math.exp(score) for score in scores[:num_classes]]
    logs = [math.log(value / sum(exponents)) for value in exponents]
    loss = -(1 - smoothing) * logs[0] - smoothing / num_classes * sum(logs)
    assert loss >= smallest_smoothed_loss(smoothing, num_classes) - 1e-12
    right = logs[0] == max(logs)
    assert -logs[0] >= smallest_top_1_loss(float(right)) - 1e-12


def test_the_least_smoothed_loss_is_the_entropy_of_the_labels() -> None:
    assert smallest_smoothed_loss(0.1, 10) == pytest.approx(-0.91 * math.log(0.91) - 0.09 * math.log(0.01))
    assert smallest_smoothed_loss(0.0, 1000) == 0
    assert smallest_smoothed_loss(1.0, 1000) == pytest.approx(math.log(1000))
