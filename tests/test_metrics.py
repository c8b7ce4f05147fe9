from __future__ import annotations

import csv
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcai500 import flop_forms, metrics
from hpcai500.edition import RULES_FOLDER, load_edition

OFFICIAL = load_edition().workload("resnet50").size("official")
FRACTIONS = st.floats(0.01, 1)
POSITIVE = st.floats(1e-3, 1e6)


def published_rows() -> list[dict[str, str]]:
    text = (RULES_FOLDER / "data" / "hpcai500_ranking_2020.csv").read_text()
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def reproduce(row: dict[str, str], exponent: float) -> float:
    """The score of a published row in 1e15 flop/s, by the formulas of this package."""
    assert OFFICIAL.flop_per_sample_2020 is not None
    wall_s = 60 * float(row["minutes"])
    rate = metrics.flops_2020(OFFICIAL.flop_per_sample_2020, OFFICIAL.epochs, OFFICIAL.num_train_samples, wall_s)
    # The quality of Google's row cannot be read in the stored page; the file's remark says what reproduces it.
    quality = float(row["top1_percent"] or 76.3) / 100
    return metrics.vflops(rate, quality, OFFICIAL.target_quality, exponent) / 1e15


def test_eight_of_nine_published_rows_reproduce_within_1_7_percent_with_n_10() -> None:
    rows = published_rows()
    assert len(rows) == 9
    wrong = [
        row["system"]
        for row in rows
        if not math.isclose(reproduce(row, 10), float(row["vpflops_published"]), rel_tol=0.017)
    ]
    assert wrong == ["Facebook"]


def test_the_published_rows_do_not_reproduce_with_n_5() -> None:
    errors = [reproduce(row, 5) / float(row["vpflops_published"]) - 1 for row in published_rows()]
    assert statistics.median(errors) > 0.02


@pytest.mark.parametrize(
    ("image_size", "num_classes", "variant", "forward", "training"),
    [  # torch.utils.flop_counter on this package's model
        (224, 1000, "v1.5", 8_178_368_512, 24_299_077_632),
        (224, 1000, "v1", 7_715_946_496, 22_911_811_584),
        (75, 10, "v1.5", 1_099_871_744, 3_272_444_928),
        (64, 10, "v1.5", 667_328_512, 1_982_717_952),
        (64, 10, "v1", 629_579_776, 1_869_471_744),
    ],
)
def test_flop_in_closed_form_is_what_the_flop_counter_counts(
    image_size: int, num_classes: int, variant: str, forward: int, training: int
) -> None:
    assert flop_forms.resnet50_flop(image_size, num_classes, variant=variant) == (forward, training)


@given(flop=POSITIVE, duration_s=POSITIVE, target=FRACTIONS, exponent=st.floats(0, 20))
def test_vflops_at_the_target_is_flops(flop: float, duration_s: float, target: float, exponent: float) -> None:
    rate = metrics.flops(flop, duration_s)
    assert metrics.vflops(rate, target, target, exponent) == rate


@given(quality=FRACTIONS, target=FRACTIONS, factor=st.floats(1.001, 2))
def test_vflops_grows_with_quality_to_the_power_n(quality: float, target: float, factor: float) -> None:
    before, after = (metrics.vflops(1e15, q, target, 5) for q in (quality, factor * quality))
    assert after / before == pytest.approx(factor**5)


def test_time_to_quality_is_that_of_the_first_evaluation_at_the_target() -> None:
    times, qualities = [10.0, 20.0, 30.0, 40.0], [0.1, 0.5, 0.7, 0.4]
    assert metrics.time_to_quality(times, qualities, 0.5) == 20
    assert metrics.time_to_quality(times, qualities, 0.6) == 30
    assert metrics.time_to_quality(times, qualities, 0.71) is None
    assert metrics.interpolated_time_to_quality(times, qualities, 0.6) == pytest.approx(25)
    assert metrics.interpolated_time_to_quality(times, qualities, 0.1) == 10
    assert metrics.interpolated_time_to_quality(times, qualities, 0.71) is None


CURVES = st.lists(FRACTIONS, min_size=1, max_size=20)


@given(qualities=CURVES, target=FRACTIONS)
def test_the_interpolated_time_lies_between_the_evaluations_around_it(qualities: list[float], target: float) -> None:
    times = [float(epoch) for epoch in range(1, len(qualities) + 1)]
    whole = metrics.time_to_quality(times, qualities, target)
    fine = metrics.interpolated_time_to_quality(times, qualities, target)
    if whole is None:
        assert fine is None
    else:
        assert fine is not None
        assert max(1.0, whole - 1) <= fine <= whole


def test_variation_is_sample_standard_deviation_over_mean() -> None:
    assert metrics.variation([2.0, 4.0]) == pytest.approx(math.sqrt(2) / 3)
    assert metrics.variation([5.0]) is None
    assert metrics.variation([0.0, 0.0]) is None


VALUES = st.lists(POSITIVE, min_size=1, max_size=9)


@given(values=VALUES, factor=st.floats(0.1, 10))
def test_variation_does_not_depend_on_the_unit(values: list[float], factor: float) -> None:
    before, after = metrics.variation(values), metrics.variation([factor * value for value in values])
    if len(values) == 1:
        assert before is after is None
    else:
        assert after == pytest.approx(before, rel=1e-6, abs=1e-9)


@given(values=VALUES, random=st.randoms())
def test_the_interval_holds_the_median_and_does_not_depend_on_order(values: list[float], random: object) -> None:
    low, high = metrics.bootstrap_interval(values, num_resamples=200)
    assert min(values) <= low <= metrics.median(values) <= high <= max(values)
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert metrics.bootstrap_interval(shuffled, num_resamples=200) == (low, high)


def test_the_interval_is_the_same_on_every_machine() -> None:
    assert metrics.bootstrap_interval([1.0, 2.0, 4.0, 8.0, 16.0]) == (1.0, 16.0)
    low, high = metrics.bootstrap_interval([10.0, 10.5, 11.0, 9.5, 9.0, 10.2, 10.1])
    assert (low, high) == (9.5, 10.5)


def test_the_interval_covers_a_median_about_as_often_as_it_says() -> None:
    # For distinct values the interval's ends are ranks; how often ranks cover the population's median is binomial.
    low, high = metrics.bootstrap_interval([float(rank) for rank in range(1, 16)])
    below = sum(math.comb(15, count) for count in range(math.ceil(low))) / 2**15
    above = sum(math.comb(15, count) for count in range(math.floor(high), 16)) / 2**15
    assert 0.9 < 1 - below - above < 0.98  # the percentile bootstrap is known to promise a little too much


@pytest.mark.parametrize(
    ("values", "window", "expected"),
    [
        ([3.0], 5, 3.0),
        ([5.0, 1.0, 3.0, 2.0, 4.0], 5, 3.0),
        ([1.0, 2.0, 3.0], 5, 2.0),  # too few for a window
        ([9.0, 9.0, 9.0, 0.0, 0.0, 0.0], 3, 4.5),  # medians 9, 9, 0, 0
        ([9.0, 0.0, 9.0, 0.0, 9.0, 0.0], 3, 4.5),  # medians 9, 0, 9, 0
        ([9.0, 9.0, 0.0, 9.0, 9.0], 3, 9.0),  # one failure in three runs does not move a median
    ],
)
def test_the_median_over_windows_takes_in_all_runs_in_their_order(
    values: list[float], window: int, expected: float
) -> None:
    assert metrics.window_median(values, window) == expected


def test_choosing_a_good_window_is_not_possible() -> None:
    good_luck = [10.0, 10.0, 10.0]
    assert metrics.window_median([*good_luck, *[5.0] * 20], 3) == 5.0


def test_the_interval_of_a_window_median_holds_it_and_knows_of_failures() -> None:
    scores = [10.0, 10.2, 9.9, 10.1, 0.0, 10.3, 10.0]
    low, high = metrics.bootstrap_interval(scores, window=5)
    assert low <= metrics.window_median(scores, 5) <= high
    assert metrics.bootstrap_interval(scores, window=7) == metrics.bootstrap_interval(scores)
    assert metrics.bootstrap_interval([10.0, 0.0, 0.0], window=3)[0] == 0.0


@pytest.mark.parametrize(
    ("noise", "limit", "num_runs", "more"),
    [(0.05, 0.05, 5, 0), (0.1, 0.05, 5, 15), (0.051, 0.05, 5, 1), (1.0, 0.05, 2, 798), (1e300, 0.05, 5, 10**6)],
)
def test_an_interval_narrows_with_the_square_root_of_the_runs(
    noise: float, limit: float, num_runs: int, more: int
) -> None:
    assert metrics.more_runs_needed(noise, limit, num_runs) == more


@pytest.mark.parametrize(
    ("distance", "degrees", "probability"),
    [  # Student's table: R. A. Fisher, Statistical Methods for Research Workers, table IV
        (6.314, 1, 0.05),
        (31.821, 1, 0.01),
        (2.920, 2, 0.05),
        (2.353, 3, 0.05),
        (5.893, 7, 0.0003),
        (2.998, 7, 0.01),
        (1.753, 15, 0.05),
        (2.750, 30, 0.005),
    ],
)
def test_student_s_tail_is_that_of_the_tables(distance: float, degrees: int, probability: float) -> None:
    assert metrics.student_tail(distance, degrees) == pytest.approx(probability, rel=0.01)


@given(distance=st.floats(-30, 30), degrees=st.integers(1, 60))
def test_student_s_tail_is_the_integral_of_its_density(distance: float, degrees: int) -> None:
    """Simpson's rule over the density, from 0 on, where half the probability lies."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    steps = 2000
    width = distance / steps
    density = [scale * (1 + (width * step) ** 2 / degrees) ** (-(degrees + 1) / 2) for step in range(steps + 1)]
    integral = width / 3 * (density[0] + 4 * sum(density[1::2]) + 2 * sum(density[2:-1:2]) + density[-1])
    assert metrics.student_tail(distance, degrees) == pytest.approx(0.5 - integral, abs=1e-7)


@given(values=st.lists(st.floats(-100, 100), min_size=2, max_size=30), factor=st.floats(0.1, 10))
def test_a_rank_correlation_sees_order_only(values: list[float], factor: float) -> None:
    found = metrics.rank_correlation(values, values)
    assert found is None if len(set(values)) == 1 else found == pytest.approx(1)
    distinct = [float(value) for value in range(len(values))]
    cubes = [factor * value**3 + 7 for value in distinct]
    assert metrics.rank_correlation(distinct, cubes) == pytest.approx(1)
    assert metrics.rank_correlation(distinct, cubes[::-1]) == pytest.approx(-1)


def test_a_rank_correlation_with_equal_values_is_spearman_s() -> None:
    # ranks 1.5 1.5 3 4 against 2 1 3 4: 4.5 / sqrt(4.5 x 5)
    assert metrics.rank_correlation([5.0, 5.0, 6.0, 9.0], [2.0, 1.0, 3.0, 4.0]) == pytest.approx(4.5 / math.sqrt(22.5))
