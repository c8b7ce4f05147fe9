"""Finds out whether all runs of a submission are over, and assembles the submission then: once, whoever looks first."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from hpcai500 import launches
from hpcai500.durable import write_whole
from hpcai500.edition import load_edition
from hpcai500.errors import BackendUnavailableError, HpcAi500Error
from hpcai500.formats import SUBMISSION_NAME
from hpcai500.launch.launch_config import LAUNCH_NAME, read_launch_config
from hpcai500.launch.queue import Queue
from hpcai500.record import list_ledgers
from hpcai500.register.ticket import TICKET_NAME
from hpcai500.register.trusted import find_trusted_keys
from hpcai500.submission import assemble_submission
from hpcai500.verdict import Verdict, print_verdict
from hpcai500.verify import verify_submission

REPORT_NAME = "report.html"


def run_folders(submission_folder: Path) -> list[Path]:
    """The folders of all runs of a submission, in order."""
    folders = [path for path in submission_folder.glob("run-*") if path.name[4:].isdigit()]
    return sorted(folders, key=lambda path: int(path.name[4:]))


def submitted_folders(submission_folder: Path) -> list[Path]:
    """The folders of the runs that a submission lists: those that started, or all if a ticket announced them."""
    is_announced = (submission_folder / TICKET_NAME).exists()
    return [folder for folder in run_folders(submission_folder) if is_announced or list_ledgers(folder)]


def submitter_of(submission_folder: Path) -> str | None:
    """Who submits, if that was said.

    Raises:
        RecordError: launch.json cannot be read.
    """
    has_launch = (submission_folder / LAUNCH_NAME).exists()
    return read_launch_config(submission_folder).submitter if has_launch else None


def is_over(submission_folder: Path, *, this_job: str = "", queue: Queue | None = None) -> bool:
    """Whether no run will go on by itself: each has ended for good, or its job is no longer there.

    Args:
        submission_folder: the folder.
        this_job: id of the job that asks, which is still there itself; its run is judged by what it noted.
        queue: to ask; a new one by default.

    Raises:
        BackendUnavailableError: Slurm does not answer, so it cannot be told.
        RecordError: the folder cannot be read.
    """
    noted = launches.read_launches(submission_folder)
    jobs = launches.queued_jobs(noted)
    unsure = []
    for folder in run_folders(submission_folder):
        number = int(folder.name[4:])
        last = launches.last_of(noted, number)
        if (folder / "result.json").exists() or (last is not None and last.outcome in launches.OVER):
            continue
        if number not in jobs or not jobs[number] or jobs[number] == this_job:
            return False  # of this machine, or of a job that runs its runs one after the other
        if last is not None and last.outcome in ("stopped", "interrupted"):
            return False  # its user may go on with it
        unsure.append(jobs[number])
    told = (queue or Queue()).ask(unsure) if unsure else {}
    return not any(job.is_active for job in told.values())


def has_job_left(submission_folder: Path, queue: Queue) -> bool:
    """Whether a job of the submission is still there, though its runs may be over.

    The last of them assembles the submission, with the verdict in its log, so who only looks leaves it to it.

    Raises:
        RecordError: the folder cannot be read.
    """
    jobs = launches.queued_jobs(launches.read_launches(submission_folder)).values()
    try:
        return any(job.is_active for job in queue.ask(jobs).values())
    except BackendUnavailableError:
        return False


def assemble_if_over(submission_folder: Path, *, this_job: str = "", queue: Queue | None = None) -> bool | None:
    """Assemble and verify the submission if all its runs are over, and print the verdict.

    Several processes may do so at once: one of them makes the submission, the others do nothing.

    Returns:
        Whether the submission is valid; None if it is not assembled by this call.
    """
    path = submission_folder / SUBMISSION_NAME
    try:
        if path.exists() or not is_over(submission_folder, this_job=this_job, queue=queue):
            return None
        if not any(map(list_ledgers, run_folders(submission_folder))):
            return None  # cancelled before anything began
        if not _assemble(submission_folder, path):
            return None
    except BackendUnavailableError:
        return None  # whoever looks next will know more
    except HpcAi500Error as error:
        print(f"hpcai500: all runs are over, but there is no submission: {error}", flush=True)
        return False
    return show_verdict(path)


def _assemble(submission_folder: Path, path: Path) -> bool:
    """Make submission.json; whether it was made here."""
    draft = submission_folder / f".{SUBMISSION_NAME}.{uuid.uuid4()}"
    folders = submitted_folders(submission_folder)
    try:
        assemble_submission(folders, draft, submitter=submitter_of(submission_folder))
        os.link(draft, path)  # whole at once, and never over an existing one
    except FileExistsError:
        return False
    finally:
        draft.unlink(missing_ok=True)
    return True


def show_verdict(path: Path) -> bool:
    """Verify a submission, print the verdict and where it lies, and write the report beside it."""
    trusted = find_trusted_keys()
    verdict = verify_submission(path, trusted=trusted)
    print()
    print_verdict(verdict)
    shown = os.path.relpath(path)
    print(f"\nsubmission: {shown}\nverify it: hpcai500-verify {shown}")
    print(_write_report(path, verdict), flush=True)
    return verdict.valid


def _write_report(path: Path, verdict: Verdict) -> str:
    """Write the report beside a submission, unless it is there; say where it is, or in a sentence why there is none.

    Whatever goes wrong with it, the submission is there and judged, so nothing is raised.
    """
    report = path.with_name(REPORT_NAME)
    try:
        from hpcai500.report.page import render_subjects  # slow to import, and seldom needed
        from hpcai500.report.subject import read_subject

        if not report.exists():
            page = render_subjects([read_subject(path, load_edition(), verdict=verdict)])
            write_whole(report, page.encode("utf-8"))
    except Exception as error:  # a picture of the figures must not cost them
        return f"report: none, since {type(error).__name__}: {error}; `hpcai500 report` may do better"
    return f"report: {os.path.relpath(report)}"
