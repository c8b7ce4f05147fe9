"""The account of an epoch: no time lost, windows and sums right, the first infinite loss named."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from recording import new_ledger

from hpcai500.account import EpochAccount, PhaseTimer
from hpcai500.collector import StepRecorder
from hpcai500.comm.communicator import open_communicator
from hpcai500.errors import DivergedError
from hpcai500.ledger import LedgerWriter
from hpcai500.ledger_reader import read_ledger
from hpcai500.pipelines.image_pipeline import ImageBatch
from hpcai500.record import Position
from hpcai500.sample_order import sample_digest
from hpcai500.step_files import STEP_PHASES


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[LedgerWriter]:
    with new_ledger(tmp_path / "node-00000.jsonl") as writer:
        yield writer


def enter_steps(account: EpochAccount, losses: list[float], *, first_id: int = 0) -> None:
    timer = PhaseTimer()
    for step, loss in enumerate(losses):
        for phase in STEP_PHASES:
            timer.lap(phase)
        ids = np.arange(first_id + 4 * step, first_id + 4 * step + 4)
        batch = ImageBatch(torch.zeros(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64), ids)
        account.enter_step(batch, torch.tensor(loss), 0.1 * (step + 1), timer)


def open_account(ledger: LedgerWriter, tmp_path: Path, *, report_steps: int = 2, on_cuda: bool = False) -> EpochAccount:
    recorder = StepRecorder(tmp_path, open_communicator("serial"))
    return EpochAccount(ledger, recorder, rank=0, position=Position(3, 0), report_steps=report_steps, on_cuda=on_cuda)


def test_all_time_belongs_to_a_phase() -> None:
    begin_ns = time.perf_counter_ns()
    timer = PhaseTimer()
    for phase in (*STEP_PHASES, *STEP_PHASES):
        time.sleep(0.002)
        timer.lap(phase)
    passed_ns = time.perf_counter_ns() - begin_ns
    phases = timer.take()
    assert all(amount >= 2_000_000 for amount in phases.values())
    assert 16_000_000 <= sum(phases.values()) <= passed_ns
    assert sum(timer.take().values()) == 0


def test_what_is_skipped_between_two_steps_is_in_no_later_step() -> None:
    timer = PhaseTimer()
    timer.take()
    timer.lap("communication")  # a window was brought to rank 0
    timer.skip()  # and a checkpoint was written, so that it does not fit into the time since
    timer.lap("data_wait")
    assert timer.take()["communication"] == 0


def test_windows_and_epoch_add_up(ledger: LedgerWriter, tmp_path: Path) -> None:
    account = open_account(ledger, tmp_path)
    enter_steps(account, [3.0, 2.0, 1.5, 1.0, 0.5])
    account.close_part(skipped=1, epoch_digest=7)
    *windows, end = (entry.value for entry in read_ledger(ledger.path))
    assert [(window.first_step, window.num_steps, window.samples) for window in windows] == [
        (0, 2, 8),
        (2, 2, 8),
        (4, 1, 4),
    ]
    assert [window.loss_sum for window in windows] == [5.0, 2.5, 0.5]
    assert [window.learning_rate for window in windows] == pytest.approx([0.2, 0.4, 0.5])
    for window in windows:
        assert window.duration_ns == sum(getattr(window, f"{phase}_ns") for phase in STEP_PHASES)
    assert (end.epoch, end.steps, end.samples, end.skipped, end.epoch_digest) == (3, 5, 20, 1, "7")
    assert end.sample_digest == str(sample_digest(np.arange(20)))
    assert (end.learning_rate_first, end.learning_rate_last) == pytest.approx((0.1, 0.5))


class Event:
    """Stands for a CUDA event: the backward pass of a step ends at 0 ms, its gradients come 4 ms later."""

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.num_records = self.num_waits = 0

    def record(self) -> None:
        self.num_records += 1

    def synchronize(self) -> None:
        self.num_waits += 1

    def elapsed_time(self, end: Event) -> float:
        assert self.num_records == end.num_records == end.num_waits
        return 4.0


def test_on_a_gpu_waiting_for_gradients_is_communication_though_the_host_waited_elsewhere(
    ledger: LedgerWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    account = open_account(ledger, tmp_path, report_steps=2, on_cuda=True)
    timer = PhaseTimer()
    for step in range(5):
        account.begin_exchange()
        account.end_exchange()
        timer.lap("communication")
        if step % 2:
            time.sleep(0.02)
        batch = ImageBatch(torch.zeros(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64), np.arange(4))
        account.enter_step(batch, torch.tensor(1.0), 0.1, timer)
    account.close_part(skipped=0)
    first, second, last, _ = (entry.value for entry in read_ledger(ledger.path))
    for window in (first, second):
        assert window.communication_ns == 8_000_000  # of the two steps
        assert window.forward_backward_ns >= 12_000_000
        assert window.duration_ns == sum(getattr(window, f"{phase}_ns") for phase in STEP_PHASES)
    assert (last.num_steps, last.forward_backward_ns) == (1, 0)  # more than there is cannot have been waited


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("on_cuda", [False, True])
def test_the_first_infinite_loss_is_named(ledger: LedgerWriter, tmp_path: Path, bad: float, on_cuda: bool) -> None:
    account = open_account(ledger, tmp_path, report_steps=4, on_cuda=on_cuda)
    with pytest.raises(DivergedError, match=rf"the loss of rank 0 is {bad} at epoch 3, step 5; try"):
        enter_steps(account, [1.0] * 5 + [bad, 1.0, bad])


def test_on_a_cpu_training_stops_at_the_very_step(ledger: LedgerWriter, tmp_path: Path) -> None:
    account = open_account(ledger, tmp_path, report_steps=100)
    enter_steps(account, [1.0])
    with pytest.raises(DivergedError, match="step 1;"):
        enter_steps(account, [math.nan])
