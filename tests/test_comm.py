"""Communicators: the checks of tests/mpi/conformance.py for each communicator and number of ranks, and what breaks."""

from __future__ import annotations

import ast
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from processes import is_alive, wait_for

from hpcai500.comm.buckets import pack
from hpcai500.comm.communicator import COMMUNICATORS, find_place, open_communicator
from hpcai500.comm.torchdist import first_node, rendezvous
from hpcai500.errors import BackendUnavailableError, UnknownNameError, UsageError
from hpcai500.launch.local import find_mpiexec

PROGRAMS = Path(__file__).with_name("mpi")
CONFORMANCE = PROGRAMS / "conformance.py"
CHECKS = [
    node.name.removeprefix("check_")
    for node in ast.parse(CONFORMANCE.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]
MARKS = {"serial": [], "torchdist": [], "mpi": [pytest.mark.mpi], "horovod": [pytest.mark.horovod, pytest.mark.mpi]}
PAIRS = [
    pytest.param(comm, num_ranks, marks=MARKS[comm], id=f"{comm}-{num_ranks}")
    for comm in COMMUNICATORS
    for num_ranks in (1, 2, 4)
    if comm != "serial" or num_ranks == 1
]
RUN_RANKS = (
    "import sys; from hpcai500.launch.local import run_ranks;"
    "sys.exit(run_ranks(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))"
)


def launch(
    comm: str, num_ranks: int, program: Path, *argv: str, timeout_s: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Run a program on all ranks as a user's command would, and fail if it hangs."""
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        RUN_RANKS,
        comm,
        str(num_ranks),
        sys.executable,
        str(program),
        *argv,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


@functools.cache
def conformance(comm: str, num_ranks: int) -> tuple[subprocess.CompletedProcess[str], dict[str, list[str]]]:
    """One launch for all checks of a pair; returns the process and the problem of each rank for each check."""
    problems: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        result = launch(comm, num_ranks, CONFORMANCE, comm, folder)
        for report in sorted(Path(folder).glob("rank-*.jsonl")):
            for line in report.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                problems.setdefault(entry["check"], []).append(entry["problem"])
    return result, problems


@pytest.mark.parametrize("check", [*CHECKS, "closes_without_a_word"])
@pytest.mark.parametrize(("comm", "num_ranks"), PAIRS)
def test_every_communicator_does_what_the_interface_says(comm: str, num_ranks: int, check: str) -> None:
    result, problems = conformance(comm, num_ranks)
    told = problems.get(check, [])
    assert [problem for problem in told if problem] == []
    assert len(told) == num_ranks, (
        f"only {len(told)} ranks came to this check; exit code {result.returncode}\n{result.stderr}"
    )
    if check == "closes_without_a_word":
        assert result.returncode == 0
        assert result.stdout == ""


@pytest.mark.parametrize("comm", [pytest.param(comm, marks=MARKS[comm]) for comm in ("torchdist", "mpi", "horovod")])
@pytest.mark.parametrize("how", ["abort", "kill", "raise"])
def test_one_rank_that_ends_badly_ends_all(comm: str, how: str, tmp_path: Path) -> None:
    result = launch(comm, 2, PROGRAMS / "ending.py", comm, how, str(tmp_path))
    pids = [int(path.read_text()) for path in tmp_path.glob("pid-*")]
    assert len(pids) == 2, result.stderr
    assert result.returncode == {"abort": 3, "kill": 137, "raise": 1}[how], result.stderr
    assert not (tmp_path / "went-on").exists()
    wait_for(lambda: not any(map(is_alive, pids)))


def test_an_unknown_communicator_is_refused_and_the_known_ones_listed() -> None:
    with pytest.raises(UnknownNameError, match=r"'horovood' \(did you mean 'horovod'\?\); known: horovod, mpi, serial"):
        open_communicator("horovood")


def test_a_missing_library_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "horovod", None)
    monkeypatch.setitem(sys.modules, "horovod.torch", None)
    with pytest.raises(BackendUnavailableError, match="make horovod"):
        open_communicator("horovod")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'hpcai500\[mpi\]'"):
        open_communicator("mpi")


def test_gradients_that_mpi_cannot_sum_are_refused() -> None:
    module = torch.nn.Linear(2, 2, dtype=torch.bfloat16)
    with pytest.raises(
        UsageError, match=r"torch\.bfloat16 cannot be summed by MPI or Horovod; keep parameters in float32"
    ):
        pack(module.parameters(), bucket_bytes=100)


def test_buckets_hold_parameters_in_reverse_order_and_one_type_each() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(10, dtype=dtype)) for dtype in (torch.float64, *[torch.float32] * 4)]
    parameters[2].requires_grad_(False)
    buckets = pack(parameters, bucket_bytes=80)
    ids = [[id(parameter) for parameter in bucket.parameters] for bucket in buckets]
    assert ids == [[id(parameters[4]), id(parameters[3])], [id(parameters[1])], [id(parameters[0])]]


def test_serial_refuses_to_be_one_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"), "1212", strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="2 were started"):
        open_communicator("serial")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1, 0, 1)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, (5, 8, 1, 4)),
        (
            {
                "OMPI_COMM_WORLD_RANK": "3",
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            },
            (3, 4, 1, 2),
        ),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, (1, 2, 1, 2)),
        (
            {
                "SLURM_PROCID": "6",
                "SLURM_STEP_NUM_TASKS": "7",
                "SLURM_LOCALID": "0",
                "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
                "SLURM_NODEID": "3",
            },
            (6, 7, 0, 1),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, (0, 1, 0, 1)),  # the batch script itself
    ],
    ids=["alone", "torchrun", "openmpi", "mpich", "slurm", "batch script"],
)
def test_the_place_is_read_from_each_launcher(variables: dict[str, str], expected: tuple[int, ...]) -> None:
    place = find_place(variables)
    assert (place.rank, place.size, place.local_rank, place.local_size) == expected


@pytest.mark.parametrize("rank", ["two", "-1", "2"])
def test_an_impossible_place_is_refused_with_what_the_launcher_told(rank: str) -> None:
    with pytest.raises(UsageError, match=f"RANK='{rank}'"):
        find_place({"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("nodes", "first"), [("gpu[07-09,12],login", "gpu07"), ("n1,n2", "n1"), ("node[3,5]", "node3"), ("box", "box")]
)
def test_the_first_node_of_slurms_short_form(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_ranks_meet_where_the_launcher_says_and_nowhere_else() -> None:
    many = find_place({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"})
    slurm = {
        "SLURM_STEP_NODELIST": "n[1-2]",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_JOB_ID": "12",
        "SLURM_STEP_ID": "3",
    }
    assert rendezvous(many, {"MASTER_ADDR": "a", "MASTER_PORT": "1", "HPCAI500_RENDEZVOUS": "file:///x"}) == "tcp://a:1"
    assert rendezvous(many, {"HPCAI500_RENDEZVOUS": "file:///x", **slurm}) == "file:///x"
    assert rendezvous(many, slurm) == f"tcp://n1:{15000 + 12 * 31 + 3}"
    with pytest.raises(UsageError, match="HPCAI500_RENDEZVOUS=file:///PATH"):
        rendezvous(many, {"PMIX_SERVER_TMPDIR": "/nowhere"})


@pytest.mark.mpi
def test_ranks_started_by_plain_mpiexec_need_no_address(tmp_path: Path) -> None:
    mpiexec = find_mpiexec()
    assert mpiexec is not None
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    program = (
        "from hpcai500.comm.communicator import open_communicator as o; import pathlib, sys;"
        "c = o('torchdist'); pathlib.Path(sys.argv[1], str(c.rank)).write_text(str(c.allgather(c.rank))); c.close()"
    )
    command = [mpiexec, "-n", "2", "--oversubscribe", "--bind-to", "none", sys.executable, "-c", program, str(tmp_path)]
    subprocess.run(command, env={**os.environ, **root}, check=True, timeout=100, capture_output=True)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["[0, 1]", "[0, 1]"]
