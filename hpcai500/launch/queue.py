"""What Slurm says of jobs: their state, why they wait, who cancelled them and when.

squeue knows the jobs that are there and those that ended a few minutes ago; sacct knows all, seconds later, and not at
every site. Both are asked for fields between bars, which all versions have and their JSON is not, and for Unix times.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from hpcai500.errors import BackendUnavailableError

SQUEUE_FIELDS = "%i|%A|%T|%r|%S|%e|%N|%D|%P"
SACCT_FIELDS = "JobID,JobIDRaw,State,Reason,Start,End,NodeList,NNodes,Partition"
# States of a job that is over, as squeue(1) lists them; what is not here waits, runs or is being requeued.
ENDED_STATES = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"}
    | {"NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"}
)
UNKNOWN = "UNKNOWN"  # neither squeue nor sacct knows the job
ASK_TIMEOUT_S = 30.0
# Why jobs wait, in words, by Slurm's own (squeue(1), "JOB REASON CODES").
REASONS = {
    "Resources": "waiting for nodes to become free",
    "Priority": "waiting behind jobs of higher priority",
    "Dependency": "waiting for the job before it",
    "DependencyNeverSatisfied": "can never start, since the job before it failed; cancel it",
    "BeginTime": "waiting for its start time (a requeued job waits for about two minutes)",
    "JobArrayTaskLimit": "waiting for another run of this submission",
    "JobHeldUser": "held by its user; let it go with `scontrol release`",
    "JobHeldAdmin": "held by an administrator",
    "JobHoldMaxRequeue": "held after too many restarts; let it go with `scontrol release`",
    "PartitionConfig": "the partition has not so many nodes; cancel it and ask for fewer",
    "PartitionNodeLimit": "the partition allows no job of so many nodes; cancel it and ask for fewer",
    "PartitionTimeLimit": "the partition allows no job so long; cancel it and ask for less time",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
    "ReqNodeNotAvail": "waiting for nodes that are down or reserved",
    "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions": (
        "waiting for nodes that are down, drained or reserved"
    ),
    "QOSMaxNodePerUserLimit": "waiting, since your jobs hold as many nodes as the quality of service allows",
    "AssocGrpNodeLimit": "waiting, since your account holds as many nodes as it may",
    "AssocMaxJobsLimit": "waiting, since you run as many jobs as you may",
    "NodeDown": "a node went down",
    "launch failed requeued held": "held after its start failed; let it go with `scontrol release`",
}


@dataclass(frozen=True)
class Job:
    """A job, or an element of an array.

    Attributes:
        id: "123", or "123_4" for an element.
        raw_id: the number Slurm keeps it under, which differs for elements.
        state: PENDING, RUNNING, COMPLETING, COMPLETED, CANCELLED, ... as squeue(1) has them, or UNKNOWN.
        reason: why it waits, in Slurm's word; "" if it does not.
        started_s, ended_s: Unix time; of a job that waits the expected start; None where Slurm does not tell.
        nodes: Slurm's short form, as "node[1-3]"; "" before it runs.
        num_nodes: of the job, or that it asks for.
        partition: where it is.
        cancelled_by: user name, where sacct tells; "" otherwise.
    """

    id: str
    state: str
    raw_id: str = ""
    reason: str = ""
    started_s: float | None = None
    ended_s: float | None = None
    nodes: str = ""
    num_nodes: int = 0
    partition: str = ""
    cancelled_by: str = ""

    @property
    def is_active(self) -> bool:
        """Whether it waits, runs, or is about to end or to be requeued."""
        return self.state not in ENDED_STATES and self.state != UNKNOWN

    def describe(self) -> str:
        """State and reason in words."""
        state = self.state.lower().replace("_", " ")
        if self.state == "PENDING":
            expected = f", expected to start {_clock(self.started_s)}" if self.started_s else ""
            return f"in the queue: {reason_in_words(self.reason)}{expected}"
        if self.state == "RUNNING":
            return f"running on {self.nodes}" if self.nodes else "running"
        if self.state == "CANCELLED":
            by = f" by {self.cancelled_by}" if self.cancelled_by else ""
            return f"cancelled{by}{f' {_clock(self.ended_s)}' if self.ended_s else ''}"
        if self.state == "TIMEOUT":
            return f"ended at its time limit{f' {_clock(self.ended_s)}' if self.ended_s else ''}"
        if self.state == UNKNOWN:
            return "no longer known to Slurm"
        return state


def reason_in_words(reason: str) -> str:
    """Why a job waits; Slurm's own word where we have none."""
    word = reason.strip("()")
    if word in ("", "None"):
        return "waiting"
    return REASONS.get(word) or REASONS.get(word.split(",")[0]) or f"waiting ({word})"


def _clock(unix_s: float | None) -> str:
    """A time of day, with the date if it is not today's."""
    if unix_s is None:
        return ""
    then = time.localtime(unix_s)
    is_today = time.strftime("%Y%m%d", then) == time.strftime("%Y%m%d")
    return time.strftime("at %H:%M:%S" if is_today else "on %Y-%m-%d at %H:%M:%S", then)


@dataclass
class Queue:
    """Asks squeue and sacct; keeps what does not change any more."""

    _ended: dict[str, Job] = field(default_factory=dict)

    def ask(self, ids: Iterable[str]) -> dict[str, Job]:
        """What Slurm says of jobs or elements of arrays; those nobody knows have the state UNKNOWN.

        Raises:
            BackendUnavailableError: there is no squeue here, or Slurm does not answer.
        """
        wanted = [job for job in dict.fromkeys(ids) if job]
        asked = [job for job in wanted if job not in self._ended]
        found = _squeue(asked)
        lost = [job for job in asked if job not in found or found[job].state == "CANCELLED"]
        for job, told in ask_accounting(lost).items():
            # squeue is ahead of sacct, which however alone knows who cancelled a job.
            if job in found:
                found[job] = replace(found[job], cancelled_by=told.cancelled_by)
            else:
                found[job] = told
        for job in asked:
            told = found.setdefault(job, Job(job, UNKNOWN))
            if told.state in ENDED_STATES and (told.state != "CANCELLED" or told.cancelled_by):
                self._ended[job] = told
        return {job: self._ended.get(job) or found[job] for job in wanted}


def _squeue(ids: Sequence[str]) -> dict[str, Job]:
    """Jobs that squeue knows; it answers for a whole array, and not at all if it does not know a single one."""
    if not ids:
        return {}
    arrays = ",".join(dict.fromkeys(job.split("_")[0] for job in ids))
    done = _ask(["squeue", "-h", "-a", "-r", "-t", "all", "-j", arrays, "-o", SQUEUE_FIELDS])
    if done.returncode != 0 and "Invalid job id" not in done.stderr:
        told = done.stderr.strip().splitlines()
        raise BackendUnavailableError(
            f"Slurm does not answer squeue ({told[-1] if told else f'exit code {done.returncode}'}); try again later"
        )
    return parse_squeue(done.stdout)


def ask_accounting(ids: Sequence[str]) -> dict[str, Job]:
    """Jobs that sacct knows; nothing where it is missing or switched off."""
    if not ids:
        return {}
    arrays = ",".join(dict.fromkeys(job.split("_")[0] for job in ids))
    try:
        done = _ask(["sacct", "-X", "-n", "-P", "-j", arrays, f"--format={SACCT_FIELDS}"])
    except BackendUnavailableError:
        return {}
    known = parse_sacct(done.stdout)
    return {job: known[job] for job in ids if job in known}


def _ask(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm.

    Raises:
        BackendUnavailableError: it is not here, or does not end.
    """
    env = {**os.environ, "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C"}
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False, env=env)
    except FileNotFoundError:
        raise BackendUnavailableError(
            f"{command[0]!r} is not on PATH, so there is no Slurm here; use a login node of the cluster, "
            "or --cluster local"
        ) from None
    except subprocess.TimeoutExpired:
        raise BackendUnavailableError(
            f"Slurm did not answer {command[0]} within {ASK_TIMEOUT_S:.0f} s; try again later"
        ) from None


def parse_squeue(text: str) -> dict[str, Job]:
    """Jobs by id, from squeue's lines of SQUEUE_FIELDS."""
    jobs = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != 9:
            continue
        job, raw_id, state, reason, start, end, nodes, num_nodes, partition = fields
        jobs[job] = Job(
            id=job,
            raw_id=raw_id,
            state=state,
            reason="" if reason == "None" else reason,
            started_s=_unix_s(start),
            ended_s=_unix_s(end) if state in ENDED_STATES else None,
            nodes=nodes,
            num_nodes=int(num_nodes) if num_nodes.isdigit() else 0,
            partition=partition,
        )
    return jobs


def parse_sacct(text: str) -> dict[str, Job]:
    """Jobs by id, from sacct's lines of SACCT_FIELDS; of a requeued job the last line counts."""
    jobs = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != 9:
            continue
        job, raw_id, state, reason, start, end, nodes, num_nodes, partition = fields
        word, _, cancelled_by = state.partition(" by ")
        jobs[job] = Job(
            id=job,
            raw_id=raw_id,
            state=word.split(" ")[0].rstrip("+"),
            reason="" if reason == "None" else reason,
            started_s=_unix_s(start),
            ended_s=_unix_s(end),
            nodes="" if nodes == "None assigned" else nodes,
            num_nodes=int(num_nodes) if num_nodes.isdigit() else 0,
            partition=partition,
            cancelled_by=_user_name(cancelled_by),
        )
    return jobs


def _unix_s(word: str) -> float | None:
    return float(word) if word.isdigit() and word != "0" else None


def _user_name(uid: str) -> str:
    try:
        return pwd.getpwuid(int(uid)).pw_name
    except (KeyError, ValueError):  # a user of another machine
        return f"user {uid}" if uid else ""


@dataclass(frozen=True)
class JobRecord:
    """What the controller itself says of a job, at once; see ``ask_controller``.

    Attributes:
        state: as of Job, also while the job is still completing; COMPLETING if what it ended as is not told; "" if
            Slurm does not answer.
        restarts: how often the job was started before.
        can_requeue: whether Slurm would start it again.
        is_preempted: whether a job of higher priority was given its nodes.
        started_s: Unix time of this start.
    """

    state: str = ""
    restarts: int = 0
    can_requeue: bool = False
    is_preempted: bool = False
    started_s: float | None = None


def ask_controller(raw_id: str) -> JobRecord:
    """What ``scontrol show job`` says; an empty record if it says nothing."""
    try:
        done = _ask(["scontrol", "show", "job", "-o", raw_id])
    except BackendUnavailableError:
        return JobRecord()
    return parse_scontrol(done.stdout)


def parse_scontrol(text: str) -> JobRecord:
    """Read the line of ``scontrol show job -o``."""
    fields = dict(re.findall(r"(?:^| )([A-Za-z/]+)=(\S*)", text.splitlines()[0] if text.strip() else ""))
    restarts = fields.get("Restarts", "")
    state = fields.get("JobState", "")
    return JobRecord(
        state="TIMEOUT" if state == "COMPLETING" and fields.get("Reason") == "TimeLimit" else state,
        restarts=int(restarts) if restarts.isdigit() else 0,
        can_requeue=fields.get("Requeue") == "1" and fields.get("BatchFlag") == "1",
        is_preempted=fields.get("PreemptTime", "None") not in ("None", "Unknown", "N/A"),
        started_s=_unix_s(fields.get("StartTime", "")),
    )


def requeue(job: str) -> str:
    """Put this job back into the queue; Slurm then ends it. Returns what went wrong, "" if nothing did."""
    try:
        done = _ask(["scontrol", "requeue", job])
    except BackendUnavailableError as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"scontrol ended with exit code {done.returncode}"
