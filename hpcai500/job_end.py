"""Decides what becomes of a run when its ranks have ended: it is over, or goes back to the queue."""

from __future__ import annotations

from dataclasses import dataclass, field

from hpcai500.command import INTERRUPTED_EXIT_CODE, LOST_RANK_EXIT_CODE, STOPPED_EXIT_CODE
from hpcai500.failure import Failure
from hpcai500.launch.launch_config import LaunchConfig
from hpcai500.launch.queue import JobRecord
from hpcai500.launch.step_output import BadEnd
from hpcai500.launches import Outcome
from hpcai500.record import Position


@dataclass(frozen=True)
class End:
    """How the ranks of a run ended in a job.

    Attributes:
        exit_code: of the launcher.
        is_complete: the run has its result.
        failure: what a rank noted first.
        bad_end: what the launcher saw first.
        stop_asked: the scheduler told the job to write a checkpoint, ahead of its time limit or for another job.
        terminated: the scheduler is ending the job.
        record: what Slurm said of the job then.
        cancelled_by: as part of a sentence, who cancelled the job and when.
    """

    exit_code: int
    is_complete: bool
    failure: Failure | None = None
    bad_end: BadEnd | None = None
    stop_asked: bool = False
    terminated: bool = False
    record: JobRecord = field(default_factory=JobRecord)
    cancelled_by: str = ""

    def is_requeued(self, restarts: int) -> bool:
        """Whether Slurm itself has put the job back into the queue: it counts that as a restart at once."""
        return self.terminated and (self.record.restarts > restarts or self.record.state == "PENDING")

    def is_cancelled(self, restarts: int) -> bool:
        """Whether the job is ended by what is neither its time limit nor Slurm's own need of the nodes."""
        known_otherwise = self.record.state in ("RUNNING", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        return self.terminated and not known_otherwise and not self.is_requeued(restarts)

    @property
    def final_exit_code(self) -> int | None:
        """1 or 2 if a rank met what a restart would meet again, and 130 after Ctrl-C; else None."""
        codes = [
            self.failure.exit_code if self.failure else None,
            self.bad_end.exit_code if self.bad_end else None,
            self.exit_code,
        ]
        first = next((code for code in codes if code is not None), None)
        return first if first in (1, 2, INTERRUPTED_EXIT_CODE) else None

    def describe(self) -> str:
        """What ended it, as part of a sentence."""
        failure, bad_end = self.failure, self.bad_end
        failed = failure is not None and failure.exit_code != STOPPED_EXIT_CODE
        ended_badly = bad_end is not None and bad_end.exit_code != STOPPED_EXIT_CODE
        causes = [  # the first that holds; what a rank says of it comes before what the launcher saw
            (self.terminated and self.record.state == "TIMEOUT", "the time limit came before a checkpoint"),
            (self.record.is_preempted, "a job of higher priority was given its nodes"),
            (bad_end is not None and bad_end.exit_code is None, bad_end.describe() if bad_end else ""),
            (failed, _describe_failure(failure) if failure else ""),
            (self.stop_asked, "its time limit was near"),
            (ended_badly, bad_end.describe() if bad_end else ""),
            (self.terminated, "Slurm took its nodes away"),
            (self.exit_code == STOPPED_EXIT_CODE, "it was told to stop"),
        ]
        return next((words for holds, words in causes if holds), f"the launcher ended with exit code {self.exit_code}")


def _describe_failure(failure: Failure) -> str:
    """Who failed and why; that a rank is gone is noted by another one, and names the rank itself."""
    if failure.exit_code == LOST_RANK_EXIT_CODE:
        return failure.reason.removesuffix("; the run can be resumed")
    return f"rank {failure.rank} on {failure.host}: {failure.reason.removeprefix(f'rank {failure.rank}: ')}"


@dataclass(frozen=True)
class Decision:
    """What to do.

    Attributes:
        outcome, reason: as noted in the launches.
        exit_code: of the job.
        must_requeue: ask Slurm to start the job again; not needed where Slurm does so itself.
    """

    outcome: Outcome
    exit_code: int
    reason: str
    must_requeue: bool = False


def decide(end: End, launch: LaunchConfig, *, restarts: int, positions: list[Position]) -> Decision:
    """Decide what becomes of the run.

    Args:
        end: how its ranks ended.
        launch: whether and how often the job may go back to the queue.
        restarts: how often Slurm started this job before.
        positions: what was safe in a checkpoint at each start on this run, in order, and now.
    """
    if end.is_complete:
        return Decision("completed", 0, "all epochs done")
    if end.is_requeued(restarts):
        return Decision("requeued", STOPPED_EXIT_CODE, end.describe())
    if end.is_cancelled(restarts):
        return Decision("cancelled", STOPPED_EXIT_CODE, f"the job was cancelled{end.cancelled_by}")
    final = end.final_exit_code
    if final is not None and not end.terminated:
        return Decision("interrupted" if final == INTERRUPTED_EXIT_CODE else "failed", final, end.describe())
    return _go_on(end, launch, restarts=restarts, positions=positions)


def _go_on(end: End, launch: LaunchConfig, *, restarts: int, positions: list[Position]) -> Decision:
    """What becomes of a run that could go on."""
    why = end.describe()
    exit_code = STOPPED_EXIT_CODE if end.exit_code == STOPPED_EXIT_CODE else LOST_RANK_EXIT_CODE
    if not (launch.requeue and end.record.can_requeue):
        return Decision("stopped", exit_code, why)
    if restarts >= launch.max_restarts:
        return Decision("given up", exit_code, f"{why}, and {restarts} restarts are the most allowed (max_restarts)")
    if not end.record.is_preempted and is_stuck(positions):
        where = f"epoch {positions[-1].epoch}, step {positions[-1].step}"
        return Decision("given up", exit_code, f"{why}, and twice in a row it did not get beyond {where}")
    return Decision("requeued", exit_code, why, must_requeue=True)


def is_stuck(positions: list[Position]) -> bool:
    """Whether the last two starts got nowhere."""
    return len(positions) >= 3 and positions[-1] <= positions[-2] and positions[-1] <= positions[-3]
