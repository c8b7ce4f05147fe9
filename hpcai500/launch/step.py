"""Starts the ranks of a run within a job of Slurm, with srun or mpirun, passes signals on to them and waits.

Ranks are not bound here: each binds itself next to its GPU (hpcai500.launch.binding), so the launcher must leave it
all the cores of the job on its node.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hpcai500.command import LOST_RANK_EXIT_CODE
from hpcai500.errors import BackendUnavailableError
from hpcai500.launch.launch_config import LaunchConfig
from hpcai500.launch.local import GRACE_S, LEASH, find_mpiexec, mpiexec_flavour
from hpcai500.launch.software import StagedSoftware
from hpcai500.launch.step_output import BadEnd, LauncherOutput

# After one rank failed the others end within seconds; a launcher that still waits then waits for a node that is gone.
LINGER_S = 20.0
KILL_AFTER_S = 10.0  # from SIGTERM to SIGKILL for a launcher that was told to end
POLL_S = 0.2


def step_command(
    launch: LaunchConfig, argv: Sequence[str], *, num_nodes: int, ranks_per_node: int | None = None
) -> list[str]:
    """The command that starts ``argv`` on all nodes of the job.

    Args:
        launch: how the submission's runs are started.
        argv: the command of each rank, as ``rank_command`` makes it.
        num_nodes: nodes of the job, which may be others than those the submission was made for.
        ranks_per_node: instead of those of ``launch``.

    Raises:
        BackendUnavailableError: mpirun is wanted, and there is none or it does not run.
    """
    per_node = ranks_per_node or launch.ranks_per_node
    num_ranks = num_nodes * per_node
    if launch.launcher == "mpirun":
        return [*_mpirun(num_ranks, per_node), *argv]
    command = ["srun", f"--mpi={launch.mpi_type}", "--kill-on-bad-exit=1", "--input=none", "--cpu-bind=none"]
    command += [f"--nodes={num_nodes}", f"--ntasks={num_ranks}", f"--ntasks-per-node={per_node}"]
    if launch.cpus_per_rank is not None:
        # The environment of a job does not reach srun for this one (Slurm 22.05 and later).
        command.append(f"--cpus-per-task={launch.cpus_per_rank * launch.ranks_per_node // per_node}")
    if launch.gpus_per_node:
        command.append(f"--gpus-per-node={launch.gpus_per_node}")  # every rank sees all: they talk GPU to GPU
    return [*command, *argv]


def _mpirun(num_ranks: int, per_node: int) -> list[str]:
    mpirun = find_mpiexec()
    if mpirun is None:
        raise BackendUnavailableError(
            "launcher 'mpirun' needs mpiexec, which is neither beside the interpreter nor on PATH; get it with "
            "pip install 'hpcai500[mpi]', load the module that has it, or use launcher 'srun'"
        )
    if mpiexec_flavour(mpirun) == "mpich":
        return [mpirun, "-n", str(num_ranks), "-ppn", str(per_node), "-bind-to", "none"]
    placing = ["--map-by", f"ppr:{per_node}:node", "--oversubscribe", "--bind-to", "none"]
    return [mpirun, "-n", str(num_ranks), *placing]


def rank_command(
    launch: LaunchConfig,
    module: str,
    *words: str,
    folders: Sequence[Path] = (),
    software: StagedSoftware | None = None,
) -> list[str]:
    """The command of one rank: a module of this package, in the container if there is one.

    Args:
        launch: how the submission's runs are started.
        module: dotted name.
        words: its arguments.
        folders: what a container has to see, under the same paths.
        software: whose interpreter and package it is, if they were brought to the nodes.
    """
    if software is not None:
        python, leash = str(software.python), [*LEASH[1:-1], str(software.leash)]
        return [python, *leash, "SIGKILL", python, "-m", module, *words]
    if launch.container_image is None:
        # Slurm ends what it started; with the leash ranks also end when only their starter was killed.
        return [launch.python, *LEASH[1:], "SIGKILL", launch.python, "-m", module, *words]
    command = [launch.container_command, "exec", *(["--nv"] if launch.gpus_per_node else [])]
    seen = [*folders, *([Path(launch.stage_dir)] if launch.stage_dir else [])]
    for folder in dict.fromkeys(str(folder.absolute()) for folder in seen):
        command += ["--bind", folder]
    return [*command, launch.container_image, "python3", "-m", module, *words]


def step_environment(launch: LaunchConfig, *, job_start_ns: int, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that ranks need besides those of the job.

    Args:
        launch: how the submission's runs are started.
        job_start_ns: Unix time at which the scheduler started the job.
        environ: those of the job.
    """
    cores = environ.get("SLURM_CPUS_ON_NODE", "")
    num_cores = int(cores) if cores.isdigit() else len(os.sched_getaffinity(0))
    num_threads = launch.cpus_per_rank or max(1, num_cores // launch.ranks_per_node)
    env = {
        # torch tells each rank that addresses have no names, which is so on most networks of clusters.
        "TORCH_CPP_LOG_LEVEL": environ.get("TORCH_CPP_LOG_LEVEL") or "ERROR",
        "HPCAI500_JOB_START_NS": str(job_start_ns),
        "HPCAI500_LAUNCH_NS": str(time.time_ns()),
        "OMP_NUM_THREADS": environ.get("OMP_NUM_THREADS") or str(num_threads),
    }
    if launch.network_interface:
        env["HPCAI500_NETWORK_INTERFACE"] = launch.network_interface
    if launch.launcher == "mpirun":
        # How long ranks have to close their files when another one has failed: Open MPI 5, and 4 and before.
        env |= {"PRTE_MCA_odls_base_sigkill_timeout": str(GRACE_S), "OMPI_MCA_odls_base_sigkill_timeout": str(GRACE_S)}
    if num_cores < launch.ranks_per_node:
        env["OMPI_MCA_mpi_yield_when_idle"] = "1"  # ranks that wait must not hold the cores of those that work
    if os.geteuid() == 0:  # containers; Open MPI refuses root unless told twice
        env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return env


class RankStep:
    """The ranks of a run while they run, with this process's output.

    Args:
        command: of ``step_command``.
        env: variables besides those of this process.

    Raises:
        BackendUnavailableError: the launcher is not there.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        try:
            self._process = subprocess.Popen(
                [*LEASH, "SIGTERM", *command],
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C then reaches the ranks once, through us
            )
        except OSError as error:
            raise BackendUnavailableError(f"cannot start {command[0]!r} ({error.strerror}); is Slurm here?") from error
        self._output = LauncherOutput()
        self._thread = threading.Thread(target=self._pass_on, name="launcher-output", daemon=True)
        self._thread.start()

    @property
    def first_bad_end(self) -> BadEnd | None:
        """What ended badly first, as far as the launcher tells."""
        return self._output.first

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the launcher, which sends SIGUSR1 and SIGUSR2 on to all ranks."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def wait(self, *, has_failed: Callable[[], bool]) -> int:
        """Return the exit code when the ranks have ended: 0 only if all returned 0.

        Once one has failed the launcher has LINGER_S more; it is ended then, because a node that is gone does not tell
        it that its ranks are.

        Args:
            has_failed: whether a rank has noted a failure; asked a few times a second.
        """
        failed_at_s: float | None = None
        terminated_at_s: float | None = None
        while (returned := self._poll()) is None:
            now_s = time.monotonic()
            if failed_at_s is None:
                if self._output.first is not None or has_failed():
                    failed_at_s = now_s
            elif terminated_at_s is None:
                if now_s - failed_at_s > LINGER_S:
                    self.signal(signal.SIGTERM)
                    terminated_at_s = now_s
            elif now_s - terminated_at_s > KILL_AFTER_S:
                self.signal(signal.SIGKILL)
        self._thread.join(timeout=2.0)  # something that outlived the launcher may hold its output open
        if returned == 0 and self._output.first is not None:
            return LOST_RANK_EXIT_CODE  # mpirun of Open MPI 5 calls it a success when it has lost a node
        return 128 - returned if returned < 0 else returned

    def end(self) -> None:
        """End the launcher, and with it the ranks, at once."""
        if self._process.poll() is None:
            self.signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(KILL_AFTER_S)
            self.signal(signal.SIGKILL)

    def _poll(self) -> int | None:
        try:
            return self._process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            return None

    def _pass_on(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                _write_stderr(self._output.take(line))
        _write_stderr(self._output.close())


def _write_stderr(content: bytes) -> None:
    if content:
        sys.stderr.buffer.write(content)
        sys.stderr.flush()
