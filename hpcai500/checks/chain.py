"""Chain: every rank's ledger is whole, hangs together, is closed, and tells the events of a run in their order.

For a run that did not complete only what was written is checked: its ledgers may end anywhere, the last line cut.
"""

from __future__ import annotations

import itertools

from hpcai500.checks.case import Case, RunCase
from hpcai500.finding import Finding
from hpcai500.record import RankLedger

# What may follow what; after a failure run_close may follow anything. Rank 0 alone writes evaluation and checkpoint.
NEXT_EVENTS = {
    "": {"run_open"},
    "run_open": {"data_open"},
    "data_open": {"model_built"},
    "model_built": {"clock_start"},
    "clock_start": {"window"},
    "window": {"window", "epoch_end"},
    "epoch_end": {"window", "evaluation_shard", "checkpoint", "clock_stop"},
    "evaluation_shard": {"window", "evaluation", "checkpoint", "clock_stop"},
    "evaluation": {"window", "checkpoint", "clock_stop"},
    "checkpoint": {"window", "clock_stop"},
    "clock_stop": {"run_close"},
    "run_close": set(),
}
ONLY_RANK_0 = {"evaluation", "checkpoint"}


def check_ledgers(case: Case) -> list[Finding]:
    """Every line can be read and carries the digest of the line before it (rules ledger.*)."""
    findings = []
    for run in case.runs:
        for ledger in run.record.ledgers:
            may_be_cut = run.submitted.status != "completed"
            findings += [item for item in ledger.findings if not (may_be_cut and item.rule == "ledger.torn")]
    return findings


def check_ranks(case: Case) -> list[Finding]:
    """A completed run has the ledgers of all of its ranks and no other."""
    findings = []
    for run in case.runs:
        place, num_ranks = f"{run.place}/ledger", run.config.num_ranks
        ranks = {ledger.rank for ledger in run.record.ledgers}
        strangers = sorted(rank for rank in ranks if rank >= num_ranks)
        num_missing = num_ranks - (len(ranks) - len(strangers))
        if num_missing and run.submitted.status == "completed":
            first = next(rank for rank in itertools.count() if rank not in ranks)
            found = f"{num_missing} are missing, the first is rank {first}"
            findings.append(Finding("chain.ranks", place, f"ledgers of {num_ranks} ranks", found))
        if strangers:
            findings.append(Finding("chain.ranks", place, f"ranks below {num_ranks}", f"ranks {strangers[:20]}"))
    return findings


def check_identity(case: Case) -> list[Finding]:
    """Every ledger opens as the rank, run and configuration whose folder it lies in; all ranks run the same package."""
    findings = []
    for run in case.runs:
        versions = {ledger.opened.package_version for ledger in run.record.ledgers if ledger.opened}
        if len(versions) > 1:
            expected = "one version on all ranks"
            findings.append(Finding("chain.identity", f"{run.place}/ledger", expected, ", ".join(sorted(versions))))
        hosts = {ledger.opened.host for ledger in run.record.ledgers if ledger.opened}
        if run.is_complete and len(hosts) != run.config.num_nodes:
            expected = f"{run.config.num_nodes} hosts"
            findings.append(Finding("chain.identity", f"{run.place}/ledger", expected, ", ".join(sorted(hosts))))
        for ledger in run.record.ledgers:
            findings += _check_opening(run, ledger)
    return findings


def _check_opening(run: RunCase, ledger: RankLedger) -> list[Finding]:
    opened = ledger.opened
    if opened is None:
        return []  # check_order says so
    expected = {
        "run_id": run.config.run_id,
        "rank": ledger.rank,
        "num_ranks": run.config.num_ranks,
        "config_sha256": run.config_sha256,
    }
    return [
        Finding("chain.identity", f"{ledger.place}:1:{name}", f"{value!r}", f"{getattr(opened, name)!r}")
        for name, value in expected.items()
        if getattr(opened, name) != value
    ]


def check_order(case: Case) -> list[Finding]:
    """Events come in the order of a run, run_close last and nothing after it."""
    return [
        finding
        for run in case.runs
        for ledger in run.record.ledgers
        for finding in _check_order_of(ledger, is_complete=run.submitted.status == "completed")
    ]


def _check_order_of(ledger: RankLedger, *, is_complete: bool) -> list[Finding]:
    before = ""
    for entry in ledger.entries:
        allowed = NEXT_EVENTS[before] - (ONLY_RANK_0 if ledger.rank else set())
        if not is_complete and before != "run_close":
            allowed = allowed | {"run_close"}
        if entry.event not in allowed:
            expected = f"{' or '.join(sorted(allowed)) or 'nothing'} after {before or 'the start'}"
            return [Finding("chain.order", f"{ledger.place}:{entry.seq + 1}", expected, entry.event)]
        before = entry.event
    if is_complete and before != "run_close":
        return [Finding("chain.order", ledger.place, "run_close at the end", before or "nothing")]
    return []


def check_status(case: Case) -> list[Finding]:
    """What submission.json says became of a run is what its ledgers say."""
    findings = []
    for run in case.runs:
        if run.submitted.status != run.record.status:
            place = f"{case.place}:runs[{run.place}].status"
            findings.append(Finding("chain.status", place, repr(run.record.status), repr(run.submitted.status)))
    return findings
