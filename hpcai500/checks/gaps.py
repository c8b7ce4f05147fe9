"""Gaps: the ranked clock of every rank is full of what the rank says it did.

Between two lines lies what the later one tells of. What is left is unexplained: the step table that is gathered and
written after an epoch, a look up from the steps, the wait for rank 0. In runs of this package that is a few tenths of
a second [eight runs of size mini: 0.1 to 0.4 s of 87 to 177 s; size smoke on a busy machine: 0.3 s of 6 s].
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from hpcai500.checks.case import Case
from hpcai500.checks.times import NS_PER_S, duration_of
from hpcai500.events import Evaluation, EvaluationShard
from hpcai500.finding import Finding
from hpcai500.ledger_reader import Entry
from hpcai500.record import RankLedger, Segment

UNEXPLAINED_SHARE = 0.02  # of a rank's clock [ours]
UNEXPLAINED_NS = 5 * NS_PER_S  # ... or so much, in a run that takes seconds on a busy machine [ours]


class Span(NamedTuple):
    """Some time, in ns."""

    begin_ns: int
    end_ns: int

    def overlap_ns(self, other: Span) -> int:
        """How much of it is in both."""
        return max(0, min(self.end_ns, other.end_ns) - max(self.begin_ns, other.begin_ns))


def check_gaps(case: Case) -> list[Finding]:
    """All but a small part of a rank's clock is explained: by what it timed, or by waiting for an evaluation's end."""
    findings = []
    for run in case.completed:
        for segment in run.record.segments:
            waits = _evaluation_waits(segment)
            for ledger in segment.ledgers:
                entries = _clock_entries(ledger)
                if not entries:
                    continue  # it ended before it trained
                clock_ns = entries[-1].time_ns - entries[0].time_ns
                allowed_ns = max(UNEXPLAINED_NS, int(UNEXPLAINED_SHARE * clock_ns))
                gaps = list(_gaps(entries, waits))
                unexplained_ns = sum(gap_ns for gap_ns, _ in gaps)
                if unexplained_ns > allowed_ns:
                    longest_ns, line = max(gaps)
                    expected = f"at most {allowed_ns} ns of the clock's {clock_ns} without a reason"
                    found = f"{unexplained_ns} ns, the longest before this line, {longest_ns} ns"
                    findings.append(Finding("times.gaps", f"{ledger.place}:{line}", expected, found))
    return findings


def _clock_entries(ledger: RankLedger) -> list[Entry]:
    """The lines from clock_start to clock_stop, or to the last one of a segment that was cut."""
    events = [entry.event for entry in ledger.entries]
    if "clock_start" not in events:
        return []
    last = "clock_stop" if "clock_stop" in events else "run_close"
    end = len(events) if last not in events else events.index(last) + (last == "clock_stop")
    return ledger.entries[events.index("clock_start") : end]


def _evaluation_waits(segment: Segment) -> dict[int, list[Span]]:
    """By epoch, when ranks whose shard is done wait: for the last shard, then for rank 0 to judge."""
    shards: dict[int, Span] = {}
    waits: dict[int, list[Span]] = {}
    for ledger in segment.ledgers:
        for entry in ledger.all_entries_of(EvaluationShard, Evaluation):
            if isinstance(entry.value, EvaluationShard):
                first = shards.get(entry.value.epoch, Span(entry.time_ns, entry.time_ns))
                span = Span(min(first.begin_ns, entry.time_ns), max(first.end_ns, entry.time_ns))
                shards[entry.value.epoch] = span
            elif isinstance(entry.value, Evaluation):
                judging = Span(entry.time_ns - entry.value.duration_ns, entry.time_ns)
                waits.setdefault(entry.value.epoch, []).append(judging)
    for epoch, span in shards.items():
        waits.setdefault(epoch, []).append(span)
    return waits


def _gaps(entries: list[Entry], waits: dict[int, list[Span]]) -> Iterator[tuple[int, int]]:
    """Time before a line that no line explains, in ns, and the number of the line."""
    for before, entry in itertools.pairwise(entries):
        end_ns = entry.time_ns - duration_of(entry.value)
        gap_ns = end_ns - before.time_ns
        if gap_ns > 0 and isinstance(before.value, EvaluationShard):
            gap = Span(before.time_ns, end_ns)
            gap_ns -= sum(gap.overlap_ns(wait) for wait in waits.get(before.value.epoch, []))
        if gap_ns > 0:
            yield gap_ns, entry.line
