"""The figures of the benchmark as pure functions of counts and times.

Conventions: ``flop`` is a count, ``flops`` a rate in flop/s; a multiply-add is 2 flop. Times are in seconds, qualities
fractions of 1. Sources are those of rules/workloads/resnet50.toml.
"""

from __future__ import annotations

import functools
import math
import random
import statistics
from collections.abc import Sequence

STRAGGLER_RATIO = 1.1  # [ours] of a rank's own time over the median: one in ten percent is what a quiet machine shows


def flops(flop: float, duration_s: float) -> float:
    """Rate of ``flop`` operations in ``duration_s`` seconds, in flop/s."""
    assert duration_s > 0
    return flop / duration_s


def vflops(flops: float, achieved_quality: float, target_quality: float, exponent: float) -> float:
    """Valid FLOPS: flops x (achieved quality / target quality) ^ exponent, in flop/s.

    Source: the BenchCouncil talk of 2021 ("AIBench Scenario"), with exponent 5 for image classification; the published
    ranking of 2020 reproduces with 10. No cap on the ratio is stated anywhere.
    """
    assert target_quality > 0
    return flops * math.pow(achieved_quality / target_quality, exponent)


def flops_2020(flop_per_sample: float, epochs: int, num_train_samples: int, duration_s: float) -> float:
    """Rate in the convention of the published ranking of 2020: a constant a sample, all epochs of the rules, in flop/s.

    For ResNet-50 23e9 x 90 x 1,281,167 / wall time; never to be mixed with counted flop.
    """
    return flops(flop_per_sample * epochs * num_train_samples, duration_s)


def time_to_quality(times_s: Sequence[float], qualities: Sequence[float], target: float) -> float | None:
    """Time of the first evaluation at or above the target, in the unit of ``times_s``; None if none reached it.

    Works for epochs in place of times.
    """
    reached = (time for time, quality in zip(times_s, qualities, strict=True) if quality >= target)
    return next(reached, None)


def interpolated_time_to_quality(times_s: Sequence[float], qualities: Sequence[float], target: float) -> float | None:
    """Time at which the line through the evaluations first meets the target; None if no evaluation reached it.

    Linear between an evaluation below the target and the next, which is at or above it: finer than the period of
    evaluation, on which variation over seeds would otherwise be quantised. Where the first evaluation is already at the
    target nothing lies before it, and its own time is returned.
    """
    before: tuple[float, float] | None = None
    for time, quality in zip(times_s, qualities, strict=True):
        if quality >= target:
            if before is None:
                return time
            return before[0] + (time - before[0]) * (target - before[1]) / (quality - before[1])
        before = time, quality
    return None


def variation(values: Sequence[float]) -> float | None:
    """Coefficient of variation: sample standard deviation (n - 1 in the denominator) over mean.

    None for fewer than two values or a mean of 0. The benchmark's own measure of repeatability, there of epochs to
    quality [recalled]; which standard deviation it means is stated nowhere, the sample one is our choice.
    """
    if len(values) < 2 or statistics.fmean(values) == 0:
        return None
    return statistics.stdev(values) / statistics.fmean(values)


def median(values: Sequence[float]) -> float:
    """Middle value; the mean of the middle two for an even number."""
    return float(statistics.median(values))


def window_median(values: Sequence[float], window: int) -> float:
    """Median over all windows of ``window`` consecutive values of each window's median.

    MLPerf lets a submitter make more runs than needed and choose one window of them (training_rules, "Scoring"); here
    nobody chooses, as all windows count. With no more values than a window has it is the plain median.
    """
    assert values
    assert window >= 1
    last = max(0, len(values) - window)
    return median([median(values[first : first + window]) for first in range(last + 1)])


def bootstrap_interval(
    values: Sequence[float],
    *,
    window: int | None = None,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 500,
) -> tuple[float, float]:
    """Percentile bootstrap confidence interval (Efron and Tibshirani 1993, section 13.3) of the median.

    With ``window`` it is that of ``window_median`` over runs whose order is chance, as it is among resampled ones.
    Deterministic: the same values in any order give the same interval on every machine. With few values it says little
    (with up to five it is their range), and with one it is that value twice.
    """
    assert values
    ordered = sorted(values)
    if window is None or window >= len(ordered):
        middles = _middles(len(ordered), num_resamples, seed)
        medians = sorted((ordered[low] + ordered[high]) / 2 for low, high in middles)
    else:
        resamples = _resamples(len(ordered), num_resamples, seed)
        medians = sorted(window_median([ordered[index] for index in resample], window) for resample in resamples)
    tail = (1 - confidence) / 2
    return _quantile(medians, tail), _quantile(medians, 1 - tail)


@functools.lru_cache(maxsize=8)
def _resamples(num_values: int, num_resamples: int, seed: int) -> list[list[int]]:
    """Which values each resample draws."""
    source = random.Random(seed)
    return [[int(source.random() * num_values) for _ in range(num_values)] for _ in range(num_resamples)]


@functools.lru_cache(maxsize=8)
def _middles(num_values: int, num_resamples: int, seed: int) -> list[tuple[int, int]]:
    """The middle two of each resample of sorted values, twice the same one for an odd number."""
    return [
        (ordered[(num_values - 1) // 2], ordered[num_values // 2])
        for ordered in map(sorted, _resamples(num_values, num_resamples, seed))
    ]


def more_runs_needed(noise: float, limit: float, num_runs: int) -> int:
    """How many more runs would bring an interval's half-width, as a part of the score, from ``noise`` to ``limit``.

    An interval narrows with the square root of the number of runs. 0 if it is narrow enough; at most 10^6.
    """
    if noise <= limit:
        return 0
    needed = num_runs * min(noise / limit, 1e3) ** 2
    return min(max(1, math.ceil(needed) - num_runs), 10**6)


def student_tail(distance: float, degrees: int) -> float:
    """Probability that Student's t of so many degrees of freedom exceeds ``distance``.

    The finite series for whole degrees, exact but for rounding: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    assert degrees >= 1
    if distance < 0:
        return 1 - student_tail(-distance, degrees)
    angle = math.atan(distance / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2
    term = total = (cosine if is_odd else 1.0) if degrees > 1 else 0.0
    for power in range(3 if is_odd else 2, degrees - 1, 2):
        term *= cosine * cosine * (power - 1) / power
        total += term
    within = 2 / math.pi * (angle + sine * total) if is_odd else sine * total
    return max(0.0, (1 - within) / 2)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's rank correlation, equal values at their mean rank; None where either does not vary.

    Ranks rather than values, so that a few outliers, such as the steps of a learning rate, decide nothing.
    """
    assert len(one) == len(other)
    ranks, others = _ranks(one), _ranks(other)
    middle = (len(ranks) + 1) / 2
    together = sum((a - middle) * (b - middle) for a, b in zip(ranks, others, strict=True))
    spreads = sum((a - middle) ** 2 for a in ranks) * sum((b - middle) ** 2 for b in others)
    return together / math.sqrt(spreads) if spreads else None


def _ranks(values: Sequence[float]) -> list[float]:
    """The rank of each value, from 1; equal ones share the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    first = 0
    while first < len(order):
        after = first + 1
        while after < len(order) and values[order[after]] == values[order[first]]:
            after += 1
        for place in range(first, after):
            ranks[order[place]] = (first + after + 1) / 2
        first = after
    return ranks


def _quantile(ordered: Sequence[float], fraction: float) -> float:
    """Quantile of sorted values, linear between the neighbours (Hyndman and Fan 1996, definition 7)."""
    position = fraction * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
