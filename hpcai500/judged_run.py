"""Judges one run of a submission by itself, in a process of its own where the runs are large.

A run's ledgers are read, looked at and let go again; what stays is little: the findings, the figures and the ledgers of
rank 0, which suffice to compare runs with each other. So memory holds one run a process, whatever the number of runs.
"""

from __future__ import annotations

import gc
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpcai500.checks import Check
from hpcai500.checks.case import Case, RunCase
from hpcai500.checks.form import is_inside
from hpcai500.errors import RecordError
from hpcai500.finding import Finding
from hpcai500.formats import Form, RunConfig, RunResult, SubmittedRun, System, decode, read_bytes
from hpcai500.record import RunRecord, Segment, list_ledgers, read_segments

LARGE_BYTES = 32 << 20  # of ledgers; below, starting processes takes longer than they save
MAX_SUBMITTED_BYTES = 16 << 30  # of all files; those of 5 runs on 10,000 ranks take less than half of that
MAX_SYSTEMS_BYTES = 8 << 20  # of the systems of a run's later segments; one of 10,000 nodes takes 6 MB


@dataclass(frozen=True)
class JudgedRun:
    """What is left of a run after it was judged.

    Attributes:
        run: with the ledgers of rank 0 alone.
        findings: what is wrong with it.
        result: its figures; None unless its ledgers are whole.
    """

    run: RunCase
    findings: list[Finding]
    result: RunResult | None


@dataclass(frozen=True)
class RunChecks:
    """What a run is held against.

    Attributes:
        form, content: the checks; those of content are for ledgers that are whole.
        structure_rules: a finding of one of these says that the ledgers are not whole.
    """

    form: Sequence[Check]
    content: Sequence[Check]
    structure_rules: frozenset[str]


def judge_runs(case: Case, checks: RunChecks, *, jobs: int) -> tuple[list[JudgedRun], list[Finding]]:
    """Judge all runs of a submission; those that cannot be read become findings.

    Args:
        case: the submission without its runs.
        checks: what to look at.
        jobs: processes, at most; used where the ledgers are large.
    """
    submitted = case.submission.runs
    findings = _check_amount(case)
    if findings:
        return [], findings
    is_large = sum(_ledger_bytes(case.path.parent, run.folder) for run in submitted) > LARGE_BYTES
    if min(jobs, len(submitted)) > 1 and is_large:
        from concurrent.futures import ProcessPoolExecutor  # slow to import, and rarely needed

        with ProcessPoolExecutor(min(jobs, len(submitted))) as executor:
            judged = list(executor.map(_judge_run, [case] * len(submitted), submitted, [checks] * len(submitted)))
    else:
        judged = [_judge_run(case, run, checks) for run in submitted]
    findings += [finding for _, of_reading in judged for finding in of_reading]
    return [run for run, _ in judged if run is not None], findings


def _check_amount(case: Case) -> list[Finding]:
    """What would take hours to read: more bytes than any submission has, or one folder again and again."""
    sizes = (file.size_bytes for run in case.submission.runs for file in run.files.values())
    if (total_bytes := sum(sizes)) > MAX_SUBMITTED_BYTES:
        expected = f"at most {MAX_SUBMITTED_BYTES} bytes in all"
        return [Finding("form.files", f"{case.place}:runs.files.size_bytes", expected, f"{total_bytes}")]
    folders = Counter(os.path.realpath(case.path.parent / run.folder.replace("\0", "")) for run in case.submission.runs)
    twice = [folder for folder, count in folders.items() if count > 1]
    if twice:
        found = f"{len(twice)} that are listed several times, the first is {Path(twice[0]).name!r}"
        return [Finding("runs.seeds", f"{case.place}:runs.folder", "a folder of its own for each run", found)]
    return []


def _ledger_bytes(base: Path, folder: str) -> int:
    try:
        segments = list_ledgers(base / folder) if is_inside(base, folder) else {}
        return sum(path.stat().st_size for ranks in segments.values() for path in ranks.values())
    except (OSError, ValueError):  # reading the run says so in words
        return 0


def _judge_run(case: Case, submitted: SubmittedRun, checks: RunChecks) -> tuple[JudgedRun | None, list[Finding]]:
    """Read and judge one run; returns what is wrong with its files apart, and None if there is nothing to judge."""
    was_enabled = gc.isenabled()
    gc.disable()  # hundreds of thousands of objects without a cycle; looking for one costs more than reading them
    try:
        findings: list[Finding] = []
        run = _read_run(case, submitted, findings)
        if run is None:
            return None, findings
        alone = replace(case, runs=[run])
        found = [finding for check in checks.form for finding in check(alone)]
        result = None
        if not findings and not any(finding.rule in checks.structure_rules for finding in found):
            found += [finding for check in checks.content for finding in check(alone)]
            result = alone.results[0]
        kept = list(dict.fromkeys(found))  # of too many findings only the rules differ
        return JudgedRun(replace(run, record=run.record.of_rank_0()), kept, result), findings
    finally:
        if was_enabled:
            gc.enable()


def _read_run(case: Case, submitted: SubmittedRun, findings: list[Finding]) -> RunCase | None:
    """Read one run; None if not even its configuration and ledgers can be read."""
    place = submitted.folder
    if not is_inside(case.path.parent, place):
        expected = f"a folder beneath that of {case.place}"
        findings.append(Finding("form.folder", f"{case.place}:runs.folder", expected, repr(place)[:200]))
        return None
    folder = case.path.parent / place
    config = _read(folder / "config.json", RunConfig, f"{place}/config.json", findings)
    if config is None:
        return None
    try:
        segments = read_segments(folder, place=place)
    except RecordError as error:
        findings.append(Finding("form.folder", f"{place}/ledger", "ledgers that can be read", str(error)))
        return None
    is_complete = submitted.status == "completed"
    result = system = None
    if is_complete or (folder / "result.json").exists():
        result = _read(folder / "result.json", RunResult, f"{place}/result.json", findings)
    if is_complete or (folder / "system.json").exists():
        system = _read(folder / "system.json", System, f"{place}/system.json", findings)
    return RunCase(
        submitted=submitted,
        place=place,
        record=RunRecord(folder, config, segments),
        config_sha256=hashlib.sha256(read_bytes(folder / "config.json", RunConfig)).hexdigest(),
        result=result,
        system=system,
        later_systems=_read_later_systems(folder, segments, place, findings),
    )


def _read_later_systems(folder: Path, segments: list[Segment], place: str, findings: list[Finding]) -> list[System]:
    """The systems of the later segments, system-001.json and so on; those that are not there are left out."""
    systems, left_bytes = [], MAX_SYSTEMS_BYTES
    for segment in segments:
        path = folder / f"system-{segment.number:03d}.json"
        if segment.number == 0 or not path.exists():
            continue
        left_bytes -= path.stat().st_size
        if left_bytes < 0:
            expected = f"at most {MAX_SYSTEMS_BYTES} bytes of systems of later segments"
            findings.append(Finding("form.schema", f"{place}/{path.name}", expected, "more"))
            break
        system = _read(path, System, f"{place}/{path.name}", findings)
        systems += [system] if system is not None else []
    return systems


def _read(path: Path, form: type[Form], place: str, findings: list[Finding]) -> Form | None:
    """Read one file of a run; what is wrong with its form becomes findings."""
    try:
        record = decode(read_bytes(path, form), form)
    except RecordError as error:
        findings.append(Finding("form.schema", place, "a file in JSON", str(error)))
        return None
    if isinstance(record, list):
        findings.extend(Finding("form.schema", place, "the form of this edition", problem) for problem in record)
        return None
    return record
