"""Keeps a rank's step times, and brings those of each window to rank 0, which says who is slow while the run goes on.

One collective a window, of 32 bytes a rank, whose result is looked at when the next window ends: Horovod, which needs a
cycle of its thread for each call, has it ready by then. The times of single steps are written by each rank itself, into
the file of its node (hpcai500/step_files.py); they are never gathered.
"""

from __future__ import annotations

import array
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np

from hpcai500.comm.communicator import Communicator
from hpcai500.comm.nodes import NodePlace
from hpcai500.errors import RecordError
from hpcai500.record import Position
from hpcai500.step_files import STEP_PHASES, append_epoch, create_raw, raw_path
from hpcai500.straggler_record import STRAGGLERS_NAME, StragglerNote
from hpcai500.stragglers import HOST_BYTES, StragglerWatch

FIRST_NODE = NodePlace(0, 0)


class StepRecorder:
    """Collects a rank's step times.

    Args:
        run_folder: of the run.
        comm: its ranks.
        node: of this rank; its first rank makes the node's file.
        segment: of the run.

    Raises:
        RecordError: the node's file cannot be made.
    """

    def __init__(self, run_folder: Path, comm: Communicator, *, node: NodePlace = FIRST_NODE, segment: int = 0) -> None:
        self._comm, self._stragglers_path = comm, run_folder / STRAGGLERS_NAME
        self._path = raw_path(run_folder, segment, node.number)
        self._steps_ns = array.array("q")
        if comm.rank == node.first_rank:
            create_raw(self._path)  # the others append after their first epoch, in which they have met this rank
        self._watch: StragglerWatch | None = None
        self._under_way: tuple[Callable[[], np.ndarray | None], int, Position] | None = None
        if comm.size > 1:
            host = np.frombuffer(socket.gethostname().encode()[:HOST_BYTES].ljust(HOST_BYTES, b"\0"), dtype=np.uint8)
            hosts = comm.gather_array(host)
            self._watch = None if hosts is None else StragglerWatch(hosts, segment=segment)

    def add(self, phase_ns: Mapping[str, int]) -> None:
        """Add a step: its time by phase, in ns, in the order of STEP_PHASES."""
        self._steps_ns.extend(phase_ns.values())

    def close_window(self, phase_ns: Mapping[str, int], num_steps: int, position: Position) -> None:
        """Send the time of a window of steps to rank 0; one collective. There, say what the window before it shows.

        Args:
            phase_ns: time by phase, in the order of STEP_PHASES.
            num_steps: of the window, the same on all ranks.
            position: at its end.

        Raises:
            RecordError: somebody is slow and that cannot be written down.
        """
        if self._comm.size == 1:
            return
        self._look()
        own_ns = np.fromiter(phase_ns.values(), dtype=np.int64, count=len(STEP_PHASES))
        self._under_way = self._comm.start_gather(own_ns), num_steps, position

    def _look(self) -> None:
        """Take in the window that is under way, if one is."""
        if self._under_way is None:
            return
        wait, num_steps, position = self._under_way
        self._under_way = None
        window_ns = wait()
        if window_ns is not None:
            assert self._watch is not None
            self._tell(self._watch.take(window_ns, num_steps, position))

    def _tell(self, notes: list[StragglerNote]) -> None:
        if not notes:
            return
        sys.stderr.write("".join(f"hpcai500 train: {note.describe()}\n" for note in notes))
        sys.stderr.flush()
        try:
            file = os.open(self._stragglers_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            with os.fdopen(file, "wb") as lines:
                lines.write(b"".join(msgspec.json.encode(note) + b"\n" for note in notes))
        except OSError as error:
            raise RecordError(
                f"cannot write {str(self._stragglers_path)!r} ({error.strerror}); free some space there and resume "
                "the run"
            ) from None

    def close_epoch(self, epoch: int) -> None:
        """Append the epoch's steps to the node's file, and say what its last window shows.

        Raises:
            RecordError: a file cannot be written.
        """
        self._look()
        if self._steps_ns:
            times_ns = np.array(self._steps_ns, dtype=np.int64).reshape(-1, len(STEP_PHASES))
            self._steps_ns = array.array("q")
            append_epoch(self._path, self._comm.rank, epoch, times_ns)
