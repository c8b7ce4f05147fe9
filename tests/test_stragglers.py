"""Slow nodes, ranks and networks are named while the run goes on, with what they show; quiet runs name nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import h5py
import msgspec
import numpy as np
import pytest
from run_folders import make_run

from hpcai500 import stragglers
from hpcai500.collector import StepRecorder
from hpcai500.comm.communicator import open_communicator
from hpcai500.errors import RecordError
from hpcai500.launch.local import rank_command
from hpcai500.progress import RunFollower
from hpcai500.record import Position
from hpcai500.step_files import STEP_PHASES, read_rank_times
from hpcai500.straggler_record import StragglerNote, read_notes
from hpcai500.stragglers import HOST_BYTES, MAX_NAMED, MIN_WINDOWS, NUM_WINDOWS, StragglerWatch

PROGRAM = Path(__file__).with_name("mpi") / "slow_rank.py"
USUAL_MS = {"data_wait": 10.0, "forward_backward": 100.0, "communication": 20.0, "optimizer": 5.0}
STEPS = 4


class Job:
    """Ranks of a few nodes, whose windows are made up."""

    def __init__(self, num_nodes: int = 8, ranks_a_node: int = 4) -> None:
        self.hosts = [f"nid{node:04d}" for node in range(num_nodes) for _ in range(ranks_a_node)]
        as_bytes = [host.encode().ljust(HOST_BYTES, b"\0") for host in self.hosts]
        self.watch = StragglerWatch(np.frombuffer(b"".join(as_bytes), np.uint8).reshape(-1, HOST_BYTES), segment=3)
        self.ms = np.tile([USUAL_MS[phase] for phase in STEP_PHASES], (len(self.hosts), 1))
        self.random = np.random.default_rng(1)
        self.num_windows = 0

    def slow_down(self, ranks: list[int] | slice, phase: str, by_ms: float) -> None:
        self.ms[ranks, STEP_PHASES.index(phase)] += by_ms

    def windows(self, number: int) -> list[StragglerNote]:
        notes = []
        for _ in range(number):
            noise = 1 + 0.02 * self.random.random(self.ms.shape)
            self.num_windows += 1
            position = Position(0, STEPS * self.num_windows)
            notes += self.watch.take((self.ms * noise * 1e6 * STEPS).astype(np.int64), STEPS, position)
        return notes


def test_a_quiet_job_names_nobody() -> None:
    assert Job().windows(200) == []


@pytest.mark.parametrize(
    ("phase", "evidence"), [("forward_backward", "compute"), ("optimizer", "compute"), ("data_wait", "data")]
)
def test_one_slow_rank_is_named_once_with_what_it_shows(phase: str, evidence: str) -> None:
    job = Job()
    job.slow_down([9], phase, 30.0)
    assert job.windows(MIN_WINDOWS) == []  # the first is not counted
    (note,) = job.windows(1)
    assert (note.what, note.rank, note.host, note.num_ranks, note.evidence) == ("rank", 9, "nid0002", 1, evidence)
    assert (note.is_slow, note.num_slow, note.segment, note.step) == (True, 1, 3, STEPS * (MIN_WINDOWS + 1))
    assert note.usual_s == pytest.approx(0.116, rel=0.02)
    assert note.step_s == tuple(sorted(note.step_s))
    assert note.step_s[1] == pytest.approx(0.146, rel=0.02)
    assert note.lost_s == pytest.approx(0.030, rel=0.05)
    assert job.windows(50) == []


def test_a_node_of_which_all_ranks_are_slow_is_named_as_one() -> None:
    job = Job()
    job.windows(20)
    job.slow_down([8, 9, 10, 11], "forward_backward", 50.0)
    (note,) = job.windows(NUM_WINDOWS)
    assert (note.what, note.host, note.rank, note.num_ranks, note.num_slow) == ("node", "nid0002", 8, 4, 4)
    assert "node nid0002 is slow: each of its 4 ranks takes 1" in note.describe()
    assert "times the median of all ranks; 4" in note.describe()
    assert "more than usual are spent computing (epoch 0, step 1" in note.describe()


def test_ranks_that_were_named_one_by_one_become_a_slow_node() -> None:
    job = Job(ranks_a_node=2)
    job.slow_down([4], "data_wait", 40.0)
    assert [note.what for note in job.windows(20)] == ["rank"]
    job.slow_down([5], "data_wait", 40.0)
    assert [(note.what, note.host, note.evidence) for note in job.windows(20)] == [("node", "nid0002", "data")]


def test_who_recovers_is_said_and_may_be_named_again() -> None:
    job = Job()
    told = []
    for by_ms in (30.0, -30.0, 30.0):
        job.slow_down([9], "data_wait", by_ms)
        told += [note.describe().partition(" (")[0].partition(":")[0] for note in job.windows(3 * NUM_WINDOWS)]
    assert told == ["rank 9 on nid0002 is slow", "rank 9 on nid0002 is no longer slow", "rank 9 on nid0002 is slow"]


def test_who_is_between_the_two_thresholds_is_neither_named_nor_forgotten() -> None:
    job = Job()
    job.slow_down([9], "forward_backward", 9.0)  # 8 %
    assert job.windows(30) == []
    job.slow_down([9], "forward_backward", 9.0)
    assert len(job.windows(30)) == 1
    job.slow_down([9], "forward_backward", -9.0)
    assert job.windows(30) == []


def test_tiny_steps_and_short_disturbances_name_nobody() -> None:
    job = Job()
    job.ms /= 1000
    job.slow_down([9], "forward_backward", 0.3)
    assert job.windows(30) == []
    job = Job()
    job.windows(20)
    job.slow_down([9], "forward_backward", 500.0)
    told = job.windows(NUM_WINDOWS // 2)
    job.slow_down([9], "forward_backward", -500.0)
    assert told + job.windows(20) == []


def test_of_many_slow_ranks_the_slowest_are_named() -> None:
    job = Job(num_nodes=64, ranks_a_node=1)
    for number in range(20):
        job.slow_down([number], "forward_backward", 30.0 + 10 * number)
    notes = job.windows(30)
    assert [note.rank for note in notes] == list(range(19, 19 - MAX_NAMED, -1))
    assert notes[0].num_slow == 20


def test_a_flickering_job_writes_a_bounded_number_of_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stragglers, "MAX_NOTES", 3)
    job = Job()
    told = []
    for by_ms in 4 * (30.0, -30.0):
        job.slow_down([9], "data_wait", by_ms)
        told += job.windows(2 * NUM_WINDOWS)
    assert len(told) == 3


def test_a_slow_network_is_said_of_the_job_and_its_recovery_too() -> None:
    job = Job()
    assert job.windows(30) == []
    job.slow_down(slice(None), "communication", 40.0)
    (note,) = job.windows(NUM_WINDOWS)
    assert (note.what, note.host, note.evidence, note.num_slow) == ("job", "", "network", 0)
    assert note.lost_s == pytest.approx(0.04, rel=0.1)
    assert "the network is slow: of a step, communication takes all ranks 60." in note.describe()
    assert job.windows(30) == []
    job.slow_down(slice(None), "communication", -40.0)
    (note,) = job.windows(NUM_WINDOWS)
    assert note.describe().startswith("the network is no longer slow (epoch 0, step")


def test_waiting_for_a_slow_rank_is_no_slow_network_nor_is_a_job_that_does_more() -> None:
    job = Job()
    job.windows(30)
    job.slow_down([9], "forward_backward", 60.0)
    job.slow_down([rank for rank in range(32) if rank != 9], "communication", 60.0)
    assert [note.what for note in job.windows(30)] == ["rank"]
    job = Job()
    job.windows(30)
    job.slow_down(slice(None), "communication", 40.0)
    job.slow_down(slice(None), "forward_backward", 40.0)
    assert job.windows(30) == []


def test_memory_of_the_watch_does_not_grow_and_is_what_is_promised() -> None:
    job = Job(num_nodes=1000, ranks_a_node=4)

    def held_bytes() -> int:
        return sum(value.nbytes for value in vars(job.watch).values() if isinstance(value, np.ndarray))

    job.windows(1)
    begin = held_bytes()
    job.windows(2 * NUM_WINDOWS)
    assert held_bytes() == begin <= (256 - 8 * len(STEP_PHASES)) * 4000


def test_lines_that_are_no_notes_are_passed_over() -> None:
    job = Job()
    job.slow_down([9], "data_wait", 30.0)
    (note,) = job.windows(20)
    line = msgspec.json.encode(note)
    hostile = line.replace(b'"nid0002"', b'"' + b"x" * 300 + b'"')
    lines = [b"", b"{}", b"\xff", b"[" * 100_000, line[:-9], line, hostile, line + b" " * 5000]
    assert list(read_notes(b"\n".join(lines))) == [note]
    assert len(line) < 600


def test_a_full_disk_ends_the_run_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job()
    job.slow_down([9], "data_wait", 30.0)
    recorder = StepRecorder(tmp_path, open_communicator("serial"))
    (tmp_path / "stragglers.jsonl").symlink_to("/dev/full")
    with pytest.raises(RecordError, match=r"stragglers.jsonl' \(No space left on device\); free some space"):
        recorder._tell(job.windows(20))
    assert "rank 9 on nid0002 is slow" in capsys.readouterr().err


def train(folder: Path, data: Path, comm: str, what: str) -> tuple[Path, str]:
    """A run of 2 ranks, of which rank 1 is slow by ``what``; its folder, and what it printed."""
    settings = {"report_steps": "1", "batch_size_per_rank": "8", "checkpoint_every_s": "0"}
    run_folder = folder / "run-1"
    if not run_folder.exists():
        make_run(folder, data, comm=comm, num_ranks=2, settings=settings)
    command, env = rank_command(comm, 2, [sys.executable, str(PROGRAM), what, str(run_folder)])
    env |= {"HPCAI500_RENDEZVOUS": f"file://{run_folder}/rendezvous-{uuid.uuid4()}"}
    words = {"env": os.environ | env, "capture_output": True, "text": True, "timeout": 200}
    done = subprocess.run(command, check=False, **words)  # type: ignore[call-overload]
    assert (done.returncode == 0) == (what != "die"), done.stderr
    return run_folder, done.stderr


@pytest.mark.parametrize(
    ("comm", "what", "words"),
    [
        pytest.param("mpi", "compute", "spent computing", marks=pytest.mark.mpi),
        pytest.param("torchdist", "data", "waiting for data", marks=pytest.mark.mpi),
    ],
)
def test_a_slow_rank_of_a_real_run_is_named_while_it_runs(
    smoke_data: Path, tmp_path: Path, comm: str, what: str, words: str
) -> None:
    run_folder, printed = train(tmp_path, smoke_data, comm, what)
    lines = [line for line in printed.splitlines() if " is slow: " in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"hpcai500 train: rank 1 on {os.uname().nodename} is slow: it takes ")
    assert f"more than usual are {words} (epoch " in lines[0]
    (note,) = read_notes((run_folder / "stragglers.jsonl").read_bytes())
    assert note.describe() in lines[0]
    state = RunFollower(run_folder, num_epochs=2, num_ranks=2).poll()
    assert state.slow == {note.name: note}
    assert f"slow: rank 1 on {os.uname().nodename}" in state.describe()
    assert [row.is_straggler for row in read_rank_times(run_folder / "steps")] == [False, True]
    assert [path.name for path in (run_folder / "steps").iterdir()] == ["node-00000.h5"]


@pytest.mark.mpi
def test_a_crash_leaves_the_steps_that_were_written_and_a_resumed_run_adds_a_segment(
    smoke_data: Path, tmp_path: Path
) -> None:
    run_folder, _ = train(tmp_path, smoke_data, "mpi", "die")
    steps = run_folder / "steps"
    assert [path.name for path in steps.iterdir()] == ["node-00000.raw"]
    before = read_rank_times(steps)
    assert [row.rank for row in before] == [0, 1]
    _, printed = train(tmp_path, smoke_data, "mpi", "none")
    assert "segment 1 of the run goes on" in printed
    assert read_rank_times(steps) == before
    assert [path.name for path in (steps / "segment-001").iterdir()] == ["node-00000.h5"]
    with h5py.File(steps / "segment-001" / "node-00000.h5") as file:
        assert file["epoch-0001/communication_ns"].shape == (2, 8)
