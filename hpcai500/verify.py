"""Decide whether a submission is valid, from the raw record and never from a summary.

Run as ``hpcai500-verify submission.json`` or ``hpcai500 verify submission.json``. Needs neither torch nor MPI.

What is covered and what is not stands in docs/verification.rst; the rules are in hpcai500/rulebook.py, the checks in
hpcai500/checks. In short: form, arithmetic, time, work, physics, learning, the rules of the level, statistics, tickets
and signatures. Not covered is a determined liar: all that stands in ledgers can be computed by anybody.

Findings about the form of ledgers come first; what the ledgers say is checked once they are whole.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from hpcai500.applied_rules import check_name
from hpcai500.checks import CONTENT_CHECKS, FORM_CHECKS, STRUCTURE_RULES, WHOLE_CHECKS
from hpcai500.checks.case import Case, RunCase
from hpcai500.checks.code import deviations
from hpcai500.checks.learning import convergence_notes
from hpcai500.checks.physics import unchecked
from hpcai500.checks.register import register_notes
from hpcai500.command import run_command
from hpcai500.edition import Edition, load_edition
from hpcai500.errors import HpcAi500Error, RecordError, UnknownNameError
from hpcai500.finding import Finding, begin_findings
from hpcai500.formats import SUBMISSION_NAME, Submission, decode, read_bytes
from hpcai500.judged_run import RunChecks, judge_runs
from hpcai500.register.trusted import TrustedKeys, default_trusted_path, describe_registration, find_trusted_keys
from hpcai500.signature import describe_signature
from hpcai500.submission import reasons_not_to_rank
from hpcai500.verdict import Unreadable, Verdict, encodable, errors_of, invalid, print_verdict, printable, verdict_form

EPILOG = """examples:
  hpcai500-verify runs/NAME/submission.json
  hpcai500-verify --json runs/NAME/submission.json
  hpcai500-verify submissions/
  hpcai500-verify --replay 20 --data data/mini.h5 runs/NAME/submission.json

exit code: 0 valid, 1 invalid, 2 cannot be read; of several submissions the highest"""


def verify_submission(
    path: Path, edition: Edition | None = None, *, jobs: int = 1, trusted: TrustedKeys | None = None
) -> Verdict:
    """Check a submission against the rules.

    Args:
        path: of submission.json.
        edition: the rules; those of this package by default.
        jobs: processes for the runs of a large submission, at most.
        trusted: keys that the reader knows; none by default.

    Raises:
        RecordError: the file cannot be read or is not JSON.
    """
    edition, trusted = edition or load_edition(), trusted or TrustedKeys()
    content = read_bytes(path)
    try:
        submission = decode(content, Submission)
    except RecordError as error:
        raise RecordError(f"{str(path)!r} cannot be read as a submission") from error
    if isinstance(submission, list):
        return invalid([Finding("form.schema", path.name, "a submission", problem) for problem in submission])
    try:
        workload = edition.workload(submission.workload)
        size = workload.size(submission.size)
        edition.level(submission.level)
    except UnknownNameError as error:
        return invalid([Finding("form.names", path.name, f"names of edition {edition.number}", str(error))])
    begin_findings()
    case = Case(path, edition, submission, workload, size, runs=[])
    judged, findings = judge_runs(case, _run_checks(), jobs=jobs)
    is_whole = not findings and all(run.result is not None for run in judged)
    results = [run.result for run in judged if run.result is not None] if is_whole else []
    runs = [run.run for run in judged]
    case = replace(case, runs=runs, known_results=results)
    findings += [finding for run in judged for finding in run.findings]
    checks = (*FORM_CHECKS, *(CONTENT_CHECKS if is_whole else ())) if runs else ()
    findings += [finding for check in checks if check in WHOLE_CHECKS for finding in check(case)]
    why_not = _why_not(case, findings)
    return Verdict(
        valid=not errors_of(findings),
        rankable=not why_not,
        why_not=why_not,
        findings=list(dict.fromkeys(findings)),  # several runs may break the same rule of the submission
        notes=[
            *(note for run in runs for note in _notes(run)),
            *(convergence_notes(case) if runs else ()),
            *register_notes(case),
            *unchecked(case),
        ],
        results=results,
        summary=case.summary,
        workload=submission.workload,
        level=submission.level,
        size=submission.size,
        edition=submission.edition,
        registration=describe_registration(submission.ticket, trusted),
        signed_by=describe_signature(path, trusted),
        checks=[check_name(check) for check in checks],
        deviations=deviations(case),
    )


def _run_checks() -> RunChecks:
    """The checks that look at one run at a time."""
    form = [check for check in FORM_CHECKS if check not in WHOLE_CHECKS]
    content = [check for check in CONTENT_CHECKS if check not in WHOLE_CHECKS]
    return RunChecks(form, content, STRUCTURE_RULES)


def _why_not(case: Case, findings: list[Finding]) -> list[str]:
    summary = case.summary
    reasons = reasons_not_to_rank(case.size) if summary is None else list(summary.why_not)
    for run in case.completed:
        others = {segment.num_ranks for segment in run.record.segments} - {run.config.num_ranks, 0}
        if others:
            number = ", ".join(map(str, sorted(others)))
            reasons.append(
                f"run {run.place} was resumed on {number} ranks instead of {run.config.num_ranks}, "
                "and a machine that changes has no speed of its own"
            )
    return [*reasons, "it is not valid"] if errors_of(findings) else reasons


def _notes(run: RunCase) -> Iterator[str]:
    if not run.is_complete:
        yield f"run {run.place} {run.record.status}: it is listed and not counted"
    elif len(run.record.segments) > 1:
        number = len(run.record.segments) - 1
        times = "once" if number == 1 else f"{number} times"
        yield f"run {run.place} was resumed {times}; its clock ran on all the while"


class Judged(NamedTuple):
    """A submission that was looked at: its verdict, or why there is none."""

    path: Path
    verdict: Verdict | None
    error: str = ""

    @property
    def exit_code(self) -> int:
        """0 valid, 1 invalid, 2 it cannot be read."""
        if self.verdict is None:
            return RecordError.exit_code
        return 0 if self.verdict.valid else 1


def judge(path: Path, *, debug: bool = False, jobs: int = 1, trusted: TrustedKeys | None = None) -> Judged:
    """Verify a submission and never raise, so that one hostile submission cannot stop the judging of others.

    Args:
        path: of the submission.
        debug: raise what nobody expected, for developers.
        jobs: processes for its runs, at most.
        trusted: keys that the reader knows.
    """
    try:
        return Judged(path, verify_submission(path, jobs=jobs, trusted=trusted))
    except RecordError as error:
        return Judged(path, None, str(error))
    except Exception as error:  # a bug of the verifier, which is no reason to call the submission valid or invalid
        if debug:
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}: {error}"
        return Judged(path, None, f"{str(path)!r} cannot be judged, please report it with what --debug prints ({what})")


def judge_all(
    paths: Sequence[Path], *, jobs: int, debug: bool = False, trusted: TrustedKeys | None = None
) -> Iterator[Judged]:
    """Verify submissions in their order, several at a time.

    Raises:
        RecordError: the system killed a process that was verifying.
    """
    if min(jobs, len(paths)) <= 1:
        yield from (judge(path, debug=debug, jobs=jobs, trusted=trusted) for path in paths)
        return
    from concurrent.futures import ProcessPoolExecutor  # slow to import, and not needed for one submission
    from concurrent.futures.process import BrokenProcessPool

    with ProcessPoolExecutor(min(jobs, len(paths))) as executor:
        try:
            yield from executor.map(partial(judge, debug=debug, trusted=trusted), paths)
        except BrokenProcessPool:
            raise RecordError(
                "a process that was verifying has been killed, perhaps for want of memory; use --jobs 1"
            ) from None


def find_submissions(paths: Sequence[Path]) -> list[Path]:
    """Files as they are; of a folder its submission.json, or those of all folders beneath it."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        own = path / SUBMISSION_NAME
        beneath = [] if own.exists() else sorted(path.rglob(SUBMISSION_NAME))
        found += beneath or [own]
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    parser.add_argument(
        "submissions",
        metavar="submission",
        type=Path,
        nargs="+",
        help="a submission.json, beneath whose folder its runs lie, or a folder with submissions",
    )
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON; of several, one a line")
    parser.add_argument("--quiet", action="store_true", help="print nothing; the exit code tells")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes for several submissions")
    parser.add_argument("--sarif", type=Path, metavar="FILE", help="write the findings as SARIF 2.1.0")
    parser.add_argument(
        "--junit", type=Path, metavar="FILE", help="write a JUnit report with a test case for each rule"
    )
    parser.add_argument(
        "--trusted-keys",
        type=Path,
        metavar="FILE",
        help=f"keys of registers and signers and whose they are (default: {default_trusted_path()}, if it is there)",
    )
    parser.add_argument("--debug", action="store_true", help="show where the verifier itself fails")
    group = parser.add_argument_group("replay (needs torch)")
    group.add_argument(
        "--replay", type=int, metavar="STEPS", help="train so many steps of a run again, and compare what they lose"
    )
    group.add_argument("--replay-run", type=int, metavar="N", help="of this run, from 1 (default: the first completed)")
    group.add_argument(
        "--replay-from",
        choices=("checkpoint", "beginning"),
        help="where to begin (default: at a checkpoint of the run if there is one beside it)",
    )
    group.add_argument("--data", type=Path, help="the run's data on this machine (default: where it lay then)")


def run(args: argparse.Namespace) -> int:
    """Verify and print; returns 0 if valid, 1 if not, 2 if it cannot be read, and the highest of several.

    Raises:
        RecordError: the only submission cannot be read.
        UsageError: the trusted keys cannot be read.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a stranger's name in a terminal of another alphabet
    paths = find_submissions(args.submissions)
    codes: Counter[int] = Counter()
    kept: list[Judged] = []
    trusted = find_trusted_keys(args.trusted_keys)
    for judged in judge_all(paths, jobs=args.jobs, debug=args.debug, trusted=trusted):
        if args.replay is not None:
            judged = replay(judged, args)  # noqa: PLW2901
        codes[judged.exit_code] += 1
        if args.json:
            print(_as_json(judged, is_only=len(paths) == 1))
        elif not args.quiet and (judged.verdict is not None or len(paths) > 1):
            _print_judged(judged, is_only=len(paths) == 1)
        if args.sarif or args.junit:
            kept.append(judged)
    _write_reports(kept, args.sarif, args.junit)
    if len(paths) == 1 and judged.verdict is None and not args.json:
        raise RecordError(judged.error)
    if len(paths) > 1 and not args.json and not args.quiet:
        print(f"{len(paths):,} submissions: {codes[0]:,} valid, {codes[1]:,} invalid, {codes[2]:,} cannot be read")
    return max(codes)


def replay(judged: Judged, args: argparse.Namespace) -> Judged:
    """The same with what a replay finds, or why there can be none."""
    if judged.verdict is None:
        return judged
    from hpcai500.replay.replay import ReplayRequest, replay_verdict

    request = ReplayRequest(
        num_steps=args.replay, run=args.replay_run, data=args.data, origin=args.replay_from, quiet=args.quiet
    )
    try:
        return judged._replace(verdict=replay_verdict(judged.path, judged.verdict, request))
    except HpcAi500Error as error:
        return Judged(judged.path, None, f"{str(judged.path)!r} cannot be replayed: {error}")


def _write_reports(judged: list[Judged], sarif: Path | None, junit: Path | None) -> None:
    """Write what CI systems read, over what an earlier call has written."""
    verdicts = [(one.path, one.verdict) for one in judged if one.verdict is not None]
    unreadable = [(one.path, one.error) for one in judged if one.verdict is None]
    if sarif is not None:
        from hpcai500.sarif import sarif_log

        write_text(sarif, msgspec.json.format(msgspec.json.encode(sarif_log(verdicts, unreadable)), indent=2).decode())
    if junit is not None:
        from hpcai500.junit import junit_report

        write_text(junit, junit_report(verdicts, unreadable))


def write_text(path: Path, text: str) -> None:
    """Write a report.

    Raises:
        RecordError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RecordError(f"cannot write {str(path)!r} ({error.strerror}); name another file") from None


def _as_json(judged: Judged, *, is_only: bool) -> str:
    path, verdict = str(judged.path), judged.verdict
    error = Unreadable(submission=encodable(path), error=encodable(judged.error))
    content = msgspec.json.encode(verdict_form(verdict, path) if verdict else error)
    return (msgspec.json.format(content, indent=2) if is_only else content).decode()


def _print_judged(judged: Judged, *, is_only: bool) -> None:
    if not is_only:
        print(printable(f"{judged.path}:"))
    if judged.verdict is None:
        print(printable(f"CANNOT BE READ: {judged.error}"))
    else:
        print_verdict(judged.verdict)
    if not is_only:
        print()


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``hpcai500-verify``."""
    return run_command("hpcai500-verify", sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
