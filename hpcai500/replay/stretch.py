"""Which steps of a run are replayed: a stretch of one epoch from a checkpoint, or from the run's beginning.

A checkpoint counts if its file still lies in the run's folder; the ledgers say what it must be. The newest with enough
steps after it is taken. A stretch never goes beyond its epoch, so that no evaluation has to be replayed, nor beyond its
segment, and it ends where a window of all ranks ends, since the ledgers tell no loss of a single step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from hpcai500.checks.form import is_inside
from hpcai500.errors import ReplayError
from hpcai500.events import Checkpoint, Window
from hpcai500.record import Position, RankLedger, RunRecord, Segment

Origin = Literal["checkpoint", "beginning"]


@dataclass(frozen=True)
class Stretch:
    """Some consecutive steps of one epoch, as a run recorded them.

    Attributes:
        run: the run.
        place: how findings name its folder.
        start: where the steps begin.
        num_steps: how many they are.
        segment: in which they were trained; its ranks are those of the replay.
        checkpoint: from which they go on; None at the beginning.
    """

    run: RunRecord
    place: str
    start: Position
    num_steps: int
    segment: Segment
    checkpoint: Checkpoint | None = None

    @property
    def end(self) -> int:
        """The first step of the epoch that is not replayed."""
        return self.start.step + self.num_steps

    def windows(self, ledger: RankLedger) -> list[Window]:
        """The windows of a rank that lie in it."""
        return [
            window for window in windows_from(ledger, self.start) if window.first_step + window.num_steps <= self.end
        ]

    def describe(self) -> str:
        """What is replayed, in words."""
        where = f"steps {self.start.step} to {self.end} of epoch {self.start.epoch}"
        return f"{where} of {self.place} on {self.segment.num_ranks} ranks from {self.origin}"

    @property
    def origin(self) -> str:
        """Where the steps begin, in words."""
        return f"checkpoint {self.checkpoint.path}" if self.checkpoint else "the beginning"


def windows_from(ledger: RankLedger, start: Position) -> list[Window]:
    """The windows of a rank that count, from a position to the end of its epoch."""
    windows = ledger.values(Window)
    return [window for window in windows if window.epoch == start.epoch and window.first_step >= start.step]


def choose_stretch(run: RunRecord, place: str, *, num_steps: int, origin: Origin | None) -> Stretch:
    """Choose what is replayed.

    Args:
        run: of a submission that is valid.
        place: how findings name its folder.
        num_steps: at least so many, if the epoch has them.
        origin: only from there; by default a checkpoint, and the beginning where none is at hand.

    Raises:
        ReplayError: the run has no such steps; says what is missing.
    """
    stretches = list(_from_checkpoints(run, place, num_steps)) if origin != "beginning" else []
    enough = [stretch for stretch in stretches if stretch.num_steps >= num_steps]
    if stretches:
        return (enough or sorted(stretches, key=lambda stretch: -stretch.num_steps))[0]
    if origin == "checkpoint":
        raise ReplayError(
            f"{place} has no checkpoint to begin at: none that its ledgers name and steps follow lies in "
            f"{str(run.folder / 'checkpoints')!r}; put it there, or use --replay-from beginning"
        )
    stretch = _stretch_from(run, place, Position(0, 0), num_steps)
    if stretch is None:
        raise ReplayError(f"{place} has no windows from its beginning that all ranks share; take another --replay-run")
    return stretch


def _from_checkpoints(run: RunRecord, place: str, num_steps: int) -> Iterator[Stretch]:
    """Stretches from all checkpoints that are at hand, the newest first."""
    saved = [event for root in run.roots for event in root.values(Checkpoint)]
    for event in reversed(saved):
        if checkpoint_file(run, event).exists():
            stretch = _stretch_from(run, place, Position(event.epoch, event.step), num_steps, event)
            if stretch is not None:
                yield stretch


def checkpoint_file(run: RunRecord, event: Checkpoint) -> Path:
    """Where a checkpoint lies, if it does; its name is a stranger's.

    Raises:
        ReplayError: the name leads out of the run's folder.
    """
    relative = f"checkpoints/{event.path}"
    if PurePosixPath(event.path).name != event.path or not is_inside(run.folder, relative):
        raise ReplayError(f"checkpoint {event.path[:100]!r} is no file in the run's own folder; it is not read")
    return run.folder / relative


def _stretch_from(
    run: RunRecord, place: str, start: Position, num_steps: int, checkpoint: Checkpoint | None = None
) -> Stretch | None:
    """The stretch that begins at a position; None if no windows of all ranks do."""
    for segment in run.segments:
        windows = [windows_from(ledger, start) for ledger in segment.ledgers]
        if not all(some and some[0].first_step == start.step for some in windows):
            continue
        ends = set.intersection(*({window.first_step + window.num_steps for window in some} for some in windows))
        if ends:
            end = min((end for end in ends if end - start.step >= num_steps), default=max(ends))
            return Stretch(run, place, start, end - start.step, segment, checkpoint)
    return None
