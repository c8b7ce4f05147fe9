"""Gaps: the ranked clock of every rank is full of what the rank says it did.

Between two lines lies what the later one tells of. What is left is unexplained: the step table that is gathered and
written after an epoch, a look up from the steps, the wait for rank 0. In runs of this package it is under 3 % of the
clock, and a few tenths of a second in short ones [measured on two cores].
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from hpcai500.checks.case import Case
from hpcai500.checks.times import NS_PER_S, duration_of
from hpcai500.events import ClockStart, Evaluation, EvaluationShard, RunClose
from hpcai500.finding import Finding
from hpcai500.ledger import Entry
from hpcai500.record import RankLedger, Segment

UNEXPLAINED_SHARE = 0.1  # of a rank's clock [ours]
UNEXPLAINED_NS = 5 * NS_PER_S  # ... or so much, in a run that takes seconds on a busy machine [ours]


class Span(NamedTuple):
    """Some time, in ns."""

    begin_ns: int
    end_ns: int

    def overlap_ns(self, other: Span) -> int:
        """How much of it is in both."""
        return max(0, min(self.end_ns, other.end_ns) - max(self.begin_ns, other.begin_ns))


class Gap(NamedTuple):
    """Time before a line that no line explains, in ns."""

    unexplained_ns: int
    line: int


def check_gaps(case: Case) -> list[Finding]:
    """All but a small part of a rank's clock is explained: by what it timed, or by waiting for an evaluation's end."""
    findings = []
    for run in case.completed:
        for segment in run.record.segments:
            waits = _evaluation_waits(segment)
            for ledger in segment.ledgers:
                gaps = list(_gaps(ledger, waits))
                unexplained_ns = sum(gap.unexplained_ns for gap in gaps)
                clock = _clock(ledger)
                if clock is None:
                    continue
                clock_ns = clock.end_ns - clock.begin_ns
                allowed_ns = max(UNEXPLAINED_NS, int(UNEXPLAINED_SHARE * clock_ns))
                if unexplained_ns > allowed_ns:
                    longest = max(gaps)
                    expected = f"at most {allowed_ns} ns of the clock's {clock_ns} without a reason"
                    found = f"{unexplained_ns} ns, the longest before this line, {longest.unexplained_ns} ns"
                    findings.append(Finding("times.gaps", f"{ledger.place}:{longest.line}", expected, found))
    return findings


def _clock_entries(ledger: RankLedger) -> Iterator[Entry]:
    """The lines from clock_start to clock_stop, or to the last one of a segment that was cut."""
    is_running = False
    for entry in ledger.entries:
        is_running = is_running or isinstance(entry.value, ClockStart)
        if isinstance(entry.value, RunClose):
            return
        if is_running:
            yield entry
        if entry.event == "clock_stop":
            return


def _clock(ledger: RankLedger) -> Span | None:
    entries = list(_clock_entries(ledger))
    return Span(entries[0].time_ns, entries[-1].time_ns) if entries else None


def _evaluation_waits(segment: Segment) -> dict[int, list[Span]]:
    """By epoch, when ranks whose shard is done wait: for the last shard, then for rank 0 to judge."""
    shards: dict[int, list[int]] = {}
    waits: dict[int, list[Span]] = {}
    for ledger in segment.ledgers:
        for entry in ledger.entries:
            if isinstance(entry.value, EvaluationShard):
                shards.setdefault(entry.value.epoch, []).append(entry.time_ns)
            elif isinstance(entry.value, Evaluation):
                judging = Span(entry.time_ns - entry.value.duration_ns, entry.time_ns)
                waits.setdefault(entry.value.epoch, []).append(judging)
    for epoch, ends_ns in shards.items():
        waits.setdefault(epoch, []).append(Span(min(ends_ns), max(ends_ns)))
    return waits


def _gaps(ledger: RankLedger, waits: dict[int, list[Span]]) -> Iterator[Gap]:
    for before, entry in itertools.pairwise(_clock_entries(ledger)):
        gap = Span(before.time_ns, entry.time_ns - duration_of(entry.value))
        unexplained_ns = gap.end_ns - gap.begin_ns
        if unexplained_ns > 0 and isinstance(before.value, EvaluationShard):
            unexplained_ns -= sum(gap.overlap_ns(wait) for wait in waits.get(before.value.epoch, []))
        if unexplained_ns > 0:
            yield Gap(unexplained_ns, entry.line)
