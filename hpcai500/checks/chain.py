"""Chain: every rank's ledger is whole, hangs together, is closed, and tells the events of a run in their order.

For a run that did not complete, and for segments that were gone on with, only what was written is checked: their
ledgers may end anywhere, the last line cut.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections import Counter
from collections.abc import Iterator

from hpcai500.checks.case import Case, RunCase
from hpcai500.checks.limits import count_cores
from hpcai500.events import Checkpoint, DataOpen, Energy, Resume, Window
from hpcai500.finding import Finding
from hpcai500.record import Position, RankLedger, Segment

# What may follow what; after a failure run_close may follow anything. Rank 0 alone writes evaluation.
NEXT_EVENTS = {
    "": {"run_open"},
    "run_open": {"resume", "staging", "data_open"},
    "resume": {"staging", "data_open"},
    "staging": {"data_open"},
    "data_open": {"model_built"},
    "model_built": {"start_up"},
    "start_up": {"clock_start"},
    "clock_start": {"window", "clock_stop"},  # clock_stop at once where a run is resumed behind its last epoch
    "window": {"window", "epoch_part"},
    "epoch_part": {"window", "evaluation_shard", "checkpoint", "clock_stop"},
    "evaluation_shard": {"window", "evaluation", "checkpoint", "clock_stop"},
    "evaluation": {"window", "checkpoint", "clock_stop"},
    "checkpoint": {"window", "clock_stop"},
    "clock_stop": {"energy", "run_close"},
    "energy": {"energy", "run_close"},  # one of each source
    "run_close": set(),
}
ONLY_RANK_0 = {"evaluation"}


def _ends_well(run: RunCase, segment: int) -> bool:
    """Whether ledgers must be whole up to run_close: in the last segment of a run that is said to be completed."""
    return run.submitted.status == "completed" and segment == run.record.segments[-1].number


def check_ledgers(case: Case) -> list[Finding]:
    """Every line can be read and carries the digest of the line before it (rules ledger.*)."""
    findings = []
    for run in case.runs:
        for segment in run.record.segments:
            cut = set() if _ends_well(run, segment.number) else {"ledger.torn", "ledger.empty"}
            findings += [item for item in segment.findings if item.rule not in cut]
    return findings


def check_ranks(case: Case) -> list[Finding]:
    """Each segment whose work counts has the ledgers of all of its ranks and no other, the first as configured.

    A segment that ended before all ranks were there, and was begun again from the same place, may lack some.
    """
    findings = []
    for run in case.runs:
        for segment in run.record.segments:
            num_ranks = segment.num_ranks if segment.number else run.config.num_ranks
            counted = Counter(ledger.rank for ledger in segment.ledgers)
            ranks, twice = set(counted), sorted(rank for rank, count in counted.items() if count > 1)
            place = f"{run.place}/ledger/segment-{segment.number:03d}" if segment.number else f"{run.place}/ledger"
            strangers = sorted(rank for rank in ranks if rank >= num_ranks)
            num_missing = num_ranks - (len(ranks) - len(strangers))
            matters = segment.until != segment.start if segment.until else run.submitted.status == "completed"
            if num_missing and matters:
                first = next(rank for rank in itertools.count() if rank not in ranks)
                found = f"{num_missing} are missing, the first is rank {first}"
                findings.append(Finding("chain.ranks", place, f"ledgers of {num_ranks} ranks", found))
            if twice:
                found = f"ranks {twice[:20]} in several"
                findings.append(Finding("chain.ranks", place, "each rank in one ledger", found))
            if strangers:
                findings.append(Finding("chain.ranks", place, f"ranks below {num_ranks}", f"ranks {strangers[:20]}"))
    return findings


def check_nodes(case: Case) -> list[Finding]:
    """Each ledger has the ranks of one host and is the host's only one; they are numbered by their lowest ranks."""
    findings = []
    for run in case.completed:
        for segment in run.record.segments:
            hosts: dict[int, set[str]] = {}
            for ledger in segment.ledgers:  # by rank
                hosts.setdefault(ledger.node, set()).update({ledger.opened.host} if ledger.opened else ())
            found = [sorted(of) for of in hosts.values()]
            is_one_each = all(len(of) == 1 for of in found) and len({of[0] for of in found}) == len(found)
            has_all = len(segment.ledgers) == segment.num_ranks  # else nodes may be missing that died at once
            if not is_one_each or (has_all and list(hosts) != list(range(len(hosts)))):
                expected = "a ledger for each host, numbered from 0 by its lowest rank"
                text = ", ".join(f"node {node}: {' '.join(sorted(of))}" for node, of in list(hosts.items())[:10])
                findings.append(Finding("chain.nodes", f"{run.place}/ledger", expected, text[:1000]))
    return findings


def check_segments(case: Case) -> list[Finding]:
    """Segments follow without gap; all ranks of one go on from the same checkpoint, which the run has made.

    Each binds the ledgers of all segments before it as they stand.
    """
    findings = []
    for run in case.runs:
        numbers = [segment.number for segment in run.record.segments]
        if numbers != list(range(len(numbers))):
            expected = f"segments 0 to {len(numbers) - 1}"
            findings.append(Finding("chain.segments", f"{run.place}/ledger", expected, f"{numbers[:100]}"))
            continue
        before = hashlib.sha256()  # of the lines of hpcai500.record.ledgers_digest, which are in this order
        saved = {("", ""): Position(0, 0)}
        for segment in run.record.segments:
            findings += _check_resumes(segment, before.hexdigest(), saved) if segment.number else []
            for ledger in segment.ledgers:
                before.update(f"{segment.number} {ledger.rank} {ledger.head_sha256}\n".encode())
                for entry in ledger.all_entries_of(Checkpoint):
                    value = entry.value
                    assert isinstance(value, Checkpoint)
                    saved[value.path, value.sha256] = Position(value.epoch, value.step)
    return findings


def _check_resumes(segment: Segment, digest: str, saved: dict[tuple[str, str], Position]) -> Iterator[Finding]:
    for ledger in segment.ledgers:
        for entry in ledger.all_entries_of(Resume):
            resume = entry.value
            assert isinstance(resume, Resume)
            place = f"{ledger.place}:{entry.line}"
            if resume.ledgers_sha256 != digest:
                expected = f"{digest} (the ledgers of the segments before)"
                yield Finding("chain.segments", f"{place}:ledgers_sha256", expected, resume.ledgers_sha256)
            position = saved.get((resume.path, resume.sha256))
            if position != (resume.epoch, resume.step) or ledger.start != segment.start:
                expected = "a checkpoint that the run made before, the same on all ranks"
                yield Finding("chain.segments", place, expected, f"{resume.path} at {resume.epoch}, {resume.step}")


def check_identity(case: Case) -> list[Finding]:
    """Every ledger opens as the rank, run and configuration whose folder it lies in; all ranks run the same package."""
    findings = []
    for run in case.runs:
        versions = {ledger.opened.package_version for ledger in run.record.ledgers if ledger.opened}
        if len(versions) > 1:
            expected = "one version on all ranks"
            findings.append(Finding("chain.identity", f"{run.place}/ledger", expected, ", ".join(sorted(versions))))
        first = run.record.segments[0].ledgers if run.record.segments else []
        hosts = {ledger.opened.host for ledger in first if ledger.opened}
        has_all = bool(first) and all(ledger.opened for ledger in first)  # ranks may die before
        if run.is_complete and has_all and len(hosts) != run.config.num_nodes:
            expected = f"{run.config.num_nodes} hosts"
            findings.append(Finding("chain.identity", f"{run.place}/ledger", expected, ", ".join(sorted(hosts))))
        for segment in run.record.segments:
            for ledger in segment.ledgers:
                findings += _check_opening(run, segment, ledger)
    return findings


def _check_opening(run: RunCase, segment: Segment, ledger: RankLedger) -> list[Finding]:
    opened = ledger.opened
    if opened is None:
        return []  # check_order says so
    expected = {
        "run_id": run.config.run_id,
        "segment": segment.number,
        "rank": ledger.rank,
        "num_ranks": segment.num_ranks if segment.number else run.config.num_ranks,
        "config_sha256": run.config_sha256,
    }
    return [
        Finding("chain.identity", f"{ledger.first_place}:{name}", f"{value!r}", f"{getattr(opened, name)!r}")
        for name, value in expected.items()
        if getattr(opened, name) != value
    ]


def check_cores(case: Case) -> list[Finding]:
    """No rank has many more cores than a node is said to have.

    A node is described by its first rank; if the launcher has bound that to a part of the cores, another rank's part
    may be larger, but not twice as large.
    """
    findings = []
    for run in case.completed:
        systems = [run.system, *run.later_systems] if run.system is not None else []
        allowed = 2 * max((node.num_cores for system in systems for node in system.nodes), default=0)
        for ledger in run.record.ledgers if allowed else []:
            found = count_cores([ledger.opened.cores]) if ledger.opened else 0
            if found > allowed:
                expected = f"about as many cores as a node has, {allowed // 2}"
                findings.append(Finding("chain.hosts", f"{ledger.first_place}:cores", expected, f"{found}"))
    return findings


def check_copies_of_ranks(case: Case) -> list[Finding]:
    """No rank of a segment has the losses of another, since no sample is trained on by two."""
    findings = []
    for run in case.completed:
        for segment in run.record.segments:
            seen: dict[bytes, RankLedger] = {}
            for ledger in segment.ledgers:
                losses = array("d", (window.loss_sum for window in ledger.values(Window)))
                first = seen.setdefault(hashlib.sha256(losses).digest(), ledger)
                if losses and first is not ledger:
                    expected = f"losses of its own, not those of {first.rank_place}"
                    findings.append(
                        Finding("chain.identity", f"{ledger.rank_place}.window.loss_sum", expected, "the same")
                    )
    return findings


def check_data_alike(case: Case) -> list[Finding]:
    """The data set takes as many bytes on all ranks of a run."""
    findings = []
    for run in case.completed:
        values = [data for ledger in run.record.ledgers if (data := ledger.value(DataOpen)) is not None]
        sizes = {data.train_bytes for data in values}
        if len(sizes) > 1:
            place, found = f"{run.place}/ledger:data_open.train_bytes", ", ".join(sorted(map(str, sizes)))
            findings.append(Finding("chain.identity", place, "the same on all ranks", found))
    return findings


def check_order(case: Case) -> list[Finding]:
    """Events come in the order of a run, run_close last and nothing after it."""
    return [
        finding
        for run in case.runs
        for ledger in run.record.ledgers
        for finding in _check_order_of(ledger, ends_well=_ends_well(run, ledger.segment))
    ]


def _check_order_of(ledger: RankLedger, *, ends_well: bool) -> list[Finding]:
    before = ""
    sources: set[str] = set()
    for entry in ledger.entries:
        allowed = NEXT_EVENTS[before] - (ONLY_RANK_0 if ledger.rank else set())
        if before == "run_open":
            allowed = {"resume"} if ledger.segment else allowed - {"resume"}
        if not ends_well and before != "run_close":
            allowed = allowed | {"run_close"}
        if entry.event not in allowed:
            expected = f"{' or '.join(sorted(allowed)) or 'nothing'} after {before or 'the start'}"
            return [Finding("chain.order", f"{ledger.place}:{entry.line}", expected, entry.event)]
        if isinstance(entry.value, Energy):
            if entry.value.source in sources:
                expected = "one energy of each source"
                return [Finding("chain.order", f"{ledger.place}:{entry.line}", expected, f"{entry.value.source} twice")]
            sources.add(entry.value.source)
        before = entry.event
    if ends_well and before != "run_close":
        return [Finding("chain.order", ledger.rank_place, "run_close at the end", before or "nothing")]
    return []


def check_status(case: Case) -> list[Finding]:
    """What submission.json says became of a run is what its ledgers say."""
    findings = []
    for run in case.runs:
        if run.submitted.status != run.record.status:
            place = f"{case.place}:runs[{run.place}].status"
            findings.append(Finding("chain.status", place, repr(run.record.status), repr(run.submitted.status)))
    return findings
