"""Start: what was done before the ranked clock fits into the time that there was for it.

None of it is ranked, but readers compare machines by it. Not covered: allocation and launch, of which no ledger knows.
"""

from __future__ import annotations

from collections.abc import Iterator

from hpcai500.checks.case import Case
from hpcai500.checks.times import CLOCK_DRIFT, CLOCK_STEP_NS
from hpcai500.events import RunOpen, Staging, StartUp
from hpcai500.finding import Finding
from hpcai500.record import RankLedger


def check_start_up(case: Case) -> list[Finding]:
    """The parts of the start-up fill the time from the ledger's opening to their line, and no more than there was.

    A ledger is opened once the ranks have found each other, so opening data, building the model and waiting come after,
    and loading libraries in part. These parts were read from the wall clock, which may be set meanwhile.
    """
    findings = []
    for _, ledger in case.completed_ledgers:
        opened_ns, told_ns, start_up = ledger.time_ns(RunOpen), ledger.time_ns(StartUp), ledger.value(StartUp)
        if opened_ns is None or told_ns is None or start_up is None:
            continue
        passed_ns = told_ns - opened_ns
        slack_ns = CLOCK_STEP_NS + CLOCK_DRIFT * max(0, passed_ns)
        after_ns = start_up.data_open_ns + start_up.model_ns + start_up.wait_ns
        all_ns = start_up.import_ns + start_up.rendezvous_ns + after_ns
        if not after_ns - slack_ns <= passed_ns <= all_ns + slack_ns:
            place = f"{ledger.rank_place}.start_up"
            expected = f"parts that fit the {passed_ns} ns since run_open"
            found = f"{after_ns} ns of data, model and waiting, {all_ns} ns with loading and rendezvous"
            findings.append(Finding("times.start_up", place, expected, found))
    return findings


def check_staging(case: Case) -> list[Finding]:
    """The first rank of each node that staged says so, all copied as much, and in the time before the data was open."""
    findings = []
    for run in case.completed:
        for segment in run.record.segments:
            staged = [(ledger, ledger.value(Staging)) for ledger in segment.ledgers]
            sizes = {(value.source, value.num_bytes) for _, value in staged if value is not None}
            if len(sizes) > 1:
                place = f"{run.place}/ledger:staging"
                findings.append(Finding("times.staging", place, "one source of one size", f"{sorted(sizes)[:3]}"))
            for ledger, value in staged:
                if value is not None:
                    findings += _check_staged(ledger, value)
    return findings


def _check_staged(ledger: RankLedger, staged: Staging) -> Iterator[Finding]:
    place, start_up = f"{ledger.rank_place}.staging", ledger.value(StartUp)
    if ledger.opened is not None and ledger.opened.local_rank != 0:
        yield Finding("times.staging", place, "on the first rank of a node", f"local rank {ledger.opened.local_rank}")
    copied_ns = staged.duration_ns + staged.verify_ns
    if (staged.reused or staged.fell_back is not None) and copied_ns:
        yield Finding("times.staging", place, "0 ns, since nothing was copied", f"{copied_ns} ns")
    if staged.reused and staged.fell_back is not None:
        yield Finding("times.staging", place, "a copy that is used, or the source", "both")
    if start_up is not None:
        # It begins to copy when the process begins, and the data is opened when all copies are there.
        room_ns = start_up.import_ns + start_up.rendezvous_ns + start_up.data_open_ns
        if copied_ns > room_ns + CLOCK_STEP_NS:
            yield Finding("times.staging", place, f"at most {room_ns} ns, until the data was open", f"{copied_ns} ns")
