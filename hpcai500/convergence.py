"""Reference convergence points: how many epochs honest training takes to a quality, and whether somebody took fewer.

Epochs to a quality depend on the batch size. Of the points of one quality only the *lower convex envelope* counts: a
point above the line through its neighbours is a recipe that was tuned badly, and no bound for anybody. Between points
of the envelope mean and standard deviation are interpolated. Beyond its ends:

* above the largest batch size the largest point holds, since a larger batch never needs fewer epochs;
* below the smallest either the smallest point holds, where epochs no longer depend on the batch size, or the number of
  steps does, since a smaller batch never needs fewer steps. (Shallue et al., "Measuring the Effects of Data Parallelism
  on Neural Network Training", JMLR 20, 2019, section 4.1 and figure 1: steps fall with the batch size, at most in
  proportion to it, and then no more.)

The test is one-sided as that of MLPerf's reference convergence points (training_rules, "Reference Convergence Points"),
with one difference: the standard deviation is the references' alone and not pooled with the submission's. A forger
could otherwise widen the bound by runs that scatter: with four runs of 35 epochs and one of 5, MLPerf's accepts what
this refuses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from hpcai500 import metrics

Probability = Annotated[float, Meta(gt=0, lt=1)]


class Point(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Epochs to ``quality`` with a global batch of ``batch_size``: mean and sample standard deviation of some runs."""

    quality: Probability
    batch_size: Annotated[int, Meta(ge=1)]
    num_runs: Annotated[int, Meta(ge=2, le=1000)]
    mean_epochs: Annotated[float, Meta(gt=0)]
    std_epochs: Annotated[float, Meta(ge=0)]


class Reference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of how a workload learns, and for which submissions it holds (rules/convergence.toml).

    Attributes:
        workload, size, levels, data_sources: of the submissions for which it holds.
        any_recipe: whether it holds whatever the settings; else only where those that shape learning are the defaults.
        counted: epochs of the first evaluation at or above the quality ("evaluations"), or where the line through the
            evaluations, from ``chance_quality`` after 0 epochs, meets it ("interpolated").
        chance_quality: of a model that has learnt nothing.
        below_smallest: what a batch smaller than the smallest needs no less of.
        highest_quality: that no evaluation can have passed; null if none is known.
        source: where the figures are from.
        points: reference convergence points, of several qualities and batch sizes.
    """

    workload: str
    size: str
    levels: tuple[str, ...]
    data_sources: tuple[str, ...]
    any_recipe: bool
    counted: Literal["evaluations", "interpolated"]
    chance_quality: Annotated[float, Meta(ge=0, lt=1)]
    below_smallest: Literal["epochs", "steps"]
    highest_quality: Probability | None = None
    source: str
    points: tuple[Point, ...] = ()

    def at(self, batch_size: int) -> list[Point]:
        """What the reference says of a batch size: a point of each quality that it knows."""
        qualities = sorted({point.quality for point in self.points})
        return [
            interpolate(
                [point for point in self.points if point.quality == quality],
                batch_size,
                below_smallest=self.below_smallest,
            )
            for quality in qualities
        ]

    def epochs_to(self, quality: float, epochs: Sequence[float], qualities: Sequence[float]) -> float | None:
        """Epochs to a quality, counted as those of the reference; None if no evaluation reached it."""
        if self.counted == "evaluations":
            return metrics.time_to_quality(epochs, qualities, quality)
        return metrics.interpolated_time_to_quality([0.0, *epochs], [self.chance_quality, *qualities], quality)


class Convergence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """rules/convergence.toml.

    Attributes:
        invalid_below: probability of as few epochs by chance below which a submission is invalid, all its points
            together.
        unusual_below: the same, below which it is warned of.
        smallest_relative_std: standard deviations of the references count as at least this part of their mean.
        not_of_the_recipe: settings of layer 8 that may differ where a reference holds for the default recipe only.
        references: all that is known.
    """

    invalid_below: Probability
    unusual_below: Probability
    smallest_relative_std: Probability
    not_of_the_recipe: tuple[str, ...]
    references: tuple[Reference, ...]

    def probability(self, point: Point, epochs: Sequence[float]) -> float:
        """Probability that runs like the references' take so few epochs in the mean.

        Student's t with the references' standard deviation s alone: (reference mean - mean) / (s x sqrt(1/n + 1/m)),
        of n - 1 degrees of freedom for n reference runs, m runs here.
        """
        std = max(point.std_epochs, self.smallest_relative_std * point.mean_epochs)
        mean = sum(epochs) / len(epochs)
        distance = (point.mean_epochs - mean) / (std * math.sqrt(1 / point.num_runs + 1 / len(epochs)))
        return metrics.student_tail(distance, point.num_runs - 1)


def lower_envelope(points: Sequence[Point]) -> list[Point]:
    """The points of one quality that lie on the lower convex envelope of mean epochs over batch size, by batch size.

    It begins at the point of the fewest epochs: smaller batches that took more were tuned badly. Andrew's monotone
    chain (A. M. Andrew, Information Processing Letters 9, 1979).
    """
    ordered = sorted(points, key=lambda point: (point.batch_size, point.mean_epochs))
    fewest = min(point.mean_epochs for point in ordered)
    first = max(index for index, point in enumerate(ordered) if point.mean_epochs == fewest)
    envelope: list[Point] = []
    for point in ordered[first:]:
        if envelope and envelope[-1].batch_size == point.batch_size:
            continue  # the one before has fewer epochs
        while len(envelope) >= 2 and _slope(envelope[-2], envelope[-1]) >= _slope(envelope[-2], point):
            envelope.pop()
        envelope.append(point)
    return envelope


def _slope(left: Point, right: Point) -> float:
    return (right.mean_epochs - left.mean_epochs) / (right.batch_size - left.batch_size)


def interpolate(
    points: Sequence[Point], batch_size: int, *, below_smallest: Literal["epochs", "steps"] = "epochs"
) -> Point:
    """The point of another batch size on the envelope of points of one quality; above stands what holds beyond it."""
    envelope = lower_envelope(points)
    smallest, largest = envelope[0], envelope[-1]
    if batch_size >= largest.batch_size:
        return largest
    if batch_size <= smallest.batch_size:
        part = batch_size / smallest.batch_size if below_smallest == "steps" else 1.0
        return _mix(smallest, smallest, 0.0, batch_size, part)
    above = next(index for index, point in enumerate(envelope) if point.batch_size > batch_size)
    left, right = envelope[above - 1], envelope[above]
    if left.batch_size == batch_size:
        return left
    weight = (batch_size - left.batch_size) / (right.batch_size - left.batch_size)
    return _mix(left, right, weight, batch_size, 1.0)


def _mix(left: Point, right: Point, weight: float, batch_size: int, factor: float) -> Point:
    """Between two points, at a part ``weight`` of the way; of runs as many as the poorer of the two has."""
    return Point(
        quality=left.quality,
        batch_size=batch_size,
        num_runs=min(left.num_runs, right.num_runs),
        mean_epochs=factor * ((1 - weight) * left.mean_epochs + weight * right.mean_epochs),
        std_epochs=factor * ((1 - weight) * left.std_epochs + weight * right.std_epochs),
    )


def smallest_smoothed_loss(label_smoothing: float, num_classes: int) -> float:
    """The least cross-entropy that any prediction can have against smoothed labels: the entropy of the labels.

    With smoothing e and C classes the true class counts 1 - e + e/C and every other e/C (Szegedy et al. 2016, arXiv
    1512.00567, section 7); cross-entropy is entropy plus a divergence that is never negative (Gibbs).
    """
    other = label_smoothing / num_classes
    parts = ((1, 1 - label_smoothing + other), (num_classes - 1, other))
    return -sum(number * part * math.log(part) for number, part in parts if part > 0)


def smallest_top_1_loss(top_1: float) -> float:
    """The least mean cross-entropy, without smoothing, of predictions of which the part ``top_1`` is right.

    A sample that is wrong has a class at least as probable as the true one, so the true one's probability is at most
    1/2 and its loss at least ln 2; that of a right one is at least 0.
    """
    return (1 - top_1) * math.log(2)
