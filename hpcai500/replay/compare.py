"""Compares what replayed ranks lost with what the ledgers say, window by window.

A replayed rank writes a window a step; added in their order they give the recorded windows to the bit, since that is
how hpcai500/account.py added them.

On another kind of machine sums come in another order, and training amplifies the difference: in the first steps of
ResNet-50 tenfold a step, from 1e-7 to a per cent after five and to tens of per cent after twenty; late in training,
with small learning rates, to a thousandth (docs/replay.rst has the figures). No constant would be an envelope for both.
So the steps are replayed a second time with the tensors in another memory format, which changes nothing but the order
of sums, and the difference between the two replays tells what order is worth in just these steps.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hpcai500.events import Window
from hpcai500.finding import Finding
from hpcai500.record import RankLedger, RunRecord
from hpcai500.replay.stretch import Stretch

# A run on another machine came apart from a replay at most 1.6 times as far as the control had one step later: measured
# between instruction sets, numbers of threads and memory formats, early and late in training (docs/replay.rst). Five
# times is allowed, and always what the losses of a first step may differ, whose forward pass alone is in another order.
ENVELOPE_FACTOR, ENVELOPE_FLOOR = 5.0, 1e-5
GROWTH_A_STEP = 10.0  # at most, and taken where the control does not go one step further
RATE_TOLERANCE = 1e-12  # a cosine of another C library


@dataclass(frozen=True)
class Sums:
    """What some steps add up to on one rank."""

    loss_sum: float
    samples: int
    learning_rate: float


@dataclass(frozen=True)
class WindowPair:
    """A recorded window, and what the same steps were when they were replayed.

    Attributes:
        place: of the window: file and line.
        steps: of the epoch, that it holds.
        recorded, replayed: what they add up to.
    """

    place: str
    steps: range
    recorded: Sums
    replayed: Sums

    @property
    def is_equal(self) -> bool:
        """Whether the losses are equal to the bit."""
        return self.recorded.loss_sum == self.replayed.loss_sum

    @property
    def difference(self) -> float:
        """Relative difference of the losses."""
        return relative_difference(self.recorded.loss_sum, self.replayed.loss_sum)


def relative_difference(left: float, right: float) -> float:
    """Of two numbers that are not negative, relative to the larger one; 0 for two zeros."""
    return abs(left - right) / max(left, right) if left != right else 0.0


def pair_windows(stretch: Stretch, replayed: RunRecord) -> list[list[WindowPair]]:
    """The windows of each rank, each with the steps that were replayed."""
    return [
        _pair_rank(stretch, ledger, other)
        for ledger, other in zip(stretch.segment.ledgers, replayed.ledgers, strict=True)
    ]


def _pair_rank(stretch: Stretch, ledger: RankLedger, replayed: RankLedger) -> list[WindowPair]:
    steps = {window.first_step: window for window in replayed.values(Window)}
    lines = {id(entry.value): entry.line for entry in ledger.entries_of(Window)}
    pairs = []
    for window in stretch.windows(ledger):
        mine = [steps[window.first_step + index] for index in range(window.num_steps)]
        recorded = Sums(window.loss_sum, window.samples, window.learning_rate)
        loss_sum = 0.0
        for step in mine:
            loss_sum += step.loss_sum  # one after the other, as account.py does; sum() compensates since Python 3.12
        sums = Sums(loss_sum, sum(step.samples for step in mine), mine[-1].learning_rate)
        place = f"{stretch.place}/{ledger.place}:{lines[id(window)]}"
        pairs.append(WindowPair(place, range(window.first_step, window.first_step + window.num_steps), recorded, sums))
    return pairs


def step_losses(replayed: RunRecord) -> list[dict[int, float]]:
    """The loss of each replayed step, by rank and number of the step."""
    return [{window.first_step: window.loss_sum for window in ledger.values(Window)} for ledger in replayed.ledgers]


class Envelope:
    """How far losses may be apart, by step: from two replays of the same steps with sums in different order.

    Args:
        first: losses of all ranks by step, one step further than what is compared where the epoch has one.
        second: those of the other replay.
    """

    def __init__(self, first: Sequence[Mapping[int, float]], second: Sequence[Mapping[int, float]]) -> None:
        steps = sorted(first[0])
        apart = [
            max(relative_difference(mine[step], other[step]) for mine, other in zip(first, second, strict=True))
            for step in steps
        ]
        largest = list(itertools.accumulate(apart, max))  # what has come apart does not come together again
        ahead = [*largest[1:], GROWTH_A_STEP * largest[-1]]
        self._allowed = dict(zip(steps, (max(ENVELOPE_FLOOR, ENVELOPE_FACTOR * bound) for bound in ahead), strict=True))

    def of(self, steps: Iterable[int]) -> float:
        """The relative difference that is allowed to the sum of the losses of some steps: the mean of theirs."""
        return statistics.fmean(self._allowed[step] for step in steps)


def compare_losses(pairs: Sequence[Sequence[WindowPair]], envelope: Envelope | None) -> list[Finding]:
    """A finding for each rank of which a loss or a learning rate is another; names the first such window.

    Args:
        pairs: of all ranks.
        envelope: how far losses may be apart; None to demand equal bits.
    """
    findings = []
    for rank in pairs:
        apart = [pair for pair in rank if not _agrees(pair, envelope)]
        if apart:
            first = apart[0]
            bound = f"within a relative difference of {envelope.of(first.steps):.1e}" if envelope else "to the bit"
            expected = f"{_loss_and_rate(first.replayed)} {bound}, as replayed"
            found = f"{_loss_and_rate(first.recorded)}, and {len(apart)} of {len(rank)} windows of this rank differ"
            findings.append(Finding("replay.losses", f"{first.place}:loss_sum", expected, found))
    return findings


def _agrees(pair: WindowPair, envelope: Envelope | None) -> bool:
    rates = pair.recorded.learning_rate, pair.replayed.learning_rate
    allowed = envelope.of(pair.steps) if envelope else 0.0
    return pair.difference <= allowed and math.isclose(*rates, rel_tol=RATE_TOLERANCE)


def _loss_and_rate(sums: Sums) -> str:
    return f"losses that add up to {sums.loss_sum!r} at learning rate {sums.learning_rate!r}"


def compare_samples(pairs: Sequence[Sequence[WindowPair]]) -> list[Finding]:
    """A finding for each rank that used another number of samples; which ones they were the verifier knows already."""
    findings = []
    for rank in pairs:
        other = next((pair for pair in rank if pair.recorded.samples != pair.replayed.samples), None)
        if other is not None:
            expected, found = f"{other.replayed.samples}, as replayed", f"{other.recorded.samples}"
            findings.append(Finding("replay.data", f"{other.place}:samples", expected, found))
    return findings
