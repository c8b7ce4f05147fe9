"""When the ranks look up from their steps together: to stop on request, or to write a checkpoint.

A rank that is asked to stop (Slurm's warning before the time limit or a preemption) cannot stop alone: the others would
wait for it in the next exchange. So all ranks look up at the same steps and agree by one small all-reduce. How many
steps lie between two looks follows from the time of a step, so that a look comes about every five seconds.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import NamedTuple

import numpy as np

from hpcai500.comm.communicator import Communicator

LOOK_PERIOD_S = 5.0  # a small part of the minutes that schedulers leave; costs one all-reduce of 24 bytes
MAX_STEPS = 1000  # between looks, however short a step is: a later one may be longer


class StopRequests:
    """Remembers the signal that asked this rank to stop with a checkpoint.

    SIGUSR1 and SIGUSR2 always ask for that; under Slurm so does SIGTERM, which it sends to the tasks of a job that is
    preempted or cancelled.
    """

    def __init__(self) -> None:
        self.signal = 0
        names = [signal.SIGUSR1, signal.SIGUSR2, *([signal.SIGTERM] if "SLURM_JOB_ID" in os.environ else [])]
        for name in names:
            signal.signal(name, self._remember)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.signal = number


class Decision(NamedTuple):
    """What the ranks agreed to do after the step.

    Attributes:
        stop: number of the signal that asked to stop; 0 to go on.
        checkpoint: write one.
    """

    stop: int
    checkpoint: bool


class JointLook:
    """Counts steps up to the next look, and looks.

    Args:
        comm: the ranks that look together.
        requests: signals that this rank has received; None where nobody sends any.
        period_s: time between two looks, about.
    """

    def __init__(self, comm: Communicator, requests: StopRequests | None, *, period_s: float = LOOK_PERIOD_S) -> None:
        self._comm, self._requests, self._period_ns = comm, requests, int(period_s * 1e9)
        self._steps_left = self._steps_between = 1
        self._last_ns = time.monotonic_ns()

    def is_due(self) -> bool:
        """Count a step; the same answer on all ranks."""
        self._steps_left -= 1
        return self._steps_left <= 0

    def look(self, *, checkpoint_is_due: bool) -> Decision:
        """Agree on what to do; collective.

        Args:
            checkpoint_is_due: what this rank thinks; one rank is enough.
        """
        now_ns = time.monotonic_ns()
        step_ns = (now_ns - self._last_ns) // max(1, self._steps_between - max(0, self._steps_left))
        stop = self._requests.signal if self._requests else 0
        agreed = self._comm.allreduce(np.array([stop, int(checkpoint_is_due), step_ns], dtype=np.int64), "max")
        self._steps_between = min(MAX_STEPS, max(1, self._period_ns // max(1, int(agreed[2]))))
        self._steps_left = self._steps_between
        self._last_ns = now_ns
        return Decision(stop=int(agreed[0]), checkpoint=bool(agreed[0] or agreed[1]))
