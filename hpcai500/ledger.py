"""The ledger of a node: an append-only event log of its ranks, in which each rank's lines form a chain of digests.

A line is ``{"rank", "seq", "time_ns", "event", "value", "prev"}`` in JSON: ``prev`` is the sha256 of the bytes of the
same rank's line before, without its newline (64 zeros for the first), ``time_ns`` is Unix time at opening plus
monotonic time since, so that it never steps back.

All ranks of a node append to one file: a file for each of many thousand ranks would be a burden to any parallel file
system. A line is written by one ``write`` to a file opened for appending, and the ranks that share it run under one
kernel, which puts such writes one behind the other. So no rank waits for another, and one that crashes loses at most
the line it was writing. What is left of that line stays where it is; the next rank's line begins right behind it.

A run that is resumed writes new files and goes on with the chain of each rank, so the line before its first one is the
rank's last whole line in the files before, whichever node that was.

The chain shows what was altered or lost by accident. It stops nobody who recomputes it; the checks of hpcai500/checks
look at what the events say.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from hpcai500.durable import write_all
from hpcai500.errors import RecordError
from hpcai500.events import EVENTS, Count, Event, UnixTime

FIRST_PREV = "0" * 64
SYNCED = frozenset({"run_open", "clock_start", "evaluation", "checkpoint", "clock_stop", "run_close"})


@dataclass
class ChainHead:
    """The end of a chain: what the next line must carry.

    Attributes:
        seq: number of the next line.
        sha256: digest of the last whole line.
        time_ns: of that line; 0 before the first.
    """

    seq: int = 0
    sha256: str = FIRST_PREV
    time_ns: int = 0

    def advance(self, line: bytes) -> None:
        """Take in a line, given without its newline."""
        self.seq += 1
        self.sha256 = hashlib.sha256(line).hexdigest()


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line as it stands in the file."""

    rank: Count
    seq: Count
    time_ns: UnixTime
    event: str
    value: msgspec.Raw
    prev: str


def create_ledger(path: str | os.PathLike[str]) -> None:
    """Make the empty ledger of a node, and its folder; one rank of the node does so before any of them opens it.

    Raises:
        RecordError: the file exists, or cannot be created.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    except OSError as error:
        if Path(path).exists():
            message = f"ledger {str(path)!r} exists and is never overwritten; use another run folder"
        else:
            message = f"cannot create ledger {str(path)!r} ({error.strerror}); name a folder that can be written"
        raise RecordError(message) from None


class LedgerWriter:
    """Writes the lines of one rank. Use as a context manager, or call ``close``. Any thread may write or close it."""

    def __init__(self, path: str | os.PathLike[str], rank: int, head: ChainHead | None = None) -> None:
        """Open the ledger of the rank's node.

        Args:
            path: of the file, made by ``create_ledger``.
            rank: whose lines are written.
            head: the end of the chain that they go on with; a new chain by default.

        Raises:
            RecordError: the file cannot be opened.
        """
        self.path, self.rank = Path(path), rank
        try:
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise RecordError(
                f"cannot open ledger {str(self.path)!r} ({error.strerror}), which the first rank of the node has "
                "made; is the run's folder the same on all ranks of the node?"
            ) from None
        self.wall_ns = time.time_ns()
        """Unix time at opening; what run_open reports."""
        self.monotonic_ns = time.monotonic_ns()
        """Monotonic time at opening; what run_open reports."""
        self._head = head or ChainHead()
        self._is_closed = False
        self._lock = threading.RLock()  # the thread that notices a lost rank closes the ledger of a rank that waits

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, event: str, value: Event | Mapping[str, object]) -> int:
        """Append one event and return its ``time_ns``.

        Raises:
            RecordError: a number is not finite, the disk is full, or the file cannot be written; what was written
                before stays whole.
        """
        assert event in EVENTS, f"{event} is not an event of hpcai500.events"
        fields = msgspec.to_builtins(value)
        for name, number in fields.items():
            if isinstance(number, float) and not math.isfinite(number):
                message = f"{name} of event {event} is {number!r}, and a ledger takes finite numbers only"
                raise RecordError(f"{message}; close the run as failed instead")
        content = msgspec.Raw(msgspec.json.encode(msgspec.convert(fields, EVENTS[event])))
        with self._lock:
            assert not self._is_closed, "the ledger is closed"
            time_ns = self.wall_ns + time.monotonic_ns() - self.monotonic_ns
            line = msgspec.json.encode(Line(self.rank, self._head.seq, time_ns, event, content, self._head.sha256))
            self._append(line + b"\n", sync=event in SYNCED)
            self._head.advance(line)
        return time_ns

    def _append(self, line: bytes, *, sync: bool) -> None:
        """Write one line; what a full disk took of it stays behind, since other ranks may have written after it."""
        try:
            write_all(self._file, line)
            if sync:
                os.fsync(self._file)
        except OSError as error:
            message = (
                f"cannot write ledger {str(self.path)!r} ({error.strerror}); what stands in it is safe, so free some "
                "space there and resume the run"
            )
            raise RecordError(message) from None

    def close(self, status: str | None = None, reason: str = "") -> None:
        """Bring the file to the disk and close it; a second call does nothing.

        Args:
            status: "completed", "failed" or "interrupted": what became of the run, written as the event run_close. None
                leaves the ledger without its last event, as a killed rank would.
            reason: why, in a sentence.

        Raises:
            RecordError: the disk refuses.
        """
        with self._lock:
            if self._is_closed:
                return
            try:
                if status is not None:
                    self.write("run_close", {"status": status, "reason": reason, "wall_ns": time.time_ns()})
                os.fsync(self._file)
            except OSError as error:
                raise RecordError(f"cannot bring ledger {str(self.path)!r} to the disk ({error.strerror})") from None
            finally:
                self._is_closed = True
                os.close(self._file)
