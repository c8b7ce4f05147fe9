"""Together: the ranks of a segment did in step what only all of them can do, on hosts that have each but once.

Only completed runs are looked at. Not covered: clocks that are apart by less than a second, or by less than a window
takes; a forger who moves all ranks alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from hpcai500.checks.case import Case
from hpcai500.checks.hosts import ledgers_by_host
from hpcai500.checks.times import CLOCK_STEP_NS, NS_PER_S
from hpcai500.events import Checkpoint, DataOpen, Evaluation, EvaluationShard, StartUp, Window
from hpcai500.finding import Finding
from hpcai500.ledger_reader import Entry
from hpcai500.record import RankLedger, Segment

SKEW_NS = NS_PER_S  # clocks of ranks apart; NTP keeps them within a hundredth, and the self-check asks for a twentieth
IN_STEP = (StartUp, Window, EvaluationShard, Evaluation, Checkpoint)
Key = tuple[str, int, int]
# What a rank did with all others: what it was, when it began at the latest, and when it had it behind it; None where
# the others do not wait for its beginning, or it does not wait for them.
Part = tuple[Key, int | None, int | None]


def check_skew(case: Case) -> list[Finding]:
    """No rank has behind it what another has not yet begun, where all ranks wait for each other.

    Every step ends with an exchange of gradients, so windows of the same steps overlap on all ranks; so do evaluations
    (which begin with one), checkpoints, and the wait before the clock starts. Rank 0 judges an evaluation when the
    shards of all ranks are there.
    """
    findings = []
    for run in case.completed:
        for segment in run.record.segments:
            worst = _worst_skew(segment)
            if worst is not None and worst.ahead_ns > SKEW_NS:
                expected = f"an end at the earliest when {worst.other} began with it, within {SKEW_NS} ns"
                found = f"{worst.ahead_ns} ns before"
                findings.append(Finding("times.skew", worst.place, expected, found))
    return findings


class Skew(NamedTuple):
    """By how much one rank ended before another began, where both stand."""

    ahead_ns: int
    place: str
    other: str


def _worst_skew(segment: Segment) -> Skew | None:
    if len(segment.ledgers) < 2:
        return None
    begins: dict[Key, tuple[int, str, int]] = {}  # the latest: time, place of the ledger, line
    ends: dict[Key, tuple[int, str, int]] = {}  # the earliest
    for ledger in segment.ledgers:
        for entry in ledger.all_entries_of(*IN_STEP):
            for key, begin_ns, end_ns in _parts(entry):
                if begin_ns is not None and (key not in begins or begin_ns > begins[key][0]):
                    begins[key] = (begin_ns, ledger.place, entry.line)
                if end_ns is not None and (key not in ends or end_ns < ends[key][0]):
                    ends[key] = (end_ns, ledger.place, entry.line)
    skews = [
        Skew(begin[0] - ends[key][0], f"{ends[key][1]}:{ends[key][2]}:time_ns", f"{begin[1]}:{begin[2]}")
        for key, begin in begins.items()
        if key in ends
    ]
    return max(skews, default=None)


def _parts(entry: Entry) -> Iterator[Part]:
    """The parts that a line tells of; a line is written when its rank has done what it says."""
    value, time_ns = entry.value, entry.time_ns
    if isinstance(value, Window):
        yield ((value.EVENT, value.epoch, value.first_step), time_ns - value.duration_ns, time_ns)
    elif isinstance(value, EvaluationShard):
        yield ((value.EVENT, value.epoch, 0), time_ns - value.duration_ns, time_ns)
        yield (("evaluation", value.epoch, 0), time_ns, None)
    elif isinstance(value, Evaluation):
        yield ((value.EVENT, value.epoch, 0), None, time_ns - value.duration_ns)
    elif isinstance(value, Checkpoint):
        yield ((value.EVENT, value.epoch, value.step), time_ns - value.duration_ns, time_ns)
    elif isinstance(value, StartUp):
        yield ((value.EVENT, 0, 0), time_ns - value.wait_ns, time_ns)


def check_boot(case: Case) -> list[Finding]:
    """The ranks of a host read one monotonic clock and one wall clock, so these are as far apart for all of them."""
    findings = []
    for run in case.completed:
        for segment in run.record.segments:
            for host, ledgers in ledgers_by_host(segment).items():
                booted_ns = [
                    ledger.opened.wall_ns - ledger.opened.monotonic_ns
                    for ledger in ledgers
                    if ledger.opened is not None
                ]
                if max(booted_ns) - min(booted_ns) > CLOCK_STEP_NS:
                    place = f"{ledgers[0].first_place}:monotonic_ns"
                    expected = f"one moment, within {CLOCK_STEP_NS} ns, at which {host} counted 0 on all of its ranks"
                    findings.append(Finding("times.boot", place, expected, f"{max(booted_ns) - min(booted_ns)} ns"))
    return findings


def check_hosts(case: Case) -> list[Finding]:
    """The hosts on which ranks opened the data are described in the run's system files, and none without ranks is."""
    findings = []
    for run in case.completed:
        if run.system is None:
            continue  # reading the run found that it is missing
        described = {node.host for system in (run.system, *run.later_systems) for node in system.nodes}
        hosts = [(ledger.opened.host, ledger) for ledger in run.record.ledgers if ledger.opened is not None]
        idle = described - {host for host, _ in hosts}
        unknown = {host for host, ledger in hosts if ledger.entries_of(DataOpen)} - described
        if idle or unknown:
            place = f"{run.place}/system.json:nodes"
            found = f"{sorted(idle)[:10]} without ranks, {sorted(unknown)[:10]} not described"
            findings.append(Finding("chain.hosts", place, "the hosts of all ranks", found[:1000]))
    return findings


def check_local_ranks(case: Case) -> list[Finding]:
    """The ranks of a host count their places there from 0, each once."""
    findings = []
    for run in case.completed:
        for segment in run.record.segments:
            if len(segment.ledgers) != segment.num_ranks:
                continue  # it ended before all ranks were there, and its work does not count
            for host, ledgers in ledgers_by_host(segment).items():
                found = sorted(_local_rank(ledger) for ledger in ledgers)
                if found != list(range(len(ledgers))):
                    place = f"{ledgers[0].first_place}:local_rank"
                    expected = f"0 to {len(ledgers) - 1} on host {host}, each once"
                    findings.append(Finding("chain.local_ranks", place, expected, f"{found[:100]}"))
    return findings


def _local_rank(ledger: RankLedger) -> int:
    return ledger.opened.local_rank if ledger.opened is not None else -1
