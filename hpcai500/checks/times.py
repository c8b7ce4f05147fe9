"""Times: clocks run forward, agree with each other, and leave room for all that was done while they ran.

Only completed runs are looked at. Not covered: whether the times are physically possible on that machine; somebody who
rescales every time of every rank alike is not found out here.
"""

from __future__ import annotations

from hpcai500.checks.case import Case
from hpcai500.events import (
    Checkpoint,
    ClockStart,
    ClockStop,
    Evaluation,
    EvaluationShard,
    Event,
    RunClose,
    RunOpen,
    Window,
)
from hpcai500.finding import Finding
from hpcai500.ledger_reader import Entry

NS_PER_S = 10**9
SLACK_NS = 10**6  # rounding between two readings of one clock
LATE_LINE_NS = NS_PER_S  # between the end of a step and the line of its window, if the process has to wait for a core
CLOCK_STEP_NS = NS_PER_S  # a wall clock may be set by this much while a run lasts ...
LOOK_SLACK_NS = 60 * NS_PER_S
CREATED_SLACK_NS = 60 * NS_PER_S  # clocks of different machines
CLOCK_DRIFT = 1e-3  # ... and be slewed by this part of the time passed; adjtime's usual limit is 5e-4


def check_order_of_times(case: Case) -> list[Finding]:
    """No line of a ledger is older than the line before it, also where a resumed run goes on with a ledger."""
    findings = []
    for run in case.completed:
        last_ns: dict[int, int] = {}
        for ledger in run.record.ledgers:
            for entry in ledger.entries:
                before_ns = last_ns.get(ledger.rank, 0)
                if entry.time_ns < before_ns:
                    place = f"{ledger.place}:{entry.line}:time_ns"
                    findings.append(Finding("times.order", place, f"at least {before_ns}", f"{entry.time_ns}"))
                last_ns[ledger.rank] = entry.time_ns
    return findings


def check_clock(case: Case) -> list[Finding]:
    """The ranked clock of every rank runs for some time, and all ranks' clocks of a segment run at the same time."""
    findings = []
    for run in case.completed:
        for segment in run.record.segments:
            starts, stops = [], []
            for ledger in segment.ledgers:
                start_ns, stop_ns = ledger.time_ns(ClockStart), ledger.time_ns(ClockStop)
                if start_ns is None:
                    continue
                starts.append(start_ns)
                stops.append(ledger.entries[-1].time_ns if stop_ns is None else stop_ns)
                if stop_ns is not None and stop_ns <= start_ns:
                    place = f"{ledger.rank_place}.clock_stop"
                    findings.append(Finding("times.clock", place, f"after clock_start, {start_ns}", f"{stop_ns}"))
            if segment.until is None and max(starts) >= min(stops):
                expected = "clocks of all ranks that overlap"
                found = f"one starts at {max(starts)}, another has stopped at {min(stops)}"
                findings.append(Finding("times.clock", f"{run.place}/ledger", expected, found))
    return findings


def duration_of(event: Event) -> int:
    """How long what a line of the ranked clock tells of took, in ns; 0 if it has no duration."""
    return event.duration_ns if isinstance(event, (Window, EvaluationShard, Evaluation, Checkpoint)) else 0


def check_durations(case: Case) -> list[Finding]:
    """What a rank did follows one upon the other: no duration is longer than the time since what came before.

    A window begins when the last step of the window before ends, and that one's line may be written a little later.
    Everything else begins after the line before it.
    """
    findings = []
    for _, ledger in case.completed_ledgers:
        earliest_ns: int | None = None  # at which all that was done so far can be over
        before: Entry | None = None
        for entry in ledger.entries:
            if entry.event == ClockStart.EVENT:
                earliest_ns = entry.time_ns
            if earliest_ns is not None and before is not None and (duration_ns := duration_of(entry.value)):
                both_train = before.event == entry.event == Window.EVENT
                earliest_ns = max(earliest_ns, before.time_ns - (LATE_LINE_NS if both_train else 0))
                room_ns = entry.time_ns - earliest_ns
                earliest_ns += duration_ns
                if duration_ns > room_ns + SLACK_NS:
                    place = f"{ledger.place}:{entry.line}:duration_ns"
                    expected = f"at most {room_ns} ns, the time since what was done before"
                    findings.append(Finding("times.durations", place, expected, f"{duration_ns} ns"))
                    break
            before = entry
    return findings


def check_parts(case: Case) -> list[Finding]:
    """The parts of a window add up to its duration, to the nanosecond."""
    findings = []
    for _, ledger in case.completed_ledgers:
        for entry in ledger.all_entries_of(Window):
            window = entry.value
            assert isinstance(window, Window)
            parts_ns = window.data_wait_ns + window.forward_backward_ns + window.communication_ns + window.optimizer_ns
            if parts_ns != window.duration_ns:
                place = f"{ledger.place}:{entry.line}:duration_ns"
                expected = f"{parts_ns} ns, the sum of its parts"
                findings.append(Finding("times.parts", place, expected, f"{window.duration_ns} ns"))
    return findings


def check_wall(case: Case) -> list[Finding]:
    """Wall clock and monotonic clock agree: at opening, and as far as each has come at every later reading."""
    findings = []
    for _, ledger in case.completed_ledgers:
        for entry in ledger.all_entries_of(RunOpen, ClockStart, ClockStop, RunClose):
            assert isinstance(entry.value, RunOpen | ClockStart | ClockStop | RunClose)
            allowed_ns = CLOCK_STEP_NS + CLOCK_DRIFT * max(0, entry.time_ns - ledger.entries[0].time_ns)
            if isinstance(entry.value, RunOpen) and entry.value.wall_ns > entry.time_ns:
                place = f"{ledger.place}:{entry.line}:wall_ns"
                expected = f"at most {entry.time_ns}, since the ledger was opened before its first line was written"
                findings.append(Finding("times.wall", place, expected, f"{entry.value.wall_ns}"))
            elif abs(entry.value.wall_ns - entry.time_ns) > allowed_ns:
                place = f"{ledger.place}:{entry.line}:wall_ns"
                expected = f"{entry.time_ns} within {allowed_ns:.0f} ns (the monotonic clock)"
                findings.append(Finding("times.wall", place, expected, f"{entry.value.wall_ns}"))
    return findings


def check_checkpoints(case: Case) -> list[Finding]:
    """No rank trains much longer without a checkpoint than configured: their time is part of the ranked clock.

    The ranks look up from their steps together from time to time, and not while they evaluate, so twice the period, the
    longest evaluation and a minute are allowed.
    """
    findings = []
    for run, ledger in case.completed_ledgers:
        period_s = float(run.config.settings["checkpoint_every_s"])
        evaluation_ns = max((shard.duration_ns for shard in ledger.values(EvaluationShard)), default=0)
        allowed_ns = 2 * period_s * NS_PER_S + evaluation_ns + LOOK_SLACK_NS
        last_ns = None
        for entry in ledger.all_entries_of(ClockStart, Checkpoint, ClockStop) if period_s else []:
            if last_ns is not None and entry.time_ns - last_ns > allowed_ns:
                place = f"{ledger.place}:{entry.line}"
                expected = f"a checkpoint after at most {allowed_ns / NS_PER_S:.0f} s"
                found = f"none for {(entry.time_ns - last_ns) / NS_PER_S:.0f} s"
                findings.append(Finding("times.checkpoints", place, expected, found))
            last_ns = entry.time_ns
    return findings


def check_created(case: Case) -> list[Finding]:
    """The submission was made after its runs: no line of a ledger is later, but for the clocks of two machines."""
    place, created_ns = f"{case.place}:created", case.created_ns
    if created_ns is None:
        return [Finding("times.created", place, "a time that exists", repr(case.submission.created))]
    ends_ns = [ledger.entries[-1].time_ns for run in case.runs for ledger in run.record.ledgers if ledger.entries]
    if max(ends_ns, default=0) <= created_ns + CREATED_SLACK_NS:
        return []
    return [
        Finding("times.created", place, f"not before the last line of its runs, {max(ends_ns)} ns", f"{created_ns} ns")
    ]
