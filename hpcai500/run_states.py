"""How far the runs of a submission are: from the files in its folder and, where there is one, from Slurm's queue."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

from hpcai500 import launches
from hpcai500.edition import load_edition
from hpcai500.errors import BackendUnavailableError, HpcAi500Error, UsageError
from hpcai500.formats import RunConfig, RunResult, read_config, read_record
from hpcai500.last_words import describe_silent_ranks
from hpcai500.launch.queue import Job, Queue
from hpcai500.over import run_folders
from hpcai500.progress import RunFollower, RunState


@dataclass(frozen=True)
class RunView:
    """What is known of a run.

    Attributes:
        number: as in its folder's name.
        state: "waiting", "in the queue", "running", "completed", "failed", "cancelled", "interrupted", "given up",
            "stopped", "unknown".
        detail: in words, why it is so or how far it is.
        is_over: it will not go on by itself.
        job: the scheduler's id, "" without one.
        progress: as its ledger tells.
    """

    number: int
    state: str
    detail: str
    is_over: bool
    job: str
    progress: RunState


@dataclass(frozen=True)
class SubmissionView:
    """What is known of a submission.

    Attributes:
        title: workload, level and size.
        problem: why Slurm could not be asked; "" if it could, or need not be.
    """

    folder: Path
    title: str
    runs: list[RunView]
    problem: str = ""

    @property
    def is_over(self) -> bool:
        """Whether no run will go on by itself."""
        return all(run.is_over for run in self.runs)


@dataclass
class SubmissionFollower:
    """Looks at a submission again and again.

    Raises:
        UsageError: the folder holds no submission.
        RecordError: a run's config.json cannot be read.
    """

    folder: Path
    queue: Queue = field(default_factory=Queue)

    def __post_init__(self) -> None:
        folders = run_folders(self.folder)
        if not folders:
            raise UsageError(
                f"{str(self.folder)!r} holds no submission; name the folder that `hpcai500 submit` made, "
                "or see `hpcai500 status` for all of yours"
            )
        self._configs: dict[int, RunConfig] = {int(path.name[4:]): read_config(path)[0] for path in folders}
        first = next(iter(self._configs.values()))
        self.title = f"{first.workload}, {first.level} level, size {first.size}"
        self._followers = {number: self._follow(number, config) for number, config in self._configs.items()}

    def _follow(self, number: int, config: RunConfig) -> RunFollower:
        try:
            size = load_edition().workload(config.workload).size(config.size)
            num_epochs, target = size.epochs, size.target_quality
        except HpcAi500Error:  # of an edition that is not this one
            num_epochs, target = 0, None
        folder = self.folder / f"run-{number}"
        return RunFollower(folder, num_epochs=num_epochs, num_ranks=config.num_ranks, target_quality=target)

    def look(self) -> SubmissionView:
        """What is known now.

        Raises:
            RecordError: a file cannot be read.
        """
        noted = launches.read_launches(self.folder)
        jobs, problem = launches.queued_jobs(noted), ""
        told: dict[str, Job] = {}
        unsettled = [job for number, job in jobs.items() if job and not self._has_ended(number, noted)]
        try:
            told = self.queue.ask(unsettled) if unsettled else {}
        except BackendUnavailableError as error:
            problem = str(error)
        views = [
            self._view(number, noted, told.get(jobs.get(number, "")), jobs.get(number, "")) for number in self._configs
        ]
        return SubmissionView(self.folder, self.title, views, problem)

    def _has_ended(self, number: int, noted: list[launches.Launch]) -> bool:
        last = launches.last_of(noted, number)
        return (self.folder / f"run-{number}" / "result.json").exists() or (
            last is not None and last.outcome in launches.OVER
        )

    def _view(self, number: int, noted: list[launches.Launch], job: Job | None, job_id: str) -> RunView:
        folder, progress = self.folder / f"run-{number}", self._followers[number].poll()
        last = launches.last_of(noted, number)
        if (folder / "result.json").exists():
            state, detail, is_over = "completed", _describe_result(folder), True
        elif last is not None and last.outcome in launches.OVER:
            state, detail, is_over = str(last.outcome), last.reason, True
        elif job is not None:
            state, detail, is_over = self._view_of_job(folder, job, last, progress)
        elif job_id:
            state, detail, is_over = "unknown", "Slurm could not be asked", False
        else:
            state, detail, is_over = self._view_of_process(folder, number, noted, progress)
        return RunView(number, state, detail, is_over, job_id, progress)

    def _view_of_job(
        self, folder: Path, job: Job, last: launches.Launch | None, progress: RunState
    ) -> tuple[str, str, bool]:
        before = f"; before, {last.reason}" if last is not None and last.outcome == "requeued" else ""
        if job.state == "PENDING":
            return "in the queue", job.describe().removeprefix("in the queue: ") + before, False
        if job.is_active:
            begun = last is not None and last.what == "started"
            return "running", progress.describe() if begun else f"{job.describe()}{before}", False
        if last is not None and last.outcome in ("stopped", "interrupted"):
            return last.outcome, f"{last.reason}; go on with `hpcai500 submit --resume {self.folder}`", True
        state = "cancelled" if job.state == "CANCELLED" else "interrupted"
        words = [job.describe().removeprefix("cancelled").strip(), describe_silent_ranks(folder)]
        return state, "; ".join(filter(None, words)), True

    def _view_of_process(
        self, folder: Path, number: int, noted: list[launches.Launch], progress: RunState
    ) -> tuple[str, str, bool]:
        """A run of a machine without a scheduler: alive if the process that trains it is."""
        last = launches.last_of(noted, number)
        if last is not None and last.what == "ended":
            return str(last.outcome), f"{last.reason}; go on with `hpcai500 submit --resume {self.folder}`", True
        starter = last or next((launch for launch in reversed(noted) if launch.what == "queued"), None)
        if starter is not None and starter.host == socket.gethostname():
            if Path(f"/proc/{starter.pid}").exists():
                return ("running", progress.describe(), False) if last else ("waiting", "for the run before it", False)
        elif starter is not None:
            return "unknown", f"started on {starter.host}; ask there", False
        if progress.phase in ("completed", "failed", "interrupted"):
            return progress.phase, progress.describe(), True
        return "interrupted", describe_silent_ranks(folder) or "nothing has begun", True


def _describe_result(folder: Path) -> str:
    try:
        result = read_record(folder / "result.json", RunResult)
    except HpcAi500Error:  # it is being written, or damaged, which the verifier will say
        return ""
    quality = "?" if result.achieved_quality is None else f"{result.achieved_quality:.4f}"
    rate = "" if result.samples_per_s is None else f", {result.samples_per_s:.1f} images/s"
    return f"quality {quality} in {format_duration(result.wall_s or 0)}{rate}"


def format_duration(seconds: float) -> str:
    """``42 s``, ``12 min``, ``3 h 05 min`` or ``2 d 03 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24:02d} h"


def begun_at(folder: Path) -> str:
    """When a submission was made, for people."""
    noted = launches.read_launches(folder)
    since_s = noted[0].time_ns / 1e9 if noted else folder.stat().st_mtime
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(since_s))


def shown_path(folder: Path) -> str:
    """The shorter of the absolute and the relative path."""
    return min(os.path.relpath(folder), str(folder.absolute()), key=len)
