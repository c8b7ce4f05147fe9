"""Works on a run within a job of Slurm: starts its ranks, waits, and decides whether the job goes back to the queue.

Called in the batch step by what ``submit`` put into the queue, on the first node of the job. Slurm starts the same
batch step again after a requeue; the ranks then go on from the newest checkpoint by themselves.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from hpcai500 import launches
from hpcai500.comm.launchers import expand_nodes
from hpcai500.errors import HpcAi500Error, RecordError
from hpcai500.failure import failure_path, read_failure
from hpcai500.formats import SELFCHECK_NAME, RunConfig, read_config
from hpcai500.job_end import Decision, End, decide
from hpcai500.last_words import describe_before, next_segment, saved_position
from hpcai500.launch import software
from hpcai500.launch.launch_config import LaunchConfig, read_launch_config
from hpcai500.launch.queue import JobRecord, ask_accounting, ask_controller, requeue
from hpcai500.launch.step import RankStep, rank_command, step_command, step_environment
from hpcai500.over import assemble_if_over
from hpcai500.record import Position

NS_PER_S = 10**9
SETTLE_S = 5.0  # sacct, which knows who cancelled a job, is some seconds late; Slurm kills the job after KillWait


@dataclass(frozen=True)
class JobPlace:
    """The job this process is in, as Slurm's variables tell it.

    Attributes:
        id: "123", or "123_4" for an element of an array.
        raw_id: the number under which the controller keeps it.
        restarts: how often Slurm started it before.
        nodes: host names.
        start_ns: Unix time.
    """

    id: str
    raw_id: str
    restarts: int
    nodes: list[str]
    start_ns: int


def find_job() -> JobPlace:
    """Read Slurm's variables; this machine alone where there are none."""
    env = os.environ
    raw_id = env.get("SLURM_JOB_ID", "")
    array, index = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
    nodes = env.get("SLURM_JOB_NODELIST", "")
    start = env.get("SLURM_JOB_START_TIME", "")  # Slurm 23.02 and later
    started_s = float(start) if start.isdigit() else ask_controller(raw_id).started_s if raw_id else None
    return JobPlace(
        id=f"{array}_{index}" if array and index else raw_id,
        raw_id=raw_id,
        restarts=int(env.get("SLURM_RESTART_COUNT") or 0),
        nodes=expand_nodes(nodes) if nodes else [socket.gethostname()],
        start_ns=int((started_s or time.time()) * NS_PER_S),
    )


def run_job(submission_folder: Path, run_number: int) -> int:
    """Train a run of a submission in this job, from its beginning or from where it stands.

    Returns:
        0 when the run is complete; 1 or 2 when it failed for good; 75 or 76 when it can go on, which it does if the
        job went back to the queue.

    Raises:
        HpcAi500Error: the submission's folder cannot be read, or the ranks cannot be started.
    """
    driver = JobDriver(submission_folder, run_number)
    with driver.signals_taken():
        decision = driver.work()
    if decision.outcome in launches.OVER:
        assemble_if_over(submission_folder, this_job=driver.place.id)
    return decision.exit_code


class JobDriver:
    """One start of a job on one run."""

    def __init__(self, submission_folder: Path, run_number: int) -> None:
        self.folder, self.number = submission_folder.absolute(), run_number
        self.run_folder = self.folder / f"run-{run_number}"
        self.launch: LaunchConfig = read_launch_config(self.folder)
        self.config: RunConfig = read_config(self.run_folder)[0]
        self.place = find_job()
        self._software: software.StagedSoftware | None = None
        self._step: RankStep | None = None
        self._stop_asked = self._terminated = False

    @property
    def _folders(self) -> list[Path]:
        """What ranks have to see, also in a container."""
        return [self.folder, Path(self.config.data.path).parent]

    def say(self, words: str) -> None:
        """A line in the job's output."""
        print(f"hpcai500 job: run {self.number} {words}", flush=True)

    @contextmanager
    def signals_taken(self) -> Iterator[None]:
        """While the block runs, signals of the scheduler ask the ranks to stop; only in a main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGCONT)
        previous = {number: signal.signal(number, self._take_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _take_signal(self, number: int, _: FrameType | None) -> None:
        """Ranks are told with SIGUSR2, which launchers pass on; on SIGTERM srun would kill them at once."""
        if number == signal.SIGCONT:
            return
        if number == signal.SIGTERM:
            self._terminated = True
        elif number == signal.SIGINT and self._step is not None:
            self._step.end()
            return
        else:
            self._stop_asked = True
        if self._step is not None:
            self._step.signal(signal.SIGUSR2)

    def work(self) -> Decision:
        """Start the ranks, wait for their end, decide and note what becomes of the run."""
        if (self.run_folder / "result.json").exists():
            return Decision("completed", 0, "it was complete before")
        history = [launch for launch in launches.read_launches(self.folder) if launch.run == self.number]
        start = saved_position(self.run_folder)
        self._greet(history, start)
        launches.note_start(
            self.folder,
            self.number,
            job=self.place.id,
            restart=self.place.restarts,
            nodes=self.place.nodes,
            position=(start.epoch, start.step),
        )
        try:
            self._bring_software()
            decision = self._refuse_sick_nodes()
            if decision is None:
                problem = keep_selfcheck(self.folder / "log" / f"selfcheck-{self.place.id}.json", self.run_folder)
                if problem:
                    self.say(f"goes on without a copy of the self-check ({problem})")
                decision = self._train(history, start)
        except HpcAi500Error as error:
            self._note(Decision("failed", error.exit_code, str(error)), start)
            raise
        finally:
            self._remove_software()
        return decision

    def _bring_software(self) -> None:
        """Bring the software to the nodes if there is an archive of it; where that fails, ranks start as they would."""
        if self.launch.software_archive is None:
            return
        archive, folder = Path(self.launch.software_archive), Path(self.launch.software_dir)
        job = f"{self.place.raw_id}-{self.place.restarts}-{self.number}"
        staged = software.StagedSoftware(archive, folder, num_nodes=len(self.place.nodes), job=job)
        begin_s = time.monotonic()
        try:
            staged.bring()
        except software.SoftwareError as error:
            self.say(f"starts its ranks from where Python is installed, since {error}")
        else:
            self._software = staged
            self.say(f"has its software at {staged.root} of each node, after {time.monotonic() - begin_s:.1f} s")

    def _remove_software(self) -> None:
        if self._software is not None:
            self._software.remove()
            self._software = None

    def _greet(self, history: list[launches.Launch], start: Position) -> None:
        """On a restart, one line: what ended the run before, and where it goes on."""
        nodes = ", ".join(self.place.nodes)
        before = [launch for launch in history if launch.what != "queued"]
        if not before:
            self.say(f"starts on {nodes}")
            return
        where = f"from epoch {start.epoch}, step {start.step}" if start > Position(0, 0) else "from its beginning"
        ended = describe_before(self.run_folder, before[-1])
        self.say(f"goes on {where} on {nodes} (restart {self.place.restarts}); before, {ended}")

    def _refuse_sick_nodes(self) -> Decision | None:
        """Run the self-check on all nodes; a decision only if the run must not start."""
        policy, checked = self.launch.selfcheck, self.folder / "log" / f"selfcheck-{self.place.id}.json"
        if policy == "off" or checked.exists() or importlib.util.find_spec("hpcai500.selfcheck") is None:
            return None
        checked.parent.mkdir(exist_ok=True)
        communicator = str(self.config.settings["communicator"])
        words = ["--quick", "--json", str(checked), "--data", self.config.data.path, "--communicator", communicator]
        argv = rank_command(self.launch, "hpcai500.selfcheck", *words, folders=self._folders, software=self._software)
        exit_code = self._run_step(argv, ranks_per_node=1)
        if exit_code == 0:
            return None
        if checked.exists():
            checked.rename(checked.with_name(f"selfcheck-{self.place.id}-failed-{self.place.restarts}.json"))
        if policy == "warn" and not self._terminated:
            self.say("goes on although the self-check failed (--selfcheck warn)")
            return None
        reason = "the self-check refused a node, as the table above says; --selfcheck warn would go on"
        position = saved_position(self.run_folder)
        if self._terminated:
            return self._settle(End(exit_code, is_complete=False, terminated=True), [], position)
        return self._note(Decision("failed", 1, reason), position)

    def _train(self, history: list[launches.Launch], start: Position) -> Decision:
        segment = next_segment(self.run_folder)
        _put_aside(failure_path(self.run_folder, segment))
        stage, accuracy = self.launch.stage_dir, self.launch.ipmi_accuracy
        words = [
            str(self.run_folder),
            *(["--stage", stage, "--on-full-disk", self.launch.on_full_disk] if stage else []),
            *(["--ipmi-accuracy", str(accuracy)] if accuracy is not None else []),
        ]
        argv = rank_command(self.launch, "hpcai500.train", *words, folders=self._folders, software=self._software)
        exit_code = self._run_step(argv, segment=segment)
        self._remove_software()  # before the job goes back to the queue, which ends this process
        end = End(
            exit_code=exit_code,
            is_complete=exit_code == 0 and (self.run_folder / "result.json").exists(),
            failure=read_failure(self.run_folder, segment),
            bad_end=self._step.first_bad_end if self._step else None,
            stop_asked=self._stop_asked,
            terminated=self._terminated,
        )
        starts = [Position(*launch.position) for launch in history if launch.what == "started"]
        return self._settle(end, [*starts, start], saved_position(self.run_folder))

    def _run_step(self, argv: list[str], *, segment: int | None = None, ranks_per_node: int | None = None) -> int:
        """Run ``argv`` on all nodes and return the launcher's exit code."""
        env = step_environment(self.launch, job_start_ns=self.place.start_ns, environ=os.environ)
        env |= software.ENVIRONMENT if self._software is not None else {}
        num_nodes = len(self.place.nodes)
        command = step_command(self.launch, argv, num_nodes=num_nodes, ranks_per_node=ranks_per_node)
        self._step = RankStep(command, env)
        if self._stop_asked or self._terminated:  # told before there was anybody to tell
            self._step.signal(signal.SIGUSR2)
        try:
            return self._step.wait(
                has_failed=lambda: segment is not None and failure_path(self.run_folder, segment).exists()
            )
        finally:
            self._step.end()

    def _settle(self, end: End, positions: list[Position], position: Position) -> Decision:
        """Decide with what Slurm says of the job, note it, and go back to the queue if that is decided."""
        if end.is_complete:
            return self._note(decide(end, self.launch, restarts=0, positions=[]), position)
        record = ask_controller(self.place.raw_id) if self.place.raw_id else JobRecord()
        end = replace(end, record=record)
        if end.is_cancelled(self.place.restarts):
            end = replace(end, cancelled_by=self._who_cancelled())
        decision = decide(end, self.launch, restarts=self.place.restarts, positions=[*positions, position])
        if decision.must_requeue:
            self._stop_asked = self._terminated = True  # the signals of Slurm that follow are no news
        self._note(decision, position)
        if decision.must_requeue and (problem := requeue(self.place.id)):
            return self._note(
                Decision("stopped", decision.exit_code, f"the job cannot be requeued ({problem})"), position
            )
        return decision

    def _who_cancelled(self) -> str:
        """Who cancelled the job and when, to follow "the job was cancelled"; "" if Slurm does not tell in time."""
        until_s = time.monotonic() + SETTLE_S
        while self.place.id and time.monotonic() < until_s:
            job = ask_accounting([self.place.id]).get(self.place.id)
            if job is not None and job.cancelled_by:
                return job.describe().removeprefix("cancelled")
            time.sleep(0.3)
        return ""

    def _note(self, decision: Decision, position: Position) -> Decision:
        """Note the decision in the launches, and say it in one line."""
        launches.note_end(
            self.folder,
            self.number,
            job=self.place.id,
            outcome=decision.outcome,
            exit_code=decision.exit_code,
            reason=decision.reason,
            position=(position.epoch, position.step),
        )
        resume = f"go on with `hpcai500 submit --resume {self.folder}`"
        saved = f"epoch {position.epoch}, step {position.step} is safe in a checkpoint"
        sentences = {
            "completed": "is complete",
            "requeued": f"goes back to the queue, since {decision.reason}; {saved}",
            "stopped": f"stopped, since {decision.reason}; {saved}; {resume}",
            "given up": f"is given up, since {decision.reason}",
        }
        self.say(sentences.get(decision.outcome, f"{decision.outcome}: {decision.reason}"))
        return decision


def keep_selfcheck(checked: Path, run_folder: Path) -> str:
    """Copy a job's self-check to its run, if there is one and the run has none; returns what hindered it, or "".

    The verifier asks it what an accelerator can do that the rules do not list.
    """
    kept = run_folder / SELFCHECK_NAME
    if not checked.exists() or kept.exists():
        return ""
    try:
        shutil.copyfile(checked, kept)
    except OSError as error:
        return str(error.strerror)
    return ""


def _put_aside(path: Path) -> None:
    """Keep what an earlier start noted that came to no ledger, so that it is not taken for this start's."""
    if not path.exists():
        return
    number = 1
    while (aside := path.with_name(f"{path.stem}-before-{number}.json")).exists():
        number += 1
    try:
        path.rename(aside)
    except OSError as error:
        raise RecordError(
            f"cannot write {str(aside)!r} ({error.strerror}); name a folder that can be written"
        ) from None
