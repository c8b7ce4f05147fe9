"""Brings the step times of all ranks to rank 0, once an epoch, and keeps them in ``steps.h5``.

``steps.h5`` holds a group an epoch (``epoch-0000``) with one int64 data set (num_ranks, num_steps) a phase, in ns. It
is a record for people and plots; nothing that is verified rests on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import h5py
import numpy as np
from numpy.typing import NDArray

from hpcai500.comm.communicator import Communicator
from hpcai500.errors import RecordError
from hpcai500.metrics import STRAGGLER_RATIO

StepTable = dict[str, NDArray[np.int64]]
Named = TypeVar("Named", h5py.Group, h5py.Dataset)


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


def _read_epochs(file: h5py.File, *, size_bytes: int) -> list[StepTable]:
    """The tables of all epochs.

    Raises:
        ValueError: a data set is not one that StepRecorder writes: plain int64 in this very file.
    """
    epochs: list[StepTable] = []
    num_bytes = 0
    for epoch in file:
        table: StepTable = {}
        for phase in _own(file, epoch, h5py.Group):
            times = _own(file[epoch], phase, h5py.Dataset)
            layout = times.id.get_create_plist()
            is_plain = layout.get_layout() == h5py.h5d.CONTIGUOUS and layout.get_external_count() == 0
            num_bytes += times.nbytes
            # A contiguous data set takes its whole place in the file, so that reading it takes no more than that.
            if not is_plain or times.id.get_storage_size() != times.nbytes or num_bytes > size_bytes:
                raise ValueError(f"{epoch}/{phase} is compressed, lies elsewhere or is larger than the file")
            if (
                times.dtype != np.int64
                or times.ndim != 2
                or (table and times.shape != next(iter(table.values())).shape)
            ):
                raise ValueError(f"{epoch}/{phase} is no table of int64 like the others (ranks, steps)")
            table[phase] = times[:]
        if "communication_ns" not in table or (epochs and len(table["communication_ns"]) != len(_first(epochs[0]))):
            raise ValueError(f"{epoch} is not of all ranks, or lacks communication_ns")
        epochs.append(table)
    if not epochs or not _first(epochs[0]).size:
        raise ValueError("it has no steps")
    return epochs


def _first(table: StepTable) -> NDArray[np.int64]:
    return next(iter(table.values()))


def _own(group: h5py.Group, name: str, kind: type[Named]) -> Named:
    """What a group holds itself under a name; links to elsewhere are not followed."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink) or group.get(name, getclass=True) is not kind:
        raise ValueError(f"{name} is a link, or no {kind.__name__}")
    return cast("Named", group[name])


def read_rank_times(path: Path) -> list[RankTimes]:
    """Read ``steps.h5`` into a table of ranks. The file may be a stranger's: what is read is no larger than it is.

    Raises:
        RecordError: the file is missing or is not one of step times.
    """
    try:
        if not path.is_file():  # a pipe would block
            raise ValueError("it is no file")
        with h5py.File(path, "r") as file:
            epochs = _read_epochs(file, size_bytes=path.stat().st_size)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
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
