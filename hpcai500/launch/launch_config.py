"""How the runs of a submission are started: decided once, before anything starts, and kept as launch.json.

Whoever starts ranks (this machine, a job of Slurm, a job that was requeued) reads it from the submission's folder, so
that a run goes on as it began.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal

import msgspec

from hpcai500.events import Count, Fraction, Positive, Text
from hpcai500.formats import read_record, write_json

LAUNCH_NAME = "launch.json"

Cluster = Literal["slurm", "local", "allocation"]
Launcher = Literal["srun", "mpirun"]
OnFullDisk = Literal["fallback", "stop"]
SelfCheck = Literal["require", "warn", "off"]


class LaunchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """launch.json: where and how the ranks of a submission are started.

    Attributes:
        cluster: "slurm": submitted to the queue; "local": on this machine; "allocation": in a job that runs already.
        ranks_choice: why there are so many ranks a node, where --ranks-per-node auto chose them by measuring.
        cpus_per_rank: cores of a rank; None leaves it to the scheduler.
        launcher: what starts the ranks within a job.
        mpi_type: word for ``srun --mpi``.
        time_limit_s: of a job; None is the partition's own.
        signal_before_end_s: how long before its end a job is told to write a checkpoint.
        partition, account, qos, constraint, reservation, mem: words for sbatch; None where its own defaults do.
        exclusive: whether a job gets whole nodes; other jobs beside it would be measured with it.
        modules: environment modules loaded before anything else.
        setup: shell lines that follow them.
        container_image: image the ranks run in; None for none.
        container_command: the program that runs it.
        network_interface: the one ranks talk through; None lets the libraries choose.
        software_archive: file that ``hpcai500 software`` made, brought to all nodes; None starts ranks from where the
            interpreter lies.
        software_dir: folder on the nodes' own storage to which it is unpacked, until the job ends.
        stage_dir: folder on the nodes' own disks to which the data file is copied; None reads it where it lies.
        on_full_disk: what to do when it does not fit there.
        selfcheck: whether a sick machine is refused, only warned of, or not looked at.
        requeue: whether a job that was preempted, ran out of time or lost a node queues itself again.
        max_restarts: how often.
        runs_at_once: runs of the submission that may be trained at the same time; 1 is one after the other.
        ipmi_accuracy: largest error of the nodes' power readings by IPMI, as a part of the reading; None leaves their
            management controllers alone.
        submitter: who submits, as the ranking shall show it.
        python: path of the interpreter of the ranks.
    """

    format: Literal[1] = 1
    cluster: Cluster
    num_nodes: Positive
    ranks_per_node: Positive
    gpus_per_node: Count
    ranks_choice: Text | None = None
    cpus_per_rank: Positive | None = None
    launcher: Launcher = "srun"
    mpi_type: Text = "pmix"
    time_limit_s: Positive | None = None
    signal_before_end_s: Positive = 120
    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    reservation: Text | None = None
    mem: Text | None = None
    exclusive: bool = True
    modules: list[Text] = []
    setup: list[Text] = []
    container_image: Text | None = None
    container_command: Text = "apptainer"
    network_interface: Text | None = None
    software_archive: Text | None = None
    software_dir: Text = "/tmp"  # noqa: S108  (the folder made in it is the user's alone)
    stage_dir: Text | None = None
    on_full_disk: OnFullDisk = "fallback"
    selfcheck: SelfCheck = "require"
    requeue: bool = True
    max_restarts: Count = 20
    runs_at_once: Positive = 1
    ipmi_accuracy: Fraction | None = None
    submitter: Text | None = None
    python: Text

    @property
    def num_ranks(self) -> int:
        """Ranks of a run, on all nodes together."""
        return self.num_nodes * self.ranks_per_node


def write_launch_config(submission_folder: Path, launch: LaunchConfig) -> None:
    """Write launch.json, or launch-001.json and so on where the submission is gone on with in another way.

    Raises:
        RecordError: it cannot be written.
    """
    write_json(submission_folder / _name(len(_paths(submission_folder))), launch)


def read_launch_config(submission_folder: Path) -> LaunchConfig:
    """Read, strictly, how the runs of a submission are started: what was decided last counts.

    Raises:
        RecordError: it cannot be read or is not of that form; lists all that is wrong with it.
    """
    paths = _paths(submission_folder)
    return read_record(paths[-1] if paths else submission_folder / LAUNCH_NAME, LaunchConfig)


def _name(number: int) -> str:
    return f"launch-{number:03d}.json" if number else LAUNCH_NAME


def _paths(submission_folder: Path) -> list[Path]:
    """The launch files there are, in order."""
    paths = (submission_folder / _name(number) for number in itertools.count())
    return list(itertools.takewhile(Path.exists, paths))
