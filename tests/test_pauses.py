"""The ranks look up together: every few seconds, all at the same step, and agree."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest

from hpcai500 import pauses
from hpcai500.comm.serial import SerialCommunicator
from hpcai500.pauses import Decision, JointLook, StopRequests


@pytest.fixture(autouse=True)
def handlers_are_put_back() -> Iterator[None]:
    names = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
    before = {name: signal.getsignal(name) for name in names}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


class OtherRank(SerialCommunicator):
    """A communicator with a second rank whose part in an all-reduce is given."""

    def __init__(self, theirs: list[int]) -> None:
        super().__init__()
        self.theirs = theirs

    def allreduce(self, values: np.ndarray, op: object = "sum") -> np.ndarray:
        assert op == "max"
        return np.maximum(values, np.array(self.theirs))


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2"])
def test_a_signal_is_remembered(name: str) -> None:
    requests = StopRequests()
    assert requests.signal == 0
    os.kill(os.getpid(), signal.Signals[name])
    assert requests.signal == signal.Signals[name]


def test_under_slurm_sigterm_asks_to_stop_too(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    StopRequests()
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    requests = StopRequests()
    os.kill(os.getpid(), signal.SIGTERM)
    assert requests.signal == signal.SIGTERM


def test_one_rank_that_was_asked_stops_all_with_a_checkpoint() -> None:
    look = JointLook(OtherRank([int(signal.SIGUSR2), 0, 0]), None)
    assert look.look(checkpoint_is_due=False) == Decision(stop=signal.SIGUSR2, checkpoint=True)


def test_one_rank_that_finds_a_checkpoint_due_is_enough() -> None:
    assert JointLook(OtherRank([0, 1, 0]), None).look(checkpoint_is_due=False) == Decision(0, checkpoint=True)
    assert JointLook(OtherRank([0, 0, 0]), None).look(checkpoint_is_due=False) == Decision(0, checkpoint=False)


def test_looks_come_every_period_whatever_the_time_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = [0]
    monkeypatch.setattr(pauses.time, "monotonic_ns", lambda: now_ns[0])
    look = JointLook(OtherRank([0, 0, 0]), None, period_s=5.0)
    looks = []
    for step in range(1, 120):
        now_ns[0] += 10**9 if step <= 50 else 10**8  # a step takes 1 s, later 0.1 s
        if look.is_due():
            looks.append(step)
            look.look(checkpoint_is_due=False)
    assert looks[:11] == [1, 6, 11, 16, 21, 26, 31, 36, 41, 46, 51]
    assert looks[11] == 51 + 6  # its step time is still mostly that of before
    assert looks[12] == looks[11] + 50


def test_the_slowest_rank_decides_when_the_next_look_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = [0]
    monkeypatch.setattr(pauses.time, "monotonic_ns", lambda: now_ns[0])
    look = JointLook(OtherRank([0, 0, 10**9]), None, period_s=3.0)
    now_ns[0] += 10**6
    assert look.is_due()
    look.look(checkpoint_is_due=False)
    assert [look.is_due() for _ in range(3)] == [False, False, True]
