"""Following a run through its ledger."""

from __future__ import annotations

import io
from pathlib import Path

from recording import new_ledger
from rich.console import Console

from hpcai500.progress import ProgressDisplay, RunFollower
from hpcai500.record import ledger_path

DATA_OPEN = {
    "dataset_sha256": "0" * 64,
    "source": "generated",
    "num_train_samples": 80,
    "num_validation_samples": 10,
    "num_classes": 10,
    "steps_per_epoch": 5,
    "dropped_per_epoch": 0,
}


def run_open(*, segment: int, num_ranks: int) -> dict[str, object]:
    names = {"format": 1, "run_id": "a", "job": "", "cores": "0", "host": "node1", "package_version": "0"}
    names |= {"config_sha256": "0" * 64}
    numbers = {"rank": 0, "local_rank": 0, "pid": 1, "wall_ns": 1, "monotonic_ns": 1}
    return names | numbers | {"segment": segment, "num_ranks": num_ranks}


def window(epoch: int, first_step: int, num_steps: int) -> dict[str, object]:
    return {
        "epoch": epoch,
        "first_step": first_step,
        "num_steps": num_steps,
        "samples": 8 * num_steps,
        "loss_sum": 2.0 * num_steps,
        "learning_rate": 0.1,
        "duration_ns": num_steps * 10**9,
        "data_wait_ns": 0,
        "forward_backward_ns": num_steps * 10**9,
        "communication_ns": 0,
        "optimizer_ns": 0,
    }


def test_the_state_follows_the_ledger(tmp_path: Path) -> None:
    follower = RunFollower(tmp_path, num_epochs=2, num_ranks=2)
    assert follower.poll().phase == "starting"
    with new_ledger(tmp_path / "ledger" / "node-00000.jsonl") as ledger:
        ledger.write("data_open", DATA_OPEN)
        assert follower.poll().num_steps == 10
        ledger.write("window", window(0, 0, 3))
        state = follower.poll()
        assert (state.step, state.samples_per_s, state.loss) == (3, 16.0, 2.0)
        ledger.write("window", window(1, 3, 2))
        counts = {"epoch": 2, "samples": 10, "counts": {"correct": [7]}, "curves": [], "loss": 1.0, "duration_ns": 0}
        ledger.write("evaluation", {**counts, "quality": 0.7})
        ledger.close("completed", "all epochs done")
    state = follower.poll()
    assert (state.step, state.quality, state.phase) == (10, 0.7, "completed")
    assert state.describe() == "completed, epoch 2/2, 16.0 images/s, loss 2.000, quality 0.7000"


def test_quality_and_time_parts_so_far_are_told(tmp_path: Path) -> None:
    follower = RunFollower(tmp_path, num_epochs=2, num_ranks=2, target_quality=0.8)
    with new_ledger(tmp_path / "ledger" / "node-00000.jsonl") as ledger:
        ledger.write("data_open", DATA_OPEN)
        assert follower.poll().describe_time() == ""
        ledger.write("window", window(0, 0, 3) | {"data_wait_ns": 10**9})
        assert follower.poll().describe_time() == "quality none yet of 0.8; time: forward backward 75 %, data wait 25 %"
        counts = {"epoch": 1, "samples": 10, "counts": {"correct": [7]}, "curves": [], "loss": 1.0}
        ledger.write("evaluation", {**counts, "quality": 0.7, "duration_ns": 10**9})
    expected = "quality 0.7000 of 0.8; time: forward backward 60 %, data wait 20 %, evaluation 20 %"
    assert follower.poll().describe_time() == expected


def test_it_follows_a_run_that_is_resumed(tmp_path: Path) -> None:
    follower = RunFollower(tmp_path, num_epochs=2, num_ranks=2)
    with new_ledger(ledger_path(tmp_path, 0, node=0)) as ledger:
        ledger.write("data_open", DATA_OPEN)
        ledger.write("window", window(0, 0, 3))
        ledger.write("window", window(0, 3, 1))
    assert (follower.poll().step, follower.state.eta_s) == (4, 6.0)
    with new_ledger(ledger_path(tmp_path, 1, node=0)) as ledger:
        ledger.write("run_open", run_open(segment=1, num_ranks=1))
        resume = {"epoch": 0, "step": 3, "path": "c.pt", "sha256": "0" * 64, "ledgers_sha256": "0" * 64}
        ledger.write("resume", resume)
        state = follower.poll()
        assert (state.phase, state.step, state.segment) == ("starting", 3, 1)
        ledger.write("window", window(0, 3, 2))
        state = follower.poll()
    assert (state.step, state.samples_per_s) == (5, 8.0)  # one rank is left
    assert "resumed 1x" in state.describe()


def test_a_line_that_is_being_written_waits_for_its_end(tmp_path: Path) -> None:
    with new_ledger(tmp_path / "ledger" / "node-00000.jsonl") as ledger:
        ledger.write("data_open", DATA_OPEN)
        ledger.write("window", window(0, 0, 3))
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[:-20])
    follower = RunFollower(tmp_path, num_epochs=1, num_ranks=1)
    assert follower.poll().step == 0
    ledger.path.write_bytes(whole)
    assert follower.poll().step == 3


def test_without_a_terminal_a_line_says_how_far_it_is(tmp_path: Path) -> None:
    output = io.StringIO()
    with (
        ProgressDisplay(
            RunFollower(tmp_path, num_epochs=1, num_ranks=1), title="run 1/1", console=Console(file=output, width=40)
        ),
        new_ledger(tmp_path / "ledger" / "node-00000.jsonl") as ledger,
    ):
        ledger.write("data_open", DATA_OPEN)
        ledger.write("window", window(0, 0, 5))
    assert output.getvalue().splitlines()[-1] == "run 1/1: step 5/5, epoch 1/1, 8.0 images/s, loss 2.000"
