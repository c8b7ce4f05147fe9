"""Brings the step times of all ranks to rank 0, once an epoch, and keeps them in ``steps.h5``.

``steps.h5`` holds a group an epoch (``epoch-0000``) with one int64 data set (num_ranks, num_steps) a phase, in ns. It
is a record for people and plots; nothing that is verified rests on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from hpcai500.comm.communicator import Communicator
from hpcai500.errors import RecordError

StepTable = dict[str, NDArray[np.int64]]


class StepRecorder:
    """Collects a rank's step times and, on rank 0, writes those of all ranks.

    Args:
        path: the run's ``steps.h5``; only rank 0 writes it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._steps: list[tuple[int, ...]] = []
        self._phases: tuple[str, ...] = ()

    def add(self, phase_ns: dict[str, int]) -> None:
        """Add a step: its time by phase, in ns."""
        self._phases = tuple(phase_ns)
        self._steps.append(tuple(phase_ns.values()))

    def close_epoch(self, epoch: int, comm: Communicator) -> None:
        """Gather the epoch's steps on rank 0 and append them to the file; one collective.

        Raises:
            RecordError: the file cannot be written.
        """
        mine = np.array(self._steps, dtype=np.int64)
        self._steps = []
        gathered = comm.gather(mine)
        if gathered is None:
            return
        table = np.stack(gathered)  # (num_ranks, num_steps, num_phases)
        try:
            with h5py.File(self._path, "a") as file:
                group = file.create_group(f"epoch-{epoch:04d}")
                for index, phase in enumerate(self._phases):
                    group.create_dataset(f"{phase}_ns", data=table[:, :, index])
        except OSError as error:
            raise RecordError(
                f"step times cannot be written to {str(self._path)!r}; free some space there and start again"
            ) from error


@dataclass(frozen=True)
class RankTimes:
    """How one rank spent its steps.

    Attributes:
        median_step_s: median time of a step.
        median_own_s: median time of a step without communication, which is where a slow rank shows: the others wait
            for it in their communication.
        is_straggler: its own time is over STRAGGLER_RATIO times the median of all ranks.
    """

    rank: int
    median_step_s: float
    median_own_s: float
    is_straggler: bool


STRAGGLER_RATIO = 1.1  # our choice: one rank in ten percent of the others is what a quiet machine shows


def read_rank_times(path: Path) -> list[RankTimes]:
    """Read ``steps.h5`` into a table of ranks.

    Raises:
        RecordError: the file is missing or is not one of step times.
    """
    try:
        with h5py.File(path, "r") as file:
            epochs = [{name: group[name][:] for name in group} for group in file.values()]
    except OSError as error:
        raise RecordError(f"step times cannot be read from {str(path)!r}; is it a run's steps.h5?") from error
    total = np.concatenate([sum(epoch.values()) for epoch in epochs], axis=1)
    own = total - np.concatenate([epoch["communication_ns"] for epoch in epochs], axis=1)
    own_medians = np.median(own, axis=1) / 1e9
    limit = STRAGGLER_RATIO * float(np.median(own_medians))
    step_medians = np.median(total, axis=1) / 1e9
    return [
        RankTimes(rank, float(step_s), float(own_s), bool(own_s > limit))
        for rank, (step_s, own_s) in enumerate(zip(step_medians, own_medians, strict=True))
    ]
