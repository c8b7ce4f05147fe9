"""What launchers tell the processes that they start: this rank's place, and where all ranks can meet.

Both come from the variables of one table, so that nobody types an address. Adding a launcher: one entry in LAUNCHERS,
and its variables as seen in a real process in tests/test_launchers.py.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from hpcai500.errors import UsageError

RENDEZVOUS_VARIABLE = "HPCAI500_RENDEZVOUS"
# A file for what a rank says at its end: mpiexec may drop the output of ranks that it ends.
LAST_WORDS_VARIABLE = "HPCAI500_LAST_WORDS"
# Below Linux' ephemeral ports (32768 on), so that no outgoing connection holds the port by chance.
FIRST_PORT, NUM_PORTS = 15000, 17000


@dataclass(frozen=True)
class Place:
    """Which process this is among all (rank, size) and among those on its machine (local_rank, local_size)."""

    rank: int
    size: int
    local_rank: int
    local_size: int


@dataclass(frozen=True)
class Launcher:
    """Names of the variables in which a launcher tells a process its place, and what all ranks know of each other.

    Attributes:
        nodes: holds the list of nodes in Slurm's short form; rank 0 is on the first one.
        launch: together they tell this launch from all others on the same nodes, and are the same for all ranks.
        folder: holds a folder of this launch on the machine, which the launcher makes and removes.
    """

    rank: str
    size: str
    local_rank: str
    local_size: str
    nodes: str = ""
    launch: tuple[str, ...] = ()
    folder: str = ""

    @property
    def place(self) -> tuple[str, str, str, str]:
        """The variables that every process of this launcher has."""
        return self.rank, self.size, self.local_rank, self.local_size


# The first entry whose place is complete wins, so the launcher that is started by the others stands before them
# (torchrun under mpirun under srun). Slurm's job and restart count in `launch`: a job that was requeued may find its
# former port still held.
LAUNCHERS: dict[str, Launcher] = {
    "torchrun": Launcher("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    # mpirun starts its daemons with srun, so the ranks on other nodes (only) have SLURM_STEP_*, of the daemons' step.
    "Open MPI": Launcher(
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        nodes="SLURM_JOB_NODELIST",
        launch=("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "PMIX_NAMESPACE"),
        folder="PMIX_SERVER_TMPDIR",
    ),
    "MPICH": Launcher(
        "PMI_RANK",
        "PMI_SIZE",
        "MPI_LOCALRANKID",
        "MPI_LOCALNRANKS",
        nodes="SLURM_JOB_NODELIST",
        launch=("SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
    ),
    # SLURM_NTASKS is also set for the batch script, which is one process; SLURM_STEP_* only for what srun starts.
    "Slurm": Launcher(
        "SLURM_PROCID",
        "SLURM_STEP_NUM_TASKS",
        "SLURM_LOCALID",
        "SLURM_STEP_TASKS_PER_NODE",
        nodes="SLURM_STEP_NODELIST",
        launch=("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID"),
    ),
}
MASTER_VARIABLES = ("MASTER_ADDR", "MASTER_PORT")  # set by torchrun; torch.distributed's own names


def find_launcher(environ: Mapping[str, str]) -> str | None:
    """The key in LAUNCHERS of the launcher that started this process; None if there is none."""
    for name, launcher in LAUNCHERS.items():
        if all(variable in environ for variable in launcher.place):
            return name
    return None


def find_place(environ: Mapping[str, str] | None = None) -> Place:
    """The place of this process as its launcher tells it; the only rank of one if there is no launcher.

    Raises:
        UsageError: a launcher's variables do not hold numbers that fit together.
    """
    env = os.environ if environ is None else environ
    name = find_launcher(env)
    if name is None:
        return Place(rank=0, size=1, local_rank=0, local_size=1)
    variables = LAUNCHERS[name].place
    words = [env[variable] for variable in variables]
    if name == "Slurm":
        words[3] = _slurm_tasks_here(words[3], env.get("SLURM_NODEID", "0"))
    try:
        place = Place(*map(int, words))
    except ValueError:
        place = Place(0, 0, 0, 0)
    if not (0 <= place.rank < place.size and 0 <= place.local_rank < place.local_size <= place.size):
        told = ", ".join(f"{variable}={env[variable]!r}" for variable in variables)
        raise UsageError(
            f"{name} tells an impossible place ({told}); ranks must count from 0 to size - 1; "
            "start the ranks with one launcher and do not set these variables by hand"
        )
    return place


def _slurm_tasks_here(tasks_per_node: str, node_id: str) -> str:
    """The entry of this node in Slurm's short form, in which ``2(x3),1`` means 2,2,2,1 tasks on four nodes."""
    counts: list[str] = []
    for entry in tasks_per_node.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", entry)
        if match:
            counts += [match[1]] * int(match[2] or 1)
    return counts[int(node_id)] if node_id.isdigit() and int(node_id) < len(counts) else "unknown"


def rendezvous(place: Place, environ: Mapping[str, str]) -> str:
    """The init method of torch.distributed on which all ranks of this launch agree without talking.

    1. MASTER_ADDR and MASTER_PORT, if set (torchrun sets them);
    2. HPCAI500_RENDEZVOUS, an init method such as file:///shared/path (launch/local.py sets it);
    3. in a job of Slurm, the first node, and a port made from what tells this launch from others;
    4. all ranks on one machine: a file in the folder that the launcher made for this launch.

    Raises:
        UsageError: nothing in the environment tells where ranks on several machines could meet.
    """
    if all(variable in environ for variable in MASTER_VARIABLES):
        return f"tcp://{environ['MASTER_ADDR']}:{environ['MASTER_PORT']}"
    if RENDEZVOUS_VARIABLE in environ:
        return environ[RENDEZVOUS_VARIABLE]
    launcher = LAUNCHERS.get(find_launcher(environ) or "")
    folder = environ.get(launcher.folder) if launcher is not None else None
    if launcher is not None and folder and place.local_size == place.size:
        return f"file://{folder}/hpcai500-rendezvous-{_number_of(launcher, environ):08x}"
    meeting = meeting_point(environ)
    if meeting is not None:
        here = environ.get("SLURMD_NODENAME", meeting[0])
        if place.rank == 0 and here != meeting[0]:
            raise UsageError(
                f"rank 0 is on {here}, but the ranks of torchdist meet on {meeting[0]}, the first node of the job; "
                "let mpirun place the ranks in the order of the job's nodes, or start them with srun"
            )
        return f"tcp://{meeting[0]}:{meeting[1]}"
    raise UsageError(
        f"the {place.size} ranks of torchdist do not know where to meet; start them with hpcai500, srun, torchrun or, "
        f"in a job, mpirun, or set {RENDEZVOUS_VARIABLE}=file:///PATH to a new file that all of them can reach"
    )


def meeting_point(environ: Mapping[str, str], purpose: str = "") -> tuple[str, int] | None:
    """Host and port at which rank 0 can serve the others; None where the launcher does not tell the nodes.

    Args:
        environ: variables of a rank.
        purpose: tells meetings of the same launch apart.
    """
    launcher = LAUNCHERS.get(find_launcher(environ) or "")
    nodes = expand_nodes(environ.get(launcher.nodes, "")) if launcher is not None else []
    if launcher is None or not nodes:
        return None
    return nodes[0], FIRST_PORT + _number_of(launcher, environ, purpose) % NUM_PORTS


def _number_of(launcher: Launcher, environ: Mapping[str, str], purpose: str = "") -> int:
    told = "-".join(environ.get(variable, "") for variable in launcher.launch)
    return zlib.crc32((told + purpose).encode())


def other_node(environ: Mapping[str, str]) -> str | None:
    """A node of this launch that is not this one, where the launcher tells the nodes; None if there is none."""
    launcher = LAUNCHERS.get(find_launcher(environ) or "")
    nodes = expand_nodes(environ.get(launcher.nodes, "")) if launcher is not None else []
    return next((node for node in nodes if node != environ.get("SLURMD_NODENAME")), None)


def expand_nodes(nodes: str) -> list[str]:
    """The names in Slurm's short form: ``gpu[07-09,12],login`` gives gpu07, gpu08, gpu09, gpu12, login."""
    names = []
    for entry in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes):
        forms = [""]
        for text, numbers in re.findall(r"([^\[]*)(?:\[([^\]]*)\])?", entry):
            ends = [number for span in numbers.split(",") for number in _expand_span(span)] if numbers else [""]
            forms = [f"{form}{text}{end}" for form in forms for end in ends]
        names += forms
    return names


def _expand_span(span: str) -> list[str]:
    first, _, last = span.partition("-")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
