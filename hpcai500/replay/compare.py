"""Compares what replayed ranks lost with what the ledgers say, window by window.

A replayed rank writes a window a step; added in their order they give the recorded windows to the bit, since that is
how hpcai500/account.py added them.

On another kind of machine sums come in another order, and training amplifies the difference: in the first steps of
ResNet-50 tenfold a step, from 1e-6 to a per cent after five and to tens of per cent after twenty; late in training,
with small learning rates, hardly at all (docs/replay.rst has the figures). No constant would be an envelope for both.
So the steps are replayed a second time with the tensors in another memory format, which changes nothing but the order
of sums, and the difference between the two replays tells what order is worth in just these steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from hpcai500.events import EpochPart, Window
from hpcai500.finding import Finding
from hpcai500.record import RankLedger, RunRecord
from hpcai500.replay.stretch import Stretch

# How much more than the control two machines may differ, and how much they always may: ten times what was measured
# between instruction sets, numbers of threads and memory formats in the same steps (docs/replay.rst).
ENVELOPE_FACTOR, ENVELOPE_FLOOR = 10.0, 1e-5
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
        end: the first step of the epoch behind it.
        recorded, replayed: what they add up to.
    """

    place: str
    end: int
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
        end = window.first_step + window.num_steps
        mine = [steps[step] for step in range(window.first_step, end)]
        recorded = Sums(window.loss_sum, window.samples, window.learning_rate)
        loss_sum = 0.0
        for step in mine:
            loss_sum += step.loss_sum  # one after the other, as account.py does; sum() compensates since Python 3.12
        sums = Sums(loss_sum, sum(step.samples for step in mine), mine[-1].learning_rate)
        pairs.append(WindowPair(f"{ledger.place}:{lines[id(window)]}", end, recorded, sums))
    return pairs


def envelope(pairs: Sequence[Sequence[WindowPair]], control: Sequence[Sequence[WindowPair]]) -> dict[int, float]:
    """The relative difference that is allowed to windows, by their end.

    Args:
        pairs: of all ranks.
        control: the same, of a replay with sums in another order.
    """
    apart: dict[int, float] = {}
    for mine, other in zip(itertools.chain(*pairs), itertools.chain(*control), strict=True):
        difference = relative_difference(mine.replayed.loss_sum, other.replayed.loss_sum)
        apart[mine.end] = max(apart.get(mine.end, 0.0), difference)
    ends = sorted(apart)
    largest = itertools.accumulate((apart[end] for end in ends), max)  # what came apart does not come together again
    return {end: max(ENVELOPE_FLOOR, ENVELOPE_FACTOR * so_far) for end, so_far in zip(ends, largest, strict=True)}


def compare_losses(pairs: Sequence[Sequence[WindowPair]], allowed: dict[int, float] | None) -> list[Finding]:
    """A finding for each rank of which a loss or a learning rate is another; names the first such window.

    Args:
        pairs: of all ranks.
        allowed: the relative difference of losses that is allowed, by the window's end; None to demand equal bits.
    """
    findings = []
    for rank in pairs:
        apart = [pair for pair in rank if not _agrees(pair, 0.0 if allowed is None else allowed[pair.end])]
        if apart:
            first = apart[0]
            bound = "to the bit" if allowed is None else f"within a relative difference of {allowed[first.end]:.1e}"
            expected = f"{_loss_and_rate(first.replayed)} {bound}, as replayed"
            found = f"{_loss_and_rate(first.recorded)}, and {len(apart)} of {len(rank)} windows of this rank differ"
            findings.append(Finding("replay.losses", f"{first.place}:loss_sum", expected, found))
    return findings


def _agrees(pair: WindowPair, allowed: float) -> bool:
    rates = pair.recorded.learning_rate, pair.replayed.learning_rate
    return pair.difference <= allowed and math.isclose(*rates, rel_tol=RATE_TOLERANCE)


def _loss_and_rate(sums: Sums) -> str:
    return f"losses that add up to {sums.loss_sum!r} at learning rate {sums.learning_rate!r}"


def compare_samples(stretch: Stretch, replayed: RunRecord, pairs: Sequence[Sequence[WindowPair]]) -> list[Finding]:
    """A finding for each rank that used other samples, or another number of them."""
    findings = []
    for ledger, other, rank in zip(stretch.segment.ledgers, replayed.ledgers, pairs, strict=True):
        part, mine = stretch.part(ledger), other.value(EpochPart)
        if part is not None and mine is not None and part.sample_digest != mine.sample_digest:
            expected = f"sample_digest {mine.sample_digest}, as replayed"
            place = f"{ledger.place}:epoch_part[{part.epoch}].sample_digest"
            findings.append(Finding("replay.data", place, expected, part.sample_digest))
        other_number = next((pair for pair in rank if pair.recorded.samples != pair.replayed.samples), None)
        if other_number is not None:
            expected, found = f"{other_number.replayed.samples}, as replayed", f"{other_number.recorded.samples}"
            findings.append(Finding("replay.data", f"{other_number.place}:samples", expected, found))
    return findings
