"""The ledger of a rank: an append-only event log in which every line carries the digest of the line before it.

A line is ``{"seq", "time_ns", "event", "value", "prev"}`` in JSON: ``prev`` is the sha256 of the previous line's bytes
without its newline (64 zeros for the first), ``time_ns`` is Unix time at opening plus monotonic time since, so that it
never steps back. A line is written by one ``write`` to a file opened for appending: a crash loses at most that line.

A run that is resumed writes a new file and goes on with the chain, so the line before its first one is the last whole
line of the file before. Only that line is looked at: a torn one, which a crash left behind, stays where it is.

The chain shows what was altered or lost by accident. It stops nobody who recomputes it; the checks of hpcai500/checks
look at what the events say.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, Union

import msgspec

from hpcai500.errors import RecordError
from hpcai500.events import EVENTS, Count, Event, UnixTime
from hpcai500.finding import Finding
from hpcai500.plain_files import open_plain

FIRST_PREV = "0" * 64
MAX_LINE_BYTES = 1 << 18  # a detector's evaluation of 4 classes takes 8 kB; a much longer line is hostile
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


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line as it stands in the file."""

    seq: Count
    time_ns: UnixTime
    event: str
    value: msgspec.Raw
    prev: str


class _WholeLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, tag_field="event"):
    """A line with the value of its event; for each event there is a subclass, so that a line is decoded in one go."""

    seq: Count
    time_ns: UnixTime
    prev: str
    value: Event


LINE = msgspec.json.Decoder(_Line)
WHOLE_LINE: msgspec.json.Decoder[_WholeLine] = msgspec.json.Decoder(
    Union[  # noqa: UP007, since the members are made here
        tuple(
            msgspec.defstruct(
                f"_{kind.__name__}Line", [("value", kind)], bases=(_WholeLine,), tag=name, kw_only=True, frozen=True
            )
            for name, kind in EVENTS.items()
        )
    ]
)


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A line as read: ``seq`` is its number in the chain from 0, ``line`` that in the file from 1.

    ``value`` is an object of hpcai500.events.
    """

    seq: int
    line: int
    time_ns: int
    event: str
    value: Event


class LedgerWriter:
    """Writes the ledger of one rank. Use as a context manager, or call ``close``. Any thread may write or close it."""

    def __init__(self, path: str | os.PathLike[str], head: ChainHead | None = None) -> None:
        """Create the file and its folder.

        Args:
            path: of the new file.
            head: the end of the chain that it goes on with; a new chain by default.

        Raises:
            RecordError: the file exists, or cannot be created.
        """
        self.path = Path(path)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, flags, 0o644)
        except OSError as error:
            if self.path.exists():
                message = f"ledger {str(self.path)!r} exists and is never overwritten; use another run folder"
            else:
                message = (
                    f"cannot create ledger {str(self.path)!r} ({error.strerror}); name a folder that can be written"
                )
            raise RecordError(message) from None
        self.wall_ns = time.time_ns()
        """Unix time at opening; what run_open reports."""
        self.monotonic_ns = time.monotonic_ns()
        """Monotonic time at opening; what run_open reports."""
        self._head = head or ChainHead()
        self._num_bytes = 0
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
            line = msgspec.json.encode(_Line(self._head.seq, time_ns, event, content, self._head.sha256))
            self._append(line + b"\n", sync=event in SYNCED)
            self._head.advance(line)
        return time_ns

    def _append(self, line: bytes, *, sync: bool) -> None:
        """Write one line whole or not at all."""
        try:
            num_written = os.write(self._file, line)
            while num_written < len(
                line
            ):  # a short write: the disk is full, or a signal came; the next call says which
                num_written += os.write(self._file, line[num_written:])
            if sync:
                os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._num_bytes)  # drop the part of this line that was written
            message = (
                f"cannot write ledger {str(self.path)!r} ({error.strerror}); what stands in it is safe, so free some "
                "space there and resume the run"
            )
            raise RecordError(message) from None
        self._num_bytes += len(line)

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


def read_ledger(path: str | os.PathLike[str]) -> Iterator[Entry]:
    """Yield the events of a ledger.

    Raises:
        RecordError: the file cannot be read, or a line is not a ledger's line; names the line.
    """
    for item in scan_ledger(path):
        if isinstance(item, Entry):
            yield item
        elif item.rule != "ledger.chain":
            raise RecordError(str(item))


def check_chain(path: str | os.PathLike[str]) -> list[Finding]:
    """All that is wrong with the form of a ledger; empty if nothing is.

    Rules: ``ledger.torn`` (a crash cut the last line), ``ledger.line`` (not a line of a ledger), ``ledger.event``
    (unknown event), ``ledger.value`` (an event does not carry what it should), ``ledger.chain`` (a line was altered,
    lost, added or moved), ``ledger.empty``.

    Raises:
        RecordError: the file cannot be read.
    """
    return [item for item in scan_ledger(path) if isinstance(item, Finding)]


def scan_ledger(
    path: str | os.PathLike[str], *, place: str | None = None, head: ChainHead | None = None
) -> Iterator[Entry | Finding]:
    """Yield every event that can be read and, where it is met, every finding about the form (see ``check_chain``).

    Memory does not grow with the file.

    Args:
        path: the ledger.
        place: how findings name it; its path by default.
        head: the end of the chain that it goes on with, a new chain by default; is moved to the end of this file.

    Raises:
        RecordError: the file cannot be read.
    """
    file_name = str(path) if place is None else place
    head = head or ChainHead()
    number = 0
    for number, raw in enumerate(_read_lines(Path(path)), start=1):
        if not raw.endswith(b"\n"):
            yield _cut_line(raw, f"{file_name}:{number}")
            return
        line = raw[:-1]
        try:
            parsed = WHOLE_LINE.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            yield from _damaged_line(line, head, f"{file_name}:{number}")
        else:
            if parsed.seq != head.seq or parsed.prev != head.sha256:
                yield from _check_link(parsed, head, f"{file_name}:{number}")
            head.time_ns = parsed.time_ns
            yield Entry(parsed.seq, number, parsed.time_ns, parsed.value.EVENT, parsed.value)
        head.advance(line)
    if not number:
        yield Finding(rule="ledger.empty", place=file_name, expected="at least one event", found="an empty file")


def _cut_line(raw: bytes, place: str) -> Finding:
    """What is wrong with a line that does not end."""
    if len(raw) < MAX_LINE_BYTES:
        expected = "a line that ends (the last one may be cut by a crash)"
        return Finding(rule="ledger.torn", place=place, expected=expected, found=f"{len(raw)} bytes, no end")
    expected = f"lines under {MAX_LINE_BYTES} bytes"
    return Finding(rule="ledger.line", place=place, expected=expected, found="a longer one")


def _damaged_line(content: bytes, head: ChainHead, place: str) -> Iterator[Finding]:
    """What is wrong with a line that is not one of an event with all that it carries."""
    try:
        line = LINE.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        yield Finding(rule="ledger.line", place=place, expected="a line of a ledger", found=str(error))
        return
    yield from _check_link(line, head, place)
    head.time_ns = line.time_ns
    if line.event not in EVENTS:
        expected = f"one of {', '.join(EVENTS)}"
        yield Finding(rule="ledger.event", place=place, expected=expected, found=repr(line.event)[:100])
        return
    try:
        msgspec.json.decode(line.value, type=EVENTS[line.event])
        problem = "a line in which the event does not stand alone"
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        problem = str(error)
    yield Finding(rule="ledger.value", place=place, expected=f"what event {line.event} carries", found=problem)


def _check_link(line: _Line | _WholeLine, head: ChainHead, place: str) -> Iterator[Finding]:
    if line.seq != head.seq:
        yield Finding(rule="ledger.chain", place=place, expected=f"seq {head.seq}", found=f"seq {line.seq}")
    if line.prev != head.sha256:
        yield Finding(rule="ledger.chain", place=place, expected=f"prev {head.sha256}", found=f"prev {line.prev[:100]}")


def read_head(path: str | os.PathLike[str]) -> ChainHead | None:
    """The end of the chain in a ledger, without reading all of it; None if it has no whole line.

    Raises:
        RecordError: the file cannot be read, or its last whole line is not one of a ledger.
    """
    try:
        with Path(path).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2 * MAX_LINE_BYTES))
            lines = file.read().split(b"\n")[:-1]  # what follows the last newline was cut by a crash
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordError(f"cannot read ledger {str(path)!r} ({error.strerror})") from None
    if not lines:
        return None
    try:
        line = msgspec.json.decode(lines[-1], type=_Line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(
            f"the last line of ledger {str(path)!r} is damaged, so its chain cannot be gone on with; make a new run"
        ) from error
    head = ChainHead(seq=line.seq, time_ns=line.time_ns)
    head.advance(lines[-1])
    return head


def _read_lines(path: Path) -> Iterator[bytes]:
    """Yield lines with their newline; one that does not end, or is too long, comes last and without."""
    try:
        with open_plain(path) as file:
            while raw := file.readline(MAX_LINE_BYTES):
                yield raw
    except OSError as error:
        raise RecordError(f"cannot read ledger {str(path)!r} ({error.strerror})") from None
