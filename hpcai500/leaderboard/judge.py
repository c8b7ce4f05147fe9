"""Looks at one archive in a process of its own, with limits: unpacks it, verifies it and computes its entry.

Run as ``python -m hpcai500.leaderboard.judge ARCHIVE FOLDER``, with trusted keys as JSON on standard input. It writes
``verdict.json`` and ``outcome.json`` into FOLDER, and then ``report.html`` if that can be had. Whatever a stranger's
archive does to it, the server only loses this process.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from hpcai500.durable import write_whole
from hpcai500.edition import load_edition
from hpcai500.errors import RecordError
from hpcai500.formats import SUBMISSION_NAME, SignedTicket, Submission, read_record
from hpcai500.leaderboard.archive import unpack
from hpcai500.leaderboard.entries import Entry, read_entry
from hpcai500.leaderboard.storage import REPORT, VERDICT
from hpcai500.plain_files import MAX_FILE_BYTES
from hpcai500.register.trusted import TrustedKeys
from hpcai500.report.page import render_subjects
from hpcai500.report.subject import read_subject
from hpcai500.verdict import Verdict, errors_of, printable, verdict_form
from hpcai500.verify import verify_submission

OUTCOME = "outcome.json"
DISK_ERROR = re.compile(r"^OSError: \[Errno (\d+)\] (.*?)(:|$)", re.MULTILINE)
MAX_MEMORY_BYTES = 4 << 30
MAX_CPU_S = 900
MAX_WALL_S = 1800.0
PROGRAM = (sys.executable, "-m", "hpcai500.leaderboard.judge")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the judging of one archive may take."""

    memory_bytes: int = MAX_MEMORY_BYTES
    cpu_s: int = MAX_CPU_S
    wall_s: float = MAX_WALL_S


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an archive.

    Attributes:
        submission_sha256: of the submission.json in it; None if there is none.
        entry: of a valid submission.
        problem: of any other, in a sentence.
        ticket: that its runs were announced by.
    """

    submission_sha256: str | None = None
    entry: Entry | None = None
    problem: str | None = None
    ticket: SignedTicket | None = None


def judge_archive(
    archive: Path, folder: Path, trusted: TrustedKeys, *, limits: Limits | None = None, program: Sequence[str] = PROGRAM
) -> Outcome:
    """Judge an archive in a process of its own.

    Args:
        archive: the file.
        folder: new; for what is unpacked and written.
        trusted: keys that count.
        limits: of the process.
        program: that is run.

    Raises:
        OSError: the disk is full or broken, or no process can be started; nothing is said about the archive then.
    """
    limits = limits or Limits()
    folder.mkdir(parents=True)
    words = [*program, str(archive), str(folder), "--memory", str(limits.memory_bytes), "--cpu", str(limits.cpu_s)]
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")}
    with (folder / "judge.log").open("wb") as log:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"},
            start_new_session=True,
        )
    try:
        process.communicate(msgspec.json.encode(trusted), timeout=limits.wall_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder / "submission", ignore_errors=True)
    return _read_outcome(folder, process.returncode)


def _read_outcome(folder: Path, exit_code: int) -> Outcome:
    """What the process has written, or why it has not."""
    with suppress(FileNotFoundError):
        return msgspec.json.decode((folder / OUTCOME).read_bytes(), type=Outcome)
    log = (folder / "judge.log").read_text(errors="replace").strip()
    if found := DISK_ERROR.search(log):
        raise OSError(int(found[1]), found[2])
    if exit_code in (-signal.SIGXCPU, -signal.SIGKILL) or "MemoryError" in log:
        return Outcome(problem="verifying it takes more time or memory than this board gives a submission")
    raise OSError(f"the judge failed with exit code {exit_code} ({printable(log[-500:])})")


def look_at(archive: Path, folder: Path, trusted: TrustedKeys) -> tuple[Outcome, Verdict | None]:
    """Unpack and verify; write verdict.json.

    Returns:
        The outcome, in which stands what is wrong with the archive; the verdict on a valid submission.
    """
    try:
        submission = unpack(archive, folder / "submission")
    except RecordError as error:
        return Outcome(problem=printable(str(error))), None
    sha256 = hashlib.sha256(submission.read_bytes()).hexdigest()
    try:
        verdict = verify_submission(submission, trusted=trusted)
    except RecordError as error:
        return Outcome(submission_sha256=sha256, problem=printable(str(error.__cause__ or error))), None
    form = msgspec.json.encode(verdict_form(verdict, SUBMISSION_NAME))
    write_whole(folder / VERDICT, msgspec.json.format(form, indent=2) + b"\n")
    if not verdict.valid:
        first, *more = errors_of(verdict.findings)
        others = f" and {len(more):,} more findings" if len(more) > 1 else " and one more finding" if more else ""
        return Outcome(submission_sha256=sha256, problem=printable(f"it is not valid: {first}{others}")), None
    ticket = read_record(submission, Submission).ticket
    return Outcome(submission_sha256=sha256, entry=read_entry(submission, verdict), ticket=ticket), verdict


def _write_report(folder: Path, verdict: Verdict) -> None:
    """The report is for people; a submission is no less valid where it cannot be drawn, which the log tells."""
    try:
        submission = folder / "submission" / SUBMISSION_NAME
        page = render_subjects([read_subject(submission, load_edition(), verdict=verdict)])
        write_whole(folder / REPORT, page.encode("utf-8", "backslashreplace"))
    except Exception:
        traceback.print_exc()


def main(argv: list[str] | None = None) -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(description="Judge one archive; started by a leaderboard's server.")
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", type=int, default=MAX_MEMORY_BYTES, metavar="BYTES")
    parser.add_argument("--cpu", type=int, default=MAX_CPU_S, metavar="SECONDS")
    args = parser.parse_args(argv)
    _limit(args.memory, args.cpu)
    trusted = msgspec.json.decode(sys.stdin.buffer.read() or b"{}", type=TrustedKeys)
    outcome, verdict = look_at(args.archive, args.folder, trusted)
    write_whole(args.folder / OUTCOME, msgspec.json.encode(outcome))
    if verdict is not None:
        _write_report(args.folder, verdict)
    return 0


def _limit(memory_bytes: int, cpu_s: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = MAX_FILE_BYTES if most == resource.RLIM_INFINITY else min(MAX_FILE_BYTES, most)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


if __name__ == "__main__":
    sys.exit(main())
