"""From one command to a verified submission, on real ranks; and what a user gets for each mistake."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import msgspec
import pytest
from run_folders import make_run

from hpcai500.formats import RunConfig, read_config
from hpcai500.launches import read_launches
from hpcai500.ledger_reader import read_ledger
from hpcai500.plan import make_plan
from hpcai500.submit import add_arguments, main
from hpcai500.verify import verify_submission

SMOKE = ["--size", "smoke", "--device", "cpu"]


def submit(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpcai500.submit", *SMOKE, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def events(run: Path) -> Iterator[Any]:
    for path in sorted((run / "ledger").iterdir()):
        for entry in read_ledger(path):
            yield entry.value


def opening(run: Path, rank: int) -> Any:
    """What a rank of a run wrote first."""
    return next(entry.value for entry in read_ledger(run / "ledger" / "node-00000.jsonl") if entry.rank == rank)


@pytest.fixture(scope="module")
def submission(smoke_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A submission of two runs on two ranks."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    done = submit("--data", smoke_data, "--ranks", 2, "--runs", 2, "--output", folder)
    assert done.returncode == 0, done.stderr
    assert "VALID" in done.stdout
    assert "report.html" in done.stdout.splitlines()[-1]
    assert (folder / "report.html").stat().st_size > 10_000
    return folder / "submission.json"


def test_two_ranks_train_and_their_submission_is_valid_but_not_rankable(submission: Path) -> None:
    verdict = verify_submission(submission)
    assert verdict.findings == []
    assert (verdict.valid, verdict.rankable) == (True, False)
    assert verdict.why_not == ["size smoke is never ranked; only official size is"]
    assert verdict.deviations == []


def test_all_ranks_record_the_run(submission: Path) -> None:
    run = submission.parent / "run-1"
    assert sorted(path.name for path in (run / "ledger").iterdir()) == ["node-00000.jsonl"]
    assert [path.name for path in (run / "steps").iterdir()] == ["node-00000.h5"]
    with h5py.File(run / "steps" / "node-00000.h5") as file:
        assert file["epoch-0001/communication_ns"].shape == (2, 4)
    system = json.loads((run / "system.json").read_text())
    assert [node["host"] for node in system["nodes"]] == [os.uname().nodename]
    assert system["environment"]["OMP_NUM_THREADS"]


def test_runs_differ_in_nothing_but_seed_and_name(submission: Path) -> None:
    first, second = (read_config(submission.parent / name)[0] for name in ("run-1", "run-2"))
    assert (first.seed, second.seed) == (1, 2)
    assert first.run_id != second.run_id
    assert msgspec.structs.replace(second, seed=1, run_id=first.run_id) == first


def test_the_verifier_rejects_the_submission_after_one_altered_figure(submission: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(submission.parent), str(copy)], check=True)
    path = copy / "run-2" / "result.json"
    result = json.loads(path.read_text())
    result["vflops"] *= 1.01
    path.write_text(json.dumps(result))
    rules = {finding.rule for finding in verify_submission(copy / "submission.json").findings}
    assert {"form.digest", "figures.result"} & rules


@pytest.mark.parametrize(
    "communicator",
    [pytest.param("mpi", marks=pytest.mark.mpi), pytest.param("horovod", marks=pytest.mark.horovod), "serial"],
)
def test_every_communicator_makes_a_valid_submission(communicator: str, smoke_data: Path, tmp_path: Path) -> None:
    num_ranks = 1 if communicator == "serial" else 2
    words = ["--data", smoke_data, "--ranks", num_ranks, "--set", f"communicator={communicator}"]
    done = submit(*words, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert verify_submission(tmp_path / "out" / "submission.json").valid


@pytest.mark.dali
def test_dali_feeds_a_valid_submission(smoke_data: Path, tmp_path: Path) -> None:
    done = submit("--data", smoke_data, "--ranks", 2, "--set", "pipeline=dali", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert verify_submission(tmp_path / "out" / "submission.json").valid


def dry_run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([*SMOKE, "--dry-run", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_dry_run_shows_the_plan_and_makes_nothing(
    smoke_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, _ = dry_run(capsys, "--data", smoke_data, "--ranks", 2, "--runs", 2)
    assert code == 0
    assert "2 epochs of 4 steps of 32 samples" in output
    assert "2 (seeds 1, 2)" in output
    assert list(tmp_path.iterdir()) == []
    assert "note:" not in output


def test_a_plan_with_too_few_runs_says_so(smoke_data: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    plan = make_plan(parser.parse_args([*SMOKE, "--data", str(smoke_data)]))
    strict = replace(plan, size=msgspec.structs.replace(plan.size, num_runs=5))
    assert "note:     size smoke demands 5 runs; with fewer no submission is valid" in strict.describe()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workload", "resnet51"], "unknown workload 'resnet51' (did you mean 'resnet50'?)"),
        (["--level", "hard"], "unknown level 'hard'"),
        (["--size", "maxi"], "unknown size 'maxi'; known: mini, official, smoke"),
        (["--set", "pipelin=dali"], "unknown setting 'pipelin' (did you mean 'pipeline'?)"),
        (["--set", "pipeline=dalli"], "setting pipeline cannot be 'dalli': it takes one of dali, torch"),
        (["--set", "communicator=nccl"], "setting communicator cannot be 'nccl': it takes one of serial, torchdist"),
        (["--set", "batch_size_per_rank=0"], "setting batch_size_per_rank cannot be '0': it takes at least 1"),
        (["--set", "batch_size_per_rank"], "--set 'batch_size_per_rank' is not KEY=VALUE"),
        (["--set", "batch_size_per_rank=129"], "a global batch of 129 (129 on each of 1 ranks) is more than the 128"),
        (["--ranks", 0], "--ranks 0 is not possible; give at least 1"),
        (["--runs", 0], "--runs 0 is not possible; give at least 1"),
        (["--ranks", 51, "--set", "batch_size_per_rank=1"], "--ranks 51 is more than the 50 validation samples"),
        (["--ranks", 2, "--set", "communicator=serial"], "needs a communicator that joins ranks"),
        (["--level", "hardware", "--set", "momentum=0.9"], "hardware level forbids these settings: momentum = 0.9"),
        (["--level", "hardware", "--set", "momentum=0.9"], "free level allows a change"),
        (
            ["--set", "precision=fp16", "--device", "cpu"],
            "precision 'fp16' needs a CUDA device and this run uses 'cpu'",
        ),
        (["--set", "cuda_graphs=true", "--device", "cpu"], "cuda_graphs needs a CUDA device and this run uses 'cpu'"),
        (["--size", "mini"], "holds 128 training samples and size 'mini' needs"),
        (["--size", "official"], "comes from 'generated' and size 'official' takes imagenet"),
        (["--data", "nothing.h5"], "'nothing.h5' does not exist; prepare it with `hpcai500 data prepare`"),
    ],
)
def test_a_mistake_is_refused_before_anything_starts(
    words: list[object], message: str, smoke_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, error = dry_run(capsys, "--data", smoke_data, *words)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert output == ""


@pytest.mark.parametrize(
    ("setting", "module", "way"),
    [
        ("communicator=mpi", "mpi4py", "pip install 'hpcai500[mpi]'"),
        ("communicator=horovod", "horovod", "make horovod"),
        ("pipeline=dali", "nvidia.dali", "pip install 'hpcai500[dali]'"),
    ],
)
def test_a_library_that_is_not_installed_is_said_with_the_way_to_get_it(
    setting: str,
    module: str,
    way: str,
    smoke_data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find_spec(name))
    code, _, error = dry_run(capsys, "--data", smoke_data, "--set", setting)
    assert code == 2
    assert f"needs {module}, which is not installed here" in error
    assert way in error


@pytest.mark.parametrize(("place", "message"), [(".", "exists already"), ("/proc/out", "cannot be written")])
def test_an_output_that_exists_or_cannot_be_written_is_refused(
    place: str, message: str, smoke_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMOKE, "--data", str(smoke_data), "--output", str(tmp_path / place)]) == 2
    assert message in capsys.readouterr().err


def test_a_loss_that_is_no_number_ends_the_run_as_failed(smoke_data: Path, tmp_path: Path) -> None:
    done = submit("--data", smoke_data, "--output", tmp_path / "out", "--set", "learning_rate_per_256=1e38")
    assert done.returncode == 1
    assert "at epoch 0, step" in done.stderr
    assert "run 1/1 ended with exit code 1" in done.stderr
    *_, close = events(tmp_path / "out" / "run-1")
    assert close.status == "failed"
    assert "at epoch 0, step" in close.reason
    assert not (tmp_path / "out" / "run-1" / "result.json").exists()


def damage(source: Path, target: Path, *, sample: int) -> Path:
    """Copy a data file and overwrite one training picture with zeros."""
    target.write_bytes(source.read_bytes())
    with h5py.File(target, "r+") as file:
        begin, end = file["train/offsets"][sample : sample + 2]
        file["train/bytes"][begin:end] = 0
    return target


def test_a_picture_that_does_not_decode_is_named(smoke_data: Path, tmp_path: Path) -> None:
    data = damage(smoke_data, tmp_path / "damaged.h5", sample=77)
    done = submit("--data", data, "--output", tmp_path / "out")
    assert done.returncode != 0
    assert "damaged.h5" in done.stderr
    assert "77" in done.stderr
    *_, close = events(tmp_path / "out" / "run-1")
    assert (close.status, "77" in close.reason) == ("failed", True)


def test_skipped_pictures_are_counted(smoke_data: Path, tmp_path: Path) -> None:
    data = damage(smoke_data, tmp_path / "damaged.h5", sample=77)
    words = ["--data", data, "--output", tmp_path / "out", "--set", "decode_errors=skip"]
    submit(*words)
    result = json.loads((tmp_path / "out" / "run-1" / "result.json").read_text())
    assert result["skipped"] == 2  # once an epoch
    assert result["samples"] == 2 * 128 - 2


def start_and_wait_for_training(data: Path, folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start two ranks on many small steps, and return once both are past their first."""
    many_steps = ["--set", "batch_size_per_rank=2", "--set", "report_steps=1"]
    command = [sys.executable, "-m", "hpcai500.submit", *SMOKE, "--data", str(data), "--output", str(folder)]
    command += ["--ranks", "2", *many_steps, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ledger = folder / "run-1" / "ledger" / "node-00000.jsonl"
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        lines = ledger.read_bytes().splitlines() if ledger.exists() else []
        if {line[:10] for line in lines if b'"window"' in line} == {b'{"rank":0,', b'{"rank":1,'}:
            return process
        time.sleep(0.05)
    process.kill()
    pytest.fail("the run did not start training within 120 s")


def processes_with(word: str) -> list[str]:
    """Command lines of the processes that have ``word`` in them."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has just ended
            continue
    return [line for line in lines if word in line]


@pytest.mark.parametrize("communicator", ["torchdist", pytest.param("mpi", marks=pytest.mark.mpi)])
def test_ctrl_c_closes_the_ledgers_and_leaves_no_process(communicator: str, smoke_data: Path, tmp_path: Path) -> None:
    process = start_and_wait_for_training(smoke_data, tmp_path / "out", "--set", f"communicator={communicator}")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in error
    closes = [value for value in events(tmp_path / "out" / "run-1") if type(value).__name__ == "RunClose"]
    assert [close.status for close in closes] == ["interrupted", "interrupted"]
    assert processes_with(str(tmp_path)) == []


INTERRUPTED_TWICE = """
import os, signal, sys
from unittest import mock
from hpcai500 import train
from hpcai500.comm.lifeline import Lifeline

def settle(self, error):
    os.kill(os.getpid(), signal.SIGTERM)  # as a launcher does once a faster rank has ended

train.train_rank = mock.Mock(side_effect=KeyboardInterrupt)
Lifeline.settle = settle
train.main(sys.argv[1:])
"""


def test_a_rank_that_is_interrupted_again_while_it_ends_still_closes_its_ledger(
    smoke_data: Path, tmp_path: Path
) -> None:
    run = make_run(tmp_path, smoke_data, comm="serial", num_ranks=1, settings={})
    command = [sys.executable, "-c", INTERRUPTED_TWICE, str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert [value.status for value in events(run) if type(value).__name__ == "RunClose"] == ["interrupted"]


@pytest.mark.parametrize(("communicator", "killed"), [("torchdist", 0), pytest.param("mpi", 1, marks=pytest.mark.mpi)])
def test_a_killed_rank_ends_the_run_and_is_named_in_one_line(
    communicator: str, killed: int, smoke_data: Path, tmp_path: Path
) -> None:
    process = start_and_wait_for_training(smoke_data, tmp_path / "out", "--set", f"communicator={communicator}")
    run = tmp_path / "out" / "run-1"
    opened = opening(run, killed)
    os.kill(opened.pid, signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    reason = f"rank {killed} on {socket.gethostname()} is gone: its process has ended; the run can be resumed"
    assert [line for line in error.splitlines() if "rank" in line and line.startswith("hpcai500 train")] == [
        f"hpcai500 train: {reason}"
    ]
    closes = [value for value in events(run) if type(value).__name__ == "RunClose"]
    assert [(close.status, close.reason) for close in closes] == [("interrupted", reason)]
    assert process.returncode == 1
    assert "run 1/1 ended with exit code" in error
    assert "go on with `hpcai500 submit --resume" in error
    assert processes_with(str(tmp_path)) == []


def test_a_submission_that_was_stopped_is_gone_on_with(smoke_data: Path, tmp_path: Path) -> None:
    process = start_and_wait_for_training(smoke_data, tmp_path / "out", "--set", "batch_size_per_rank=16")
    opened = opening(tmp_path / "out/run-1", 1)
    os.kill(opened.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    command = [sys.executable, "-m", "hpcai500.submit", "--resume", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "VALID" in done.stdout
    assert json.loads((tmp_path / "out/run-1/result.json").read_text())["segments"] == 2
    assert [(launch.what, launch.outcome) for launch in read_launches(tmp_path / "out")] == [
        ("queued", None),
        ("started", None),
        ("ended", "stopped"),
        ("queued", None),
        ("started", None),
        ("ended", "completed"),
    ]


def train(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpcai500.train", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def new_run(submission: Path, folder: Path, **changes: Any) -> Path:
    """A fresh run folder with the configuration of a run, changed."""
    config, _ = read_config(submission.parent / "run-1")
    changed = msgspec.structs.replace(config, num_ranks=1, settings=config.settings | {"communicator": "serial"})
    folder.mkdir()
    (folder / "config.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(changed, **changes)))
    return folder


def test_a_second_run_in_one_folder_is_refused(submission: Path, tmp_path: Path) -> None:
    folder = new_run(submission, tmp_path / "run")
    assert train(folder).returncode == 0
    ledger = (folder / "ledger" / "node-00000.jsonl").read_bytes()
    again = train(folder)
    assert again.returncode == 2
    assert "is complete; make a new one with `hpcai500 submit` instead of resuming it" in again.stderr
    assert (folder / "ledger" / "node-00000.jsonl").read_bytes() == ledger


def test_another_data_set_than_the_run_was_made_for_is_refused(submission: Path, tmp_path: Path) -> None:
    config: RunConfig = read_config(submission.parent / "run-1")[0]
    other = msgspec.structs.replace(config.data, dataset_sha256="f" * 64)
    done = train(new_run(submission, tmp_path / "run", data=other))
    assert done.returncode == 2
    assert "the run was made for ffffffffffff" in done.stderr


def test_another_number_of_ranks_than_configured_is_refused(submission: Path, tmp_path: Path) -> None:
    done = train(new_run(submission, tmp_path / "run", num_ranks=2))
    assert done.returncode == 2
    assert "is configured for 2 ranks and 1 were started" in done.stderr
