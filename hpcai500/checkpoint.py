"""Saves the state of a run so that a crash at any moment leaves a whole checkpoint, and finds the newest good one.

A checkpoint is written aside, synced and renamed; the ledger carries its sha256, and only a file with that digest is
ever loaded. It holds what all ranks share (weights, optimizer, loss scale) once, and what each rank has of its own
(normalisation statistics of its batches, the state of its random generators) for every rank.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpcai500.durable import sync_path
from hpcai500.errors import RecordError
from hpcai500.events import Checkpoint
from hpcai500.record import Position

NUM_KEPT = 2  # the newest may be damaged by the very fault that ended the run, so the one before it stays

State = dict[str, Any]


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: where they lie, made when the first one is saved.
        every_s: one is due so many seconds after the last; 0 means only when the run is asked to stop.
        segment: of the run; names its files, so that none of an earlier segment is ever overwritten.
    """

    def __init__(self, folder: Path, *, every_s: float, segment: int = 0) -> None:
        self.folder, self.every_s, self.segment = folder, every_s, segment
        self._last_s = time.monotonic()

    def is_due(self) -> bool:
        return 0 < self.every_s <= time.monotonic() - self._last_s

    def save(self, position: Position, state: State) -> dict[str, str]:
        """Save a checkpoint and remove all but the last two.

        Returns:
            Its file's name ("path") and "sha256", as the ledger's checkpoint event has them.

        Raises:
            RecordError: it cannot be written; the checkpoints before it are untouched.
        """
        path = self.folder / f"epoch-{position.epoch:04d}-step-{position.step:06d}-segment-{self.segment:03d}.pt"
        partial = path.with_suffix(".partial")
        try:
            self.folder.mkdir(exist_ok=True)
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            digest = _sha256(partial)
            partial.replace(path)
            sync_path(self.folder)  # else a power failure could leave the ledger ahead of the folder
        except (OSError, RuntimeError) as error:  # torch reports a full disk as one or the other
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise RecordError(
                f"checkpoint {str(path)!r} cannot be written; free some space there and resume the run"
            ) from error
        for old in sorted(self.folder.glob("epoch-*.pt"))[:-NUM_KEPT]:
            old.unlink()
        self._last_s = time.monotonic()
        return {"path": path.name, "sha256": digest}


@dataclass(frozen=True)
class FoundCheckpoint:
    """Where a run can go on.

    Attributes:
        position: how far the run was.
        path, sha256: as the ledger has them; both empty if there is no good checkpoint and the run begins again.
        damaged: files that the ledger names and that are not as it says; newest first.
    """

    position: Position
    path: str
    sha256: str
    damaged: list[str]


def find_checkpoint(folder: Path, saved: Sequence[Checkpoint]) -> FoundCheckpoint:
    """The newest checkpoint that is what the ledger says; damaged ones are renamed to ``*.damaged``.

    Args:
        folder: where checkpoints lie.
        saved: the run's checkpoint events that count, in their order.
    """
    damaged: list[str] = []
    for event in reversed(saved):
        path = folder / event.path
        if not path.is_file():
            continue  # an old one, removed
        if _sha256(path) == event.sha256:
            return FoundCheckpoint(Position(event.epoch, event.step), event.path, event.sha256, damaged)
        damaged.append(event.path)
        path.rename(path.with_suffix(".damaged"))  # so that it takes no good one's place among the last two
    return FoundCheckpoint(Position(0, 0), "", "", damaged)


def load_checkpoint(path: Path, *, sha256: str | None = None) -> State:
    """Load a checkpoint's state into host memory.

    Args:
        path: the checkpoint.
        sha256: what the ledger says of it; None where another rank has looked at that.

    Raises:
        RecordError: it is missing, cannot be read, or is not the file that the ledger names.
    """
    if not path.is_file():
        raise RecordError(f"no checkpoint at {str(path)!r}; the ledger's checkpoint events name those that were saved")
    if sha256 is not None and (found := _sha256(path)) != sha256:
        raise RecordError(
            f"checkpoint {str(path)!r} is damaged: its sha256 is {found} and the ledger says {sha256}; "
            "use the one before it"
        )
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RecordError(f"checkpoint {str(path)!r} cannot be loaded; use the one before it") from error
    return state


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
