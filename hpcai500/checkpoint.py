"""Saves model and optimizer so that a crash at any moment leaves a whole checkpoint: write aside, sync, rename."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hpcai500.errors import RecordError

NUM_KEPT = 2  # the newest may be damaged by the very fault that ended the run, so the one before it stays


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: where they lie, made when the first one is saved.
        every_epochs: a checkpoint is due after every so many epochs; 0 means never.
    """

    def __init__(self, folder: Path, *, every_epochs: int) -> None:
        self.folder, self.every_epochs = folder, every_epochs

    def is_due(self, completed_epochs: int) -> bool:
        return self.every_epochs > 0 and completed_epochs % self.every_epochs == 0

    def save(self, completed_epochs: int, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        """Save a checkpoint and remove all but the last two.

        Returns:
            The value of the ledger's checkpoint event: epoch, file name, sha256, duration_ns.

        Raises:
            RecordError: it cannot be written; the checkpoints before it are untouched.
        """
        begin_ns = time.perf_counter_ns()
        path = self.folder / f"epoch-{completed_epochs:04d}.pt"
        partial = path.with_suffix(".partial")
        try:
            self.folder.mkdir(exist_ok=True)
            with partial.open("wb") as file:
                state = {"epoch": completed_epochs, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            digest = _sha256(partial)
            partial.replace(path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as one or the other
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise RecordError(f"checkpoint {str(path)!r} cannot be written; free some space and start again") from error
        for old in sorted(self.folder.glob("epoch-*.pt"))[:-NUM_KEPT]:
            old.unlink()
        duration_ns = time.perf_counter_ns() - begin_ns
        return {"epoch": completed_epochs, "path": path.name, "sha256": digest, "duration_ns": duration_ns}


def load_checkpoint(path: Path, *, sha256: str, model: nn.Module, optimizer: Optimizer | None = None) -> int:
    """Load a checkpoint into a model and its optimizer.

    Args:
        path: the checkpoint.
        sha256: what the ledger says of it.
        model: takes the parameters and buffers.
        optimizer: takes the optimizer's state, if given.

    Returns:
        The number of epochs it has behind it.

    Raises:
        RecordError: it is missing, or is not the file that the ledger names.
    """
    if not path.is_file():
        raise RecordError(f"no checkpoint at {str(path)!r}; the ledger's checkpoint events name those that were saved")
    found = _sha256(path)
    if found != sha256:
        raise RecordError(
            f"checkpoint {str(path)!r} is damaged: its sha256 is {found} and the ledger says {sha256}; "
            "use the one before it"
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])
    return int(state["epoch"])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
