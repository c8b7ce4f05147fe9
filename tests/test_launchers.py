"""What launchers tell: a rank's place and where the ranks meet, from variables as real processes have them."""

from __future__ import annotations

import pytest

from hpcai500.comm.launchers import LAUNCHERS, expand_nodes, find_launcher, find_place, other_node, rendezvous
from hpcai500.errors import UsageError

# As seen in rank 5 of 6, the second one of the third node.
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NODELIST": "node[1-3]",
    "SLURM_JOB_NODELIST": "node[1-3]",
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "0",
    "SLURMD_NODENAME": "node3",
}
# srun --mpi=pmix: PMIx's variables, but none of Open MPI's
PMIX = SRUN | {"PMIX_RANK": "5", "PMIX_NAMESPACE": "slurm.pmix.12.0", "PMIX_SERVER_TMPDIR": "/spool/pmix.12.0/"}
PMI2 = SRUN | {"PMI_RANK": "5", "PMI_SIZE": "6", "PMI_JOBID": "12.0"}
# mpirun in a job: the step is that of mpirun's daemons, which it starts on the other nodes
MPIRUN = SRUN | {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "6",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-node1-171@1",
    "PMIX_SERVER_TMPDIR": "/tmp/prted.117",
    "SLURM_STEP_NODELIST": "node[2-3]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_PROCID": "1",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "0",
}
STEP_VARIABLES = ("SLURM_STEP", "SLURM_PROCID", "SLURM_LOCALID")
# ... and its ranks on the first node are children of the batch script
MPIRUN_RANK_0 = {name: value for name, value in MPIRUN.items() if not name.startswith(STEP_VARIABLES)} | {
    "OMPI_COMM_WORLD_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "PMIX_SERVER_TMPDIR": "/tmp/prterun.171",
    "SLURMD_NODENAME": "node1",
}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
CASES = {
    "alone": ({}, None, (0, 1, 0, 1)),
    "torchrun": (TORCHRUN, "torchrun", (5, 8, 1, 4)),
    "torchrun under srun": (SRUN | TORCHRUN, "torchrun", (5, 8, 1, 4)),
    "mpirun": (MPIRUN, "Open MPI", (5, 6, 1, 2)),
    "mpirun, first node": (MPIRUN_RANK_0, "Open MPI", (0, 6, 0, 2)),
    "mpich": (MPICH, "MPICH", (1, 2, 1, 2)),
    "srun": (SRUN, "Slurm", (5, 6, 1, 2)),
    "srun --mpi=pmix": (PMIX, "Slurm", (5, 6, 1, 2)),
    "srun --mpi=pmi2": (PMI2, "Slurm", (5, 6, 1, 2)),
    "uneven": (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "3,2,1", "SLURM_LOCALID": "0"}, "Slurm", (5, 6, 0, 1)),
    "batch script": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, None, (0, 1, 0, 1)),
}


@pytest.mark.parametrize(("variables", "launcher", "expected"), CASES.values(), ids=CASES)
def test_the_place_is_read_from_each_launcher(
    variables: dict[str, str], launcher: str | None, expected: tuple[int, ...]
) -> None:
    place = find_place(variables)
    assert (place.rank, place.size, place.local_rank, place.local_size) == expected
    assert find_launcher(variables) == launcher


def test_every_launcher_is_seen() -> None:
    assert {launcher for _, launcher, _ in CASES.values()} == {None, *LAUNCHERS}


@pytest.mark.parametrize("rank", ["two", "-1", "2"])
def test_an_impossible_place_is_refused_with_what_the_launcher_told(rank: str) -> None:
    with pytest.raises(UsageError, match=f"RANK='{rank}'"):
        find_place({"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("short", "names"),
    [
        ("gpu[07-09,12],login", ["gpu07", "gpu08", "gpu09", "gpu12", "login"]),
        ("n1,n2", ["n1", "n2"]),
        ("rack[1-2]-node[3,5]", ["rack1-node3", "rack1-node5", "rack2-node3", "rack2-node5"]),
        ("node[3]-ib", ["node3-ib"]),
        ("box", ["box"]),
        ("", []),
    ],
)
def test_slurms_short_form_of_nodes(short: str, names: list[str]) -> None:
    assert expand_nodes(short) == names


def meeting(variables: dict[str, str]) -> str:
    return rendezvous(find_place(variables), variables)


def test_what_is_set_by_hand_goes_first() -> None:
    master = {"MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert meeting(PMIX | master | {"HPCAI500_RENDEZVOUS": "file:///x"}) == "tcp://a:1"
    assert meeting(PMIX | {"HPCAI500_RENDEZVOUS": "file:///x"}) == "file:///x"


@pytest.mark.parametrize("variables", [SRUN, PMIX, PMI2, MPIRUN], ids=["srun", "pmix", "pmi2", "mpirun"])
def test_in_a_job_the_ranks_meet_on_its_first_node_at_a_port_of_this_launch(variables: dict[str, str]) -> None:
    where = meeting(variables)
    host, port = where.removeprefix("tcp://").split(":")
    assert host == "node1"
    assert 15000 <= int(port) < 32000
    assert meeting(variables | {"SLURM_RESTART_COUNT": "1"}) != where  # the former port may still be held
    assert meeting(variables | {"SLURM_JOB_ID": "13"}) != where
    step = {"PMIX_NAMESPACE": "prterun-node1-172@1"} if variables is MPIRUN else {"SLURM_STEP_ID": "1"}
    assert meeting(variables | step) != where


def test_ranks_of_mpirun_meet_though_only_some_are_in_a_step() -> None:
    assert meeting(MPIRUN) == meeting(MPIRUN_RANK_0)
    with pytest.raises(UsageError, match="rank 0 is on node2, but the ranks of torchdist meet on node1"):
        meeting(MPIRUN_RANK_0 | {"SLURMD_NODENAME": "node2"})


def test_ranks_of_mpirun_on_one_machine_meet_in_its_folder() -> None:
    lonely = {name: value for name, value in MPIRUN_RANK_0.items() if not name.startswith("SLURM")}
    lonely |= {"OMPI_COMM_WORLD_SIZE": "2"}
    assert meeting(lonely).startswith("file:///tmp/prterun.171/hpcai500-rendezvous-")
    with pytest.raises(UsageError, match="HPCAI500_RENDEZVOUS=file:///PATH"):
        meeting(lonely | {"OMPI_COMM_WORLD_SIZE": "4"})


def test_another_node_is_known_where_the_launcher_tells_nodes() -> None:
    assert other_node(SRUN) == "node1"
    assert other_node(MPIRUN_RANK_0) == "node2"
    assert other_node(SRUN | {"SLURM_STEP_NODELIST": "node3"}) is None
    assert other_node(TORCHRUN) is None
    assert other_node({}) is None
