"""Decide whether a submission is valid, from the raw record and never from a summary.

Run as ``hpcai500-verify submission.json`` or ``hpcai500 verify submission.json``. Needs neither torch nor MPI.

What is covered:

* form: every file decodes strictly, is the one that was digested, and all speak of the same edition, workload, level,
  size, system and data set; ledgers are chained, closed, of all ranks, their events in order;
* figures: every derived figure is recomputed from the ledgers, within a relative difference of 1e-9;
* counts: samples, steps, epochs, evaluations and their shards, the model's parameters and FLOP;
* times: clocks run forward, agree with the wall clock, and hold all that was done while they ran;
* rules: what the level allows, how many runs, seeds of their own, learning rates alike on all ranks.

What is not covered:

* a forger who invents whole ledgers that agree in everything: the chain can be computed by anybody;
* whether the times are possible on that machine, and whether the quality is possible after those epochs;
* whether the learning rates follow the declared policy, and the sample ids the seed;
* the code that ran, and runs that were started and never submitted;
* checkpoints: the ledger carries their digests, the submission does not carry the files.

Findings about the form of ledgers come first; what the ledgers say is checked once they are whole.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from hpcai500.checks import CONTENT_CHECKS, FORM_CHECKS, STRUCTURE_RULES
from hpcai500.checks.case import Case, RunCase
from hpcai500.checks.form import is_inside
from hpcai500.command import run_command
from hpcai500.edition import Edition, Size, load_edition
from hpcai500.errors import RecordError, UnknownNameError
from hpcai500.finding import Finding
from hpcai500.formats import Form, RunConfig, RunResult, Submission, SubmittedRun, Summary, System, decode, read_bytes
from hpcai500.record import RunRecord, read_segments
from hpcai500.submission import summarise

EPILOG = """examples:
  hpcai500-verify runs/NAME/submission.json
  hpcai500-verify --json runs/NAME/submission.json

exit code: 0 valid, 1 invalid, 2 it cannot be read"""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the verifier says.

    Attributes:
        valid: nothing was found.
        rankable: valid, and of a size that is ranked.
        why_not: why it is not rankable.
        findings: all that is wrong.
        notes: what a reader should know and is not wrong, such as runs that failed.
        results: the figures of each run, as recomputed; empty where they cannot be.
        summary: those of the submission, likewise; None where they cannot be.
        workload: with level, size and edition, what was submitted; None where that cannot be read.
    """

    valid: bool
    rankable: bool
    why_not: list[str]
    findings: list[Finding]
    notes: list[str]
    results: list[RunResult] = []
    summary: Summary | None = None
    workload: str | None = None
    level: str | None = None
    size: str | None = None
    edition: str | None = None


def verify_submission(path: Path, edition: Edition | None = None) -> Verdict:
    """Check a submission against the rules (those of this package by default).

    Raises:
        RecordError: the file cannot be read or is not JSON.
    """
    edition = edition or load_edition()
    content = read_bytes(path)
    try:
        submission = decode(content, Submission)
    except RecordError as error:
        raise RecordError(f"{str(path)!r} cannot be read as a submission") from error
    if isinstance(submission, list):
        return _invalid([Finding("form.schema", path.name, "a submission", problem) for problem in submission])
    try:
        workload = edition.workload(submission.workload)
        size = workload.size(submission.size)
        edition.level(submission.level)
    except UnknownNameError as error:
        return _invalid([Finding("form.names", path.name, f"names of edition {edition.number}", str(error))])
    runs, findings = _read_runs(path, submission)
    case = Case(path, edition, submission, workload, size, runs)
    results: list[RunResult] = []
    if runs:
        is_whole = not findings
        findings += [finding for check in FORM_CHECKS for finding in check(case)]
        if is_whole and not any(finding.rule in STRUCTURE_RULES for finding in findings):
            findings += [finding for check in CONTENT_CHECKS for finding in check(case)]
            results = case.results
    return Verdict(
        valid=not findings,
        rankable=not _why_not(case, findings),
        why_not=_why_not(case, findings),
        findings=findings,
        notes=[note for run in runs for note in _notes(run)],
        results=results,
        summary=_summary(results, size),
        workload=submission.workload,
        level=submission.level,
        size=submission.size,
        edition=submission.edition,
    )


def _invalid(findings: list[Finding]) -> Verdict:
    """The verdict on a submission that cannot be looked at any further."""
    return Verdict(valid=False, rankable=False, why_not=["it is not valid"], findings=findings, notes=[])


def _why_not(case: Case, findings: list[Finding]) -> list[str]:
    reasons = [] if case.size.rankable else [f"size {case.size.name} is never ranked; only official size is"]
    for run in case.completed:
        others = {segment.num_ranks for segment in run.record.segments} - {run.config.num_ranks, 0}
        if others:
            number = ", ".join(map(str, sorted(others)))
            reasons.append(
                f"run {run.place} was resumed on {number} ranks instead of {run.config.num_ranks}, "
                "and a machine that changes has no speed of its own"
            )
    return [*reasons, "it is not valid"] if findings else reasons


def _notes(run: RunCase) -> Iterator[str]:
    if not run.is_complete:
        yield f"run {run.place} {run.record.status}: it is listed and not counted"
    elif len(run.record.segments) > 1:
        number = len(run.record.segments) - 1
        times = "once" if number == 1 else f"{number} times"
        yield f"run {run.place} was resumed {times}; its clock ran on all the while"


def _summary(results: list[RunResult], size: Size) -> Summary | None:
    try:
        return summarise(results, size)
    except RecordError:  # check_summary has said so
        return None


def _read_runs(path: Path, submission: Submission) -> tuple[list[RunCase], list[Finding]]:
    """Read all runs of a submission; those that cannot be read become findings."""
    runs: list[RunCase] = []
    findings: list[Finding] = []
    for submitted in submission.runs:
        if not is_inside(path.parent, submitted.folder):
            expected = f"a folder beneath that of {path.name}"
            findings.append(Finding("form.folder", f"{path.name}:runs.folder", expected, repr(submitted.folder)))
            continue
        run = _read_run(path.parent / submitted.folder, submitted, findings)
        if run is not None:
            runs.append(run)
    return runs, findings


def _read_run(folder: Path, submitted: SubmittedRun, findings: list[Finding]) -> RunCase | None:
    """Read one run; None if not even its configuration and ledgers can be read."""
    place = submitted.folder
    config = _read(folder / "config.json", RunConfig, f"{place}/config.json", findings)
    try:
        segments = read_segments(folder, place=place)
    except RecordError as error:
        findings.append(Finding("form.folder", f"{place}/ledger", "ledgers that can be read", str(error)))
        return None
    if config is None:
        return None
    is_complete = submitted.status == "completed"
    result = system = None
    if is_complete or (folder / "result.json").exists():
        result = _read(folder / "result.json", RunResult, f"{place}/result.json", findings)
    if is_complete or (folder / "system.json").exists():
        system = _read(folder / "system.json", System, f"{place}/system.json", findings)
    later = [_read(path, System, f"{place}/{path.name}", findings) for path in sorted(folder.glob("system-*.json"))]
    return RunCase(
        submitted=submitted,
        place=place,
        record=RunRecord(folder, config, segments),
        config_sha256=hashlib.sha256(read_bytes(folder / "config.json")).hexdigest(),
        result=result,
        system=system,
        later_systems=[system for system in later if system is not None],
    )


def _read(path: Path, form: type[Form], place: str, findings: list[Finding]) -> Form | None:
    """Read one file of a run; what is wrong with its form becomes findings."""
    try:
        record = decode(read_bytes(path), form)
    except RecordError as error:
        findings.append(Finding("form.schema", place, "a file in JSON", str(error)))
        return None
    if isinstance(record, list):
        findings.extend(Finding("form.schema", place, "the form of this edition", problem) for problem in record)
        return None
    return record


def print_verdict(verdict: Verdict) -> None:
    """Print the verdict for people: the word, the figures with their parts, all findings."""
    what = f" {verdict.workload}, {verdict.level} level, size {verdict.size}, edition {verdict.edition}"
    print(f"{'VALID' if verdict.valid else 'INVALID'}{what if verdict.workload else ''}")
    if verdict.summary is not None:
        _print_summary(verdict.summary)
        _print_results(verdict.results)
    for reason in verdict.why_not:
        print(f"not rankable: {reason}")
    for note in verdict.notes:
        print(f"note: {note}")
    for finding in verdict.findings:
        print(f"finding: {finding}")


def _print_summary(summary: Summary) -> None:
    low, high = (format_flops(bound) for bound in summary.vflops_interval)
    score = "one run"
    if summary.num_completed > 1:
        score = f"median of {summary.num_completed} runs, 95 % interval {low} to {high}"
    if summary.vflops_variation is not None:
        score += f", variation {100 * summary.vflops_variation:.1f} %"
    print(f"  VFLOPS = {format_flops(summary.vflops)} ({score})")
    print("  of each run: FLOPS x (achieved quality / target quality) ^ n")
    if summary.vflops_2020 is not None and summary.vflops_2020_n10 is not None:
        exponent = f"{summary.vflops_exponent:g}"
        old = (
            f"{format_flops(summary.vflops_2020)} with n = {exponent}, {format_flops(summary.vflops_2020_n10)} with 10"
        )
        print(f"  by the convention of the ranking of 2020 (23 GFLOP a picture), never compare: {old}")


def _print_results(results: list[RunResult]) -> None:
    """One row a run: all parts of its VFLOPS and both clocks."""
    print("   seed          FLOPS   achieved   target   n         VFLOPS   ranked clock   training   target reached")
    for result in results:
        if result.flops is None or result.vflops is None or result.wall_s is None or result.train_s is None:
            print(f"  {result.seed:>5}   {result.status}")
            continue
        quality = f"{result.achieved_quality:>8.4f}   {result.target_quality:>6.4g}   {result.vflops_exponent:g}"
        reached = "no" if result.time_to_quality_s is None else f"after {result.time_to_quality_s:.1f} s"
        print(
            f"  {result.seed:>5}   {format_flops(result.flops):>12}   {quality}   {format_flops(result.vflops):>12}"
            f"   {result.wall_s:>10.2f} s {result.train_s:>8.2f} s   {reached}"
        )


def format_flops(value: float) -> str:
    """A rate with an SI prefix and four digits, as "61.23 GFLOPS"."""
    prefixes = ("", "k", "M", "G", "T", "P", "E", "Z")
    power = 0
    while value >= 1000 and power < len(prefixes) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.4g} {prefixes[power]}FLOPS"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    parser.add_argument("submission", type=Path, help="the submission.json to verify; its runs lie beneath its folder")
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON")
    parser.add_argument("--quiet", action="store_true", help="print nothing; the exit code tells")


def run(args: argparse.Namespace) -> int:
    """Verify and print; returns 0 if valid, 1 if not, 2 if it cannot be read."""
    try:
        verdict = verify_submission(args.submission)
    except RecordError as error:
        if not args.json:
            raise
        print(msgspec.json.encode({"valid": False, "error": str(error)}).decode())
        return error.exit_code
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(verdict), indent=2).decode())
    elif not args.quiet:
        print_verdict(verdict)
    return 0 if verdict.valid else 1


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``hpcai500-verify``."""
    return run_command("hpcai500-verify", sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
