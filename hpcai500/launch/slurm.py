"""Submits runs to Slurm through submitit, and asks Slurm beforehand whether the job is possible at all.

A run is one job; several are an array, of which ``runs_at_once`` elements run at a time. The job's script becomes the
driver of the run (hpcai500.job), so that Slurm's signals reach it.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpcai500.errors import BackendUnavailableError, HpcAi500Error, UnknownNameError, UsageError
from hpcai500.launch.launch_config import LaunchConfig
from hpcai500.launch.walltime import format_walltime, parse_walltime

LOG_FOLDER = "log"
TIMEOUT_S = 60  # a controller that takes longer to answer is taken for dead
# Variables that sbatch reads and obeys before its script; a user may have set them for other jobs.
SCRIPT_VARIABLES = {
    "SBATCH_PARTITION": "partition",
    "SBATCH_ACCOUNT": "account",
    "SBATCH_QOS": "qos",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_MEM_PER_NODE": "mem",
    "SBATCH_TIMELIMIT": "time_limit_s",
}
ALWAYS_OURS = "ARRAY_INX EXCLUSIVE GPUS GPUS_PER_NODE GPUS_PER_TASK JOB_NAME NO_REQUEUE OPEN_MODE OUTPUT REQUEUE SIGNAL"


@dataclass(frozen=True)
class Partition:
    """What sinfo says of a partition.

    Attributes:
        num_nodes: all of it, also those that are down.
        gpus_per_node: of the node that has most.
        default_time_s: of a job that asks for none; None if there is no limit or none known.
    """

    name: str
    is_default: bool
    num_nodes: int
    gpus_per_node: int
    default_time_s: int | None
    max_time_s: int | None


def read_partitions() -> dict[str, Partition]:
    """The partitions of the cluster by name.

    Raises:
        BackendUnavailableError: there is no Slurm here, or it does not answer.
    """
    for program in ("sbatch", "sinfo"):
        if shutil.which(program) is None:
            raise BackendUnavailableError(
                f"there is no Slurm here ({program} is not on PATH); log in to the cluster, or use --cluster local"
            )
    partitions: dict[str, Partition] = {}
    for line in _ask(["sinfo", "--noheader", "--format=%P|%D|%G|%L|%l"]).splitlines():
        name, nodes, gres, default_time, max_time = line.split("|")
        new = Partition(
            name=name.rstrip("*"),
            is_default=name.endswith("*"),
            num_nodes=int(nodes),
            gpus_per_node=count_gpus(gres),
            default_time_s=_time(default_time) or _time(max_time),
            max_time_s=_time(max_time),
        )
        old = partitions.get(new.name, replace(new, num_nodes=0))  # a line for each kind of node
        partitions[new.name] = replace(
            new,
            num_nodes=old.num_nodes + new.num_nodes,
            gpus_per_node=max(old.gpus_per_node, new.gpus_per_node),
        )
    return partitions


def count_gpus(gres: str) -> int:
    """GPUs of a node from its generic resources: ``gpu:a100:4(S:0-1),nic:1`` has 4."""
    return sum(int(number) for number in re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", gres))


def check_request(launch: LaunchConfig, partitions: dict[str, Partition]) -> Partition:
    """Whether the cluster can ever run such a job; returns the partition it would go to.

    Raises:
        UnknownNameError: no such partition.
        UsageError: more nodes, GPUs or time than there are.
    """
    names = launch.partition.split(",") if launch.partition else []
    for name in names:
        if name not in partitions:
            raise UnknownNameError("partition", name, partitions)
    chosen = [partitions[name] for name in names] or [known for known in partitions.values() if known.is_default]
    if not chosen:
        raise UsageError(
            "the cluster has no default partition; name one with --partition or in site.toml: "
            f"{', '.join(sorted(partitions))}"
        )
    where = " and ".join(f"partition {partition.name!r}" for partition in chosen)
    most_nodes = max(partition.num_nodes for partition in chosen)
    if launch.num_nodes > most_nodes:
        existing = ", ".join(f"{known.name} {known.num_nodes}" for known in partitions.values())
        raise UsageError(
            f"--nodes {launch.num_nodes} is more than the {most_nodes} nodes of {where}; "
            f"ask for fewer or for another partition (nodes of each: {existing})"
        )
    most_gpus = max(partition.gpus_per_node for partition in chosen)
    if launch.gpus_per_node > most_gpus:
        raise UsageError(
            f"--gpus-per-node {launch.gpus_per_node} is more than the {most_gpus} GPUs that a node of {where} has; "
            "ask for fewer or for another partition"
        )
    longest_s = max((partition.max_time_s or sys.maxsize for partition in chosen), default=sys.maxsize)
    if (launch.time_limit_s or 0) > longest_s:
        raise UsageError(
            f"--time {format_walltime(launch.time_limit_s or 0)} is more than {where} allows, which is "
            f"{format_walltime(longest_s)}; ask for less: a run that is not done by then queues again and goes on"
        )
    return chosen[0]


def sbatch_script(folder: Path, launch: LaunchConfig, *, job_name: str, num_runs: int) -> str:
    """The very script that ``submit_runs`` gives to sbatch."""
    executor = _executor(folder, launch, job_name=job_name, num_runs=num_runs)
    if num_runs > 1:
        executor.parameters["map_count"] = num_runs  # as submitit's own array submission does
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def submit_runs(
    folder: Path, launch: LaunchConfig, runs: Sequence[int], *, job_name: str
) -> tuple[str, dict[str, int]]:
    """Submit these runs of a submission; returns the job's id and which element of the array is which run.

    Raises:
        UsageError: Slurm refuses the job; says in Slurm's words why.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = _executor(folder, launch, job_name=job_name, num_runs=len(runs))
    try:
        # submitit shows what sbatch says while it also raises it.
        with _sbatch_variables_removed(launch), redirect_stderr(io.StringIO()), executor.batch():
            jobs = [executor.submit(drive, str(folder), number) for number in runs]
    except (FailedJobError, FailedSubmissionError) as error:
        raise UsageError(f"Slurm refuses the job: {_words_of_sbatch(str(error))}") from None
    job = jobs[0].job_id.split("_")[0]
    return job, {str(index) if len(runs) > 1 else "": number for index, number in enumerate(runs)}


def drive(folder: str, number: int) -> int:
    """What the job does: drive one run, and end with its exit code.

    Leaves by SystemExit where the code is not 0: submitit would otherwise call any run that returned a success.
    """
    from hpcai500.job import run_job

    try:
        code = run_job(Path(folder), number)
    except HpcAi500Error as error:
        sys.stderr.write(f"hpcai500 job: {error}\n")
        code = error.exit_code
    if code != 0:
        sys.exit(code)
    return code


def _executor(folder: Path, launch: LaunchConfig, *, job_name: str, num_runs: int) -> Any:
    from submitit import SlurmExecutor

    # exec: the driver takes the place of the script's shell, and the signal for that (B:) reaches it.
    executor = SlurmExecutor(folder / LOG_FOLDER, python=f"exec {shlex.quote(launch.python)}")
    output = "slurm-%A_%a.out" if num_runs > 1 else "slurm-%j.out"
    additional: dict[str, Any] = {
        "output": str(folder / LOG_FOLDER / output),
        "signal": f"B:USR2@{launch.signal_before_end_s}",
        "requeue" if launch.requeue else "no-requeue": True,
    }
    if launch.reservation is not None:
        additional["reservation"] = launch.reservation
    executor.update_parameters(
        job_name=job_name,
        nodes=launch.num_nodes,
        ntasks_per_node=launch.ranks_per_node,
        cpus_per_task=launch.cpus_per_rank,
        gpus_per_node=launch.gpus_per_node or None,
        partition=launch.partition,
        account=launch.account,
        qos=launch.qos,
        constraint=launch.constraint,
        mem=launch.mem,
        exclusive=launch.exclusive or None,
        time=format_walltime(launch.time_limit_s) if launch.time_limit_s else None,
        setup=[*(f"module load {shlex.quote(name)}" for name in launch.modules), *launch.setup] or None,
        array_parallelism=launch.runs_at_once,
        stderr_to_stdout=True,
        use_srun=False,
        wckey=None,
        additional_parameters=additional,
    )
    return executor


@contextmanager
def _sbatch_variables_removed(launch: LaunchConfig) -> Iterator[None]:
    """While the block runs, let the script decide what it decides."""
    names = {name for name, key in SCRIPT_VARIABLES.items() if getattr(launch, key) is not None}
    names |= {f"SBATCH_{word}" for word in ALWAYS_OURS.split()}
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _words_of_sbatch(text: str) -> str:
    """What sbatch itself wrote, out of the traceback-like message of submitit."""
    words = re.findall(r"^sbatch: (?:error: )?(.+)$", text, re.MULTILINE)
    return "; ".join(dict.fromkeys(words)) or text.strip()


def _ask(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except subprocess.CalledProcessError as error:
        told = error.stderr.strip().splitlines()
        why = told[-1] if told else f"exit code {error.returncode}"
        raise BackendUnavailableError(
            f"Slurm does not answer {command[0]} ({why}); use a login node of the cluster, or --cluster local"
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendUnavailableError(f"Slurm does not answer {command[0]}; ask its operators") from error
    return done.stdout


def _time(text: str) -> int | None:
    """Seconds of a time limit as sinfo shows it; None for ``infinite`` and ``n/a``."""
    try:
        return parse_walltime(text)
    except UsageError:
        return None
