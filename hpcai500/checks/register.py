"""Register: a submission that carries a ticket has exactly the runs that the ticket announced, made after it.

With the time of the upload a register can say more: it is the end of a submission's time where ``created`` is only what
the submitter says. Runs cannot be longer than from the ticket to that end, since they begin and close between the two.

Not covered: other tickets of the same submitter, which only the register knows of; whether the issuer is to be trusted.
"""

from __future__ import annotations

from collections import Counter

from hpcai500.checks.case import Case
from hpcai500.events import ClockStop, RunClose, RunOpen
from hpcai500.finding import Finding
from hpcai500.record import RankLedger
from hpcai500.register.ticket import CLOCK_SLACK_NS, is_genuine, run_seed, ticket_sha256

NS_PER_S = 10**9
MAX_NAMED = 20


def check_ticket(case: Case) -> list[Finding]:
    """The ticket bears its issuer's signature, and is for what was submitted, by the one who submits it."""
    signed = case.submission.ticket
    if signed is None:
        return []
    findings = []
    if not is_genuine(signed):
        expected = f"the signature of key {signed.ticket.issuer_key}"
        findings.append(Finding("register.ticket", f"{case.place}:ticket.signature", expected, "another"))
    for name in ("workload", "level", "size", "submitter"):
        expected, found = getattr(signed.ticket, name), getattr(case.submission, name)
        if expected != found:
            place = f"{case.place}:{name}"
            findings.append(Finding("register.ticket", place, f"{expected!r}, as the ticket says", f"{found!r}"))
    return findings


def check_announced_runs(case: Case) -> list[Finding]:
    """Every run of the ticket is there once, also those that did not complete, and no other run is."""
    signed = case.submission.ticket
    digest = ticket_sha256(signed.ticket) if signed else None
    findings = []
    for run in case.runs:
        announced = run.config.announced
        found = announced.ticket_sha256 if announced else None
        if found != digest:
            place, expected = f"{run.place}/config.json:announced", f"ticket {digest}" if digest else "no ticket"
            findings.append(Finding("register.runs", place, expected, f"ticket {found}" if found else "no ticket"))
    if signed is None:
        return findings
    counts = Counter(run.config.announced.number for run in case.runs if run.config.announced)
    wanted = range(1, signed.ticket.num_runs + 1)
    wrong = {
        "missing": [number for number in wanted if number not in counts],
        "several times": [number for number, count in sorted(counts.items()) if count > 1],
        "not announced": [number for number in sorted(counts) if number not in wanted],
    }
    for what, numbers in wrong.items():
        if numbers:
            names = ", ".join(map(str, numbers[:MAX_NAMED])) + (", ..." if len(numbers) > MAX_NAMED else "")
            expected = f"runs 1 to {signed.ticket.num_runs} of the ticket, each once"
            findings.append(Finding("register.runs", f"{case.place}:runs", expected, f"{what}: {names}"))
    return findings


def check_announced_seeds(case: Case) -> list[Finding]:
    """The seed of every announced run is the one that follows from the ticket's challenge."""
    signed = case.submission.ticket
    findings = []
    for run in case.runs if signed else []:
        announced = run.config.announced
        if signed is None or announced is None:
            continue  # check_announced_runs says so
        expected = run_seed(signed.ticket.challenge, announced.number)
        if run.config.seed != expected:
            place = f"{run.place}/config.json:seed"
            words = f"{expected}, that of run {announced.number} of the ticket"
            findings.append(Finding("register.seeds", place, words, f"{run.config.seed}"))
    return findings


def check_ticket_in_ledgers(case: Case) -> list[Finding]:
    """Every ledger of every run opens with the digest of the submission's ticket, or with none if it has none."""
    signed = case.submission.ticket
    expected = ticket_sha256(signed.ticket) if signed else None
    return [
        Finding("register.ledgers", f"{ledger.first_place}:ticket_sha256", f"{expected!r}", f"{opened.ticket_sha256!r}")
        for run in case.runs
        for ledger in run.record.ledgers
        if (opened := ledger.opened) is not None and opened.ticket_sha256 != expected
    ]


def check_ticket_times(case: Case) -> list[Finding]:
    """Every ledger begins after the ticket was issued and ends before the submission was made, but for the clocks."""
    signed = case.submission.ticket
    if signed is None:
        return []
    issued_ns = signed.ticket.issued_ns
    created_ns = case.created_ns
    if created_ns is None:
        return [Finding("register.times", f"{case.place}:created", "a time that exists", repr(case.submission.created))]
    findings = []
    if created_ns < issued_ns - CLOCK_SLACK_NS:
        expected = f"not before the ticket, {issued_ns} ns"
        findings.append(Finding("register.times", f"{case.place}:created", expected, f"{created_ns} ns"))
    for run in case.runs:
        for ledger in run.record.ledgers:
            times_ns = _times_ns(ledger)
            if times_ns and min(times_ns) < issued_ns - CLOCK_SLACK_NS:
                expected = f"not before the ticket, {issued_ns} ns"
                findings.append(Finding("register.times", ledger.first_place, expected, f"{min(times_ns)} ns"))
            if times_ns and max(times_ns) > created_ns + CLOCK_SLACK_NS:
                expected = f"an end before the submission was made, {created_ns} ns"
                findings.append(Finding("register.times", ledger.rank_place, expected, f"{max(times_ns)} ns"))
    return findings


def _times_ns(ledger: RankLedger) -> list[int]:
    """Unix times of a ledger's first and last lines, by both of its clocks."""
    walls = [event.wall_ns for event in ledger.values(RunOpen)]
    walls += [event.wall_ns for event in ledger.values(ClockStop)] + [
        event.wall_ns for event in ledger.values(RunClose)
    ]
    return walls + [entry.time_ns for entry in (*ledger.entries[:1], *ledger.entries[-1:])]


def register_notes(case: Case) -> list[str]:
    """How much of the time between ticket and submission the runs took: the rest could hide runs made again."""
    created_ns = case.created_ns
    if case.submission.ticket is None or created_ns is None:
        return []
    between_ns = max(0, created_ns - case.submission.ticket.ticket.issued_ns)
    times_ns = [[time_ns for root in run.record.roots for time_ns in _times_ns(root)] for run in case.runs]
    spent_ns = sum(max(times) - min(times) for times in times_ns if times)
    return [f"the runs took {_duration(spent_ns)} of the {_duration(between_ns)} between ticket and submission"]


def _duration(time_ns: int) -> str:
    seconds = time_ns / NS_PER_S
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
