"""What was started for a submission and how it ended, and where the submissions of this user lie.

``launches.jsonl`` says what went to the queue; only ``submit`` writes it. ``launches-run-1.jsonl`` and so on say when
a job began to work on a run and how that ended; only the job that holds the run writes there. So no file has two
writers at a time, which shared file systems would not keep apart. Both are read as one by ``read_launches``.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Literal

import msgspec

from hpcai500.errors import RecordError
from hpcai500.events import Count, UnixTime

QUEUE_NAME = "launches.jsonl"
What = Literal["queued", "started", "ended"]
# What becomes of a run when a job ends: it is over in all cases but the last three, in which it is gone on with, by
# Slurm or by its user.
Outcome = Literal["completed", "failed", "cancelled", "given up", "requeued", "stopped", "interrupted"]
OVER: frozenset[Outcome] = frozenset({"completed", "failed", "cancelled", "given up"})


class Launch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line.

    Attributes:
        what: "queued" by ``submit``, "started" and "ended" by the job itself.
        time_ns: Unix time.
        job: the scheduler's id ("123", or "123_4" for an element of an array); "" on a machine without one.
        runs: queued only: which run is which element of the array ("" if it is none; then runs follow each other).
        run: started and ended: number of the run.
        restart: how often the scheduler had started this job before.
        host, pid: of the process that wrote the line.
        nodes: the nodes of the job.
        position: epochs, and steps of the next one, that are safe in a checkpoint.
        exit_code, outcome, reason: ended only.
    """

    what: What
    time_ns: UnixTime
    job: str = ""
    runs: dict[str, list[int]] = {}
    run: Count = 0
    restart: Count = 0
    host: str = ""
    pid: Count = 0
    nodes: list[str] = []
    position: tuple[int, int] = (0, 0)
    exit_code: Count = 0
    outcome: Outcome | None = None
    reason: str = ""


def note_launch(folder: Path, *, job: str, runs: dict[str, list[int]]) -> None:
    """Note that runs of the submission went to the queue (or begin on this machine, then ``job`` is "").

    Args:
        folder: of the submission.
        job: the scheduler's id of the whole job or array.
        runs: array index -> numbers of the runs; the index is "" for a job that is no array.

    Raises:
        RecordError: the folder cannot be written.
    """
    launch = Launch(
        what="queued", time_ns=time.time_ns(), job=job, runs=runs, host=socket.gethostname(), pid=os.getpid()
    )
    _append(folder / QUEUE_NAME, launch)


def note_start(
    folder: Path, run: int, *, job: str = "", restart: int = 0, nodes: list[str], position: tuple[int, int]
) -> None:
    """Note that this process begins to start the ranks of a run.

    Raises:
        RecordError: the folder cannot be written.
    """
    launch = Launch(
        what="started",
        time_ns=time.time_ns(),
        job=job,
        run=run,
        restart=restart,
        host=socket.gethostname(),
        pid=os.getpid(),
        nodes=nodes,
        position=position,
    )
    _append(_run_path(folder, run), launch)


def note_end(
    folder: Path, run: int, *, job: str = "", outcome: Outcome, exit_code: int, reason: str, position: tuple[int, int]
) -> None:
    """Note what became of the run in this job.

    Raises:
        RecordError: the folder cannot be written.
    """
    launch = Launch(
        what="ended",
        time_ns=time.time_ns(),
        job=job,
        run=run,
        host=socket.gethostname(),
        pid=os.getpid(),
        position=position,
        exit_code=exit_code,
        outcome=outcome,
        reason=reason,
    )
    _append(_run_path(folder, run), launch)


def read_launches(folder: Path) -> list[Launch]:
    """All lines of a submission, in the order in which they happened; a line cut by a crash is left out.

    Raises:
        RecordError: a file cannot be read.
    """
    launches: list[Launch] = []
    for path in [folder / QUEUE_NAME, *sorted(folder.glob("launches-run-*.jsonl"))]:
        try:
            lines = path.read_bytes().splitlines()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RecordError(f"cannot read {str(path)!r} ({error.strerror})") from None
        for line in lines:
            try:
                launches.append(msgspec.json.decode(line, type=Launch))
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
    return sorted(launches, key=lambda launch: launch.time_ns)


def queued_jobs(launches: list[Launch]) -> dict[int, str]:
    """The job that a run was last given to, by the number of the run: "123", or "123_4" in an array."""
    jobs: dict[int, str] = {}
    for launch in launches:
        if launch.what == "queued":
            for index, runs in launch.runs.items():
                jobs |= dict.fromkeys(runs, f"{launch.job}_{index}" if index else launch.job)
        elif launch.what == "started" and launch.job:
            jobs[launch.run] = launch.job
    return jobs


def last_of(launches: list[Launch], run: int) -> Launch | None:
    """The last line of a job about a run."""
    return next((launch for launch in reversed(launches) if launch.run == run and launch.what != "queued"), None)


def _run_path(folder: Path, run: int) -> Path:
    return folder / f"launches-run-{run}.jsonl"


def _append(path: Path, launch: Launch) -> None:
    line = msgspec.json.encode(launch) + b"\n"
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line)
        finally:
            os.close(file)
    except OSError as error:
        raise RecordError(f"cannot write {str(path)!r} ({error.strerror}); name a folder that can be written") from None


def index_path() -> Path:
    """The list of this user's submissions, one path a line (XDG Base Directory Specification: state)."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "hpcai500" / "submissions"


def note_submission(folder: Path) -> None:
    """Put a submission's folder on the list of this user.

    A list that cannot be written is no reason not to train: the submission is then found by its folder only.
    """
    path = index_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{folder.resolve()}\n")
    except OSError:
        return


def list_submissions() -> list[Path]:
    """The folders of this user's submissions that still exist, the newest first."""
    try:
        lines = index_path().read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    folders = [Path(line) for line in dict.fromkeys(reversed(lines)) if line.startswith("/")]
    return [folder for folder in folders if (folder / "run-1" / "config.json").exists()]
