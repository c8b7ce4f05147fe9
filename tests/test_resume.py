"""Runs that are killed or stopped go on, on real ranks, as if nothing had happened; the record tells all of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import run_folders

from hpcai500.command import STOPPED_EXIT_CODE
from hpcai500.events import Checkpoint, EpochPart, Evaluation, EvaluationShard, Resume, Window
from hpcai500.formats import read_config
from hpcai500.launch.local import find_ranks, rank_command
from hpcai500.record import RunRecord, read_run
from hpcai500.submission import assemble_submission
from hpcai500.verify import verify_submission

BACKENDS = [
    pytest.param("mpi", marks=pytest.mark.mpi),
    pytest.param("horovod", marks=[pytest.mark.mpi, pytest.mark.horovod]),
    pytest.param("torchdist", marks=pytest.mark.mpi),
]
OFTEN = {"checkpoint_every_s": "0.001", "report_steps": "1", "batch_size_per_rank": "16"}
NEVER = OFTEN | {"checkpoint_every_s": "0"}


def make_run(folder: Path, data: Path, *, comm: str, num_ranks: int = 2, settings: dict[str, str] = OFTEN) -> Path:
    return run_folders.make_run(folder, data, comm=comm, num_ranks=num_ranks, settings=settings)


def start(run_folder: Path, *, num_ranks: int = 2) -> subprocess.Popen[str]:
    comm = str(read_config(run_folder)[0].settings["communicator"])
    command, env = rank_command(comm, num_ranks, [sys.executable, "-m", "hpcai500.train", str(run_folder)])
    env |= {"HPCAI500_RENDEZVOUS": f"file://{run_folder}/rendezvous-{uuid.uuid4()}"}
    return subprocess.Popen(
        command,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(run_folder: Path, *, num_ranks: int = 2) -> tuple[int, str]:
    process = start(run_folder, num_ranks=num_ranks)
    output, _ = process.communicate(timeout=200)
    return process.returncode, output


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + 100
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline_s, "what the test waits for did not come"
        time.sleep(0.002)


def kill_when(run_folder: Path, condition: Callable[[], bool], *, num_ranks: int = 2) -> None:
    """Start the ranks and kill -9 all of them, launcher and all, as soon as something is so."""
    process = start(run_folder, num_ranks=num_ranks)
    wait_until(condition, process)
    for pid in find_ranks(process.pid):
        os.kill(pid, signal.SIGKILL)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def ledger_text(run_folder: Path) -> str:
    return "".join(path.read_text() for path in sorted((run_folder / "ledger").rglob("node-00000.jsonl")))


def wrote(run_folder: Path, *events: str) -> Callable[[], bool]:
    """Whether rank 0 has written these events since now, in this order."""
    already = len(ledger_text(run_folder)) if (run_folder / "ledger").exists() else 0

    def has() -> bool:
        text = ledger_text(run_folder)[already:] if (run_folder / "ledger").exists() else ""
        for event in events:
            _, found, text = text.partition(f'"event":"{event}"')
            if not found:
                return False
        return True

    return has


def curve(run_folder: Path) -> dict[str, list[Any]]:
    """What must not depend on interruptions: losses, rates, samples and evaluations of the steps that count."""
    run = read(run_folder)
    by_rank: dict[str, list[Any]] = {}
    for ledger in run.ledgers:
        steps = [(w.epoch, w.first_step, w.loss_sum, w.learning_rate) for w in ledger.values(Window)]
        shards = [(s.epoch, s.samples, s.counts, s.loss_sum) for s in ledger.values(EvaluationShard)]
        by_rank.setdefault(f"steps {ledger.rank}", []).extend(steps)
        by_rank.setdefault(f"shards {ledger.rank}", []).extend(shards)
    by_rank["quality"] = [(e.epoch, e.counts, e.quality, e.loss) for root in run.roots for e in root.values(Evaluation)]
    return by_rank


def samples(run_folder: Path) -> dict[int, int]:
    """Digest of the samples of each epoch, over all ranks and parts."""
    sums: dict[int, int] = {}
    for ledger in read(run_folder).ledgers:
        for part in ledger.values(EpochPart):
            sums[part.epoch] = (sums.get(part.epoch, 0) + int(part.sample_digest)) % 2**64
    return sums


def read(run_folder: Path) -> RunRecord:
    return read_run(run_folder, read_config(run_folder)[0])


@pytest.fixture(scope="module")
def undisturbed(smoke_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbs and that makes no checkpoint; two ranks add alike with every communicator."""
    run_folder = make_run(tmp_path_factory.mktemp("undisturbed"), smoke_data, comm="mpi", settings=NEVER)
    assert finish(run_folder)[0] == 0
    return run_folder


def assert_valid(run_folder: Path) -> list[str]:
    path = run_folder.parent / "submission.json"
    assemble_submission([run_folder], path)
    verdict = verify_submission(path)
    assert verdict.findings == []
    return verdict.notes + verdict.why_not


@pytest.mark.mpi
@pytest.mark.slow
def test_killed_at_many_moments_a_run_ends_as_an_undisturbed_one_to_the_bit(
    smoke_data: Path, tmp_path: Path, undisturbed: Path
) -> None:
    run_folder = make_run(tmp_path, smoke_data, comm="mpi")
    partial = run_folder / "checkpoints"
    moments: list[Callable[[], bool]] = [
        (run_folder / "ledger" / "node-00000.jsonl").exists,  # while it starts
        wrote(run_folder, "window", "window"),  # between two steps, or in one
        lambda: any(partial.glob("*.partial")),  # while a checkpoint is written
        lambda: wrote_evaluation(run_folder),  # between the evaluation and the checkpoint after it
    ]
    for moment in moments:
        kill_when(run_folder, moment)
    code, output = finish(run_folder)
    assert code == 0, output
    assert "segment 4 of the run goes on from epoch 1, step 0" in output or "goes on from epoch 0" in output
    assert curve(run_folder) == curve(undisturbed)
    assert samples(run_folder) == samples(undisturbed)
    assert "run run-1 was resumed 4 times; its clock ran on all the while" in assert_valid(run_folder)
    result = json.loads((run_folder / "result.json").read_text())
    assert result["segments"] == 5
    assert result["parts"]["restart_s"] > 4  # four times start-up
    assert result["wall_s"] > sum(result["parts"][part] for part in ("forward_backward_s", "restart_s"))


def wrote_evaluation(run_folder: Path) -> bool:
    return '"event":"evaluation"' in ledger_text(run_folder)


@pytest.mark.parametrize("comm", BACKENDS)
def test_stopped_by_a_signal_it_makes_a_checkpoint_and_goes_on_to_the_bit(
    smoke_data: Path, tmp_path: Path, undisturbed: Path, comm: str
) -> None:
    run_folder = make_run(tmp_path, smoke_data, comm=comm, settings=OFTEN | {"checkpoint_every_s": "5000"})
    process = start(run_folder)
    wait_until(wrote(run_folder, "window"), process)
    for pid in find_ranks(process.pid)[1:]:  # one rank is enough: they agree
        os.kill(pid, signal.SIGUSR2)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == STOPPED_EXIT_CODE, output
    assert output.count("stopped by SIGUSR2 after epoch") == 1
    (saved,) = read(run_folder).roots[0].values(Checkpoint)
    assert finish(run_folder)[0] == 0
    (resume,) = (entry.value for entry in read(run_folder).roots[1].entries if isinstance(entry.value, Resume))
    assert (resume.epoch, resume.step, resume.path) == (saved.epoch, saved.step, saved.path)
    assert curve(run_folder) == curve(undisturbed)
    assert_valid(run_folder)


def test_a_detector_goes_on_to_the_bit(smoke_weather: Path, tmp_path: Path) -> None:
    """It draws which anchors and regions it learns from, so its random state has to go on too."""

    def make(name: str) -> Path:
        settings = {"report_steps": "1", "checkpoint_every_s": "5000"}
        where = {"comm": "serial", "num_ranks": 1, "workload": "fasterrcnn"}
        return run_folders.make_run(tmp_path / name, smoke_weather, settings=settings, **where)  # type: ignore[arg-type]

    straight, stopped = make("straight"), make("stopped")
    assert finish(straight, num_ranks=1)[0] == 0
    process = start(stopped, num_ranks=1)
    wait_until(wrote(stopped, "window"), process)
    os.kill(process.pid, signal.SIGUSR2)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == STOPPED_EXIT_CODE, output
    assert finish(stopped, num_ranks=1)[0] == 0
    assert len(read(stopped).segments) == 2
    assert curve(stopped) == curve(straight)
    assert_valid(stopped)


@pytest.mark.mpi
@pytest.mark.slow
def test_three_ranks_add_their_gradients_in_the_same_order_after_a_stop(smoke_data: Path, tmp_path: Path) -> None:
    """The sum of two numbers has one order only; torch's own exchange would take another for the first step."""
    settings = NEVER | {"batch_size_per_rank": "8"}
    straight = make_run(tmp_path / "straight", smoke_data, comm="torchdist", num_ranks=3, settings=settings)
    stopped = make_run(tmp_path / "stopped", smoke_data, comm="torchdist", num_ranks=3, settings=settings)
    assert finish(straight, num_ranks=3)[0] == 0
    process = start(stopped, num_ranks=3)
    wait_until(wrote(stopped, "window", "window"), process)
    os.kill(find_ranks(process.pid)[0], signal.SIGUSR1)
    process.communicate(timeout=100)
    assert finish(stopped, num_ranks=3)[0] == 0
    assert len(read(stopped).segments) == 2
    assert curve(stopped) == curve(straight)


@pytest.mark.mpi
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_used(
    smoke_data: Path, tmp_path: Path, undisturbed: Path
) -> None:
    run_folder = make_run(tmp_path, smoke_data, comm="mpi")
    kill_when(run_folder, wrote(run_folder, "checkpoint", "checkpoint", "checkpoint", "checkpoint"))
    saved = sorted((run_folder / "checkpoints").glob("*.pt"))
    content = bytearray(saved[-1].read_bytes())
    content[len(content) // 2] ^= 1
    saved[-1].write_bytes(content)
    code, output = finish(run_folder)
    assert code == 0, output
    assert f"checkpoint {saved[-1].name!r} is damaged, so the one before it is used" in output
    assert curve(run_folder) == curve(undisturbed)
    assert_valid(run_folder)


@pytest.mark.mpi
def test_a_run_goes_on_with_fewer_ranks_and_that_is_recorded(smoke_data: Path, tmp_path: Path) -> None:
    run_folder = make_run(tmp_path, smoke_data, comm="mpi")
    kill_when(run_folder, wrote(run_folder, "checkpoint", "checkpoint"))
    code, output = finish(run_folder, num_ranks=3)
    assert code != 0
    assert (
        "a global batch of 32 cannot go on with 3 ranks; start a number that divides it: 1, 2, 4, 8, 16, 32" in output
    )
    code, output = finish(run_folder, num_ranks=1)
    assert code == 0, output
    assert [segment.num_ranks for segment in read(run_folder).segments] == [2, 1]
    remarks = assert_valid(run_folder)
    assert any("run-1 was resumed on 1 ranks instead of 2" in remark for remark in remarks)


@pytest.mark.mpi
def test_a_second_job_on_the_same_run_folder_is_refused_and_the_first_goes_on(smoke_data: Path, tmp_path: Path) -> None:
    run_folder = make_run(tmp_path, smoke_data, comm="mpi")
    first = start(run_folder)
    wait_until(wrote(run_folder, "clock_start"), first)
    code, output = finish(run_folder)
    assert code != 0
    assert "is in use by process" in output
    first.communicate(timeout=100)
    assert first.returncode == 0
    code, output = finish(run_folder)
    assert "is complete; make a new one" in output
    assert_valid(run_folder)


@pytest.mark.mpi
def test_a_run_that_died_before_it_could_write_its_result_gets_it_when_it_is_started_again(
    smoke_data: Path, tmp_path: Path, undisturbed: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run-1")
    result = (tmp_path / "run-1" / "result.json").read_bytes()
    (tmp_path / "run-1" / "result.json").unlink()
    code, output = finish(tmp_path / "run-1")
    assert (code, output) == (0, "")
    assert (tmp_path / "run-1" / "result.json").read_bytes() == result
    assert len(read(tmp_path / "run-1").segments) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 60 MB: room for ledgers, not for the 190 MB of a checkpoint."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.mpi
def test_a_full_disk_ends_the_run_with_one_line_and_with_more_room_it_goes_on(
    smoke_data: Path, small_disk: Path, undisturbed: Path
) -> None:
    run_folder = make_run(small_disk / "runs", smoke_data, comm="mpi")
    code, output = finish(run_folder)
    assert code != 0
    lines = [line for line in output.splitlines() if line.startswith("hpcai500 train:")]
    assert len(lines) == 1, output
    assert "rank 0 on" in lines[0]
    assert "cannot be written; free some space there and resume the run" in lines[0]
    subprocess.run(["mount", "-o", "remount,size=700m", str(small_disk)], check=True)
    code, output = finish(run_folder)
    assert code == 0, output
    assert curve(run_folder) == curve(undisturbed)
    assert_valid(run_folder)
