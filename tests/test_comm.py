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
from hpcai500.comm.communicator import COMMUNICATORS, open_communicator
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


def test_a_rank_with_a_bug_says_so_and_ends_whatever_threads_it_has() -> None:
    program = (
        "import threading, time; from hpcai500.comm.communicator import run_rank;"
        "threading.Thread(target=time.sleep, args=(300,)).start(); run_rank(lambda: 1 // 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.endswith("ZeroDivisionError: integer division or modulo by zero\n")


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
