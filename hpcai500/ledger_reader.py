"""Reads the ledgers of nodes: their events, and all that is wrong with their form.

The files may be a stranger's: whatever stands in them becomes a finding, and memory does not grow with them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Union

import msgspec

from hpcai500.errors import RecordError
from hpcai500.events import EVENTS, Count, Event, UnixTime
from hpcai500.finding import Finding
from hpcai500.ledger import ChainHead, Line
from hpcai500.plain_files import open_plain

MAX_LINE_BYTES = 1 << 18  # a detector's evaluation of 4 classes takes 8 kB; a much longer line is hostile
LINE_START = b'{"rank":'  # stands in no line but at its beginning: within text JSON escapes the quotes
RANK = re.compile(rb'\{"rank":([0-9]{1,18}),')


class _WholeLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, tag_field="event"):
    """A line with the value of its event; for each event there is a subclass, so that a line is decoded in one go."""

    rank: Count
    seq: Count
    time_ns: UnixTime
    prev: str
    value: Event


LINE = msgspec.json.Decoder(Line)
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
    """A line as read: ``seq`` is its number in its rank's chain from 0, ``line`` that in the file from 1.

    ``value`` is an object of hpcai500.events.
    """

    rank: int
    seq: int
    line: int
    time_ns: int
    event: str
    value: Event


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

    Rules: ``ledger.torn`` (a crash or a full disk cut a line), ``ledger.line`` (not a line of a ledger),
    ``ledger.event`` (unknown event), ``ledger.value`` (an event does not carry what it should), ``ledger.chain`` (a
    line was altered, lost, added or moved), ``ledger.empty``.

    Raises:
        RecordError: the file cannot be read.
    """
    return [item for item in scan_ledger(path) if isinstance(item, Finding)]


def scan_ledger(
    path: str | os.PathLike[str], *, place: str | None = None, heads: dict[int, ChainHead] | None = None
) -> Iterator[Entry | Finding]:
    """Yield every event that can be read and, where it is met, every finding about the form (see ``check_chain``).

    Memory does not grow with the file.

    Args:
        path: the ledger.
        place: how findings name it; its path by default.
        heads: by rank the end of the chain that it goes on with, where it does; they are moved to the end of this file.

    Raises:
        RecordError: the file cannot be read.
    """
    file_name = str(path) if place is None else place
    heads = {} if heads is None else heads
    number = 0
    for number, raw in enumerate(_read_lines(Path(path)), start=1):
        if not raw.endswith(b"\n"):
            yield _cut_line(raw, f"{file_name}:{number}")
            return
        line = raw[:-1]
        try:
            parsed = WHOLE_LINE.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            yield from _scan_damaged(line, heads, f"{file_name}:{number}", number)
            continue
        head = heads.get(parsed.rank)
        if head is None:
            head = heads[parsed.rank] = ChainHead()
        if parsed.seq != head.seq or parsed.prev != head.sha256:
            yield from _check_link(parsed, head, f"{file_name}:{number}")
        yield _take(parsed, line, number, head)
    if not number:
        yield Finding(rule="ledger.empty", place=file_name, expected="at least one event", found="an empty file")


def _take(parsed: _WholeLine, line: bytes, number: int, head: ChainHead) -> Entry:
    head.time_ns = parsed.time_ns
    head.advance(line)
    return Entry(parsed.rank, parsed.seq, number, parsed.time_ns, parsed.value.EVENT, parsed.value)


def _scan_damaged(line: bytes, heads: dict[int, ChainHead], place: str, number: int) -> Iterator[Entry | Finding]:
    """What a line that is none of an event tells all the same; behind one that was cut another rank's may stand."""
    at = line.rfind(LINE_START)
    if at > 0:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            parsed = WHOLE_LINE.decode(line[at:])
            yield _cut_line(line[:at], place)
            head = heads.setdefault(parsed.rank, ChainHead())
            yield from _check_link(parsed, head, place)
            yield _take(parsed, line[at:], number, head)
            return
    yield from _damaged_line(line, heads, place)


def _cut_line(raw: bytes, place: str) -> Finding:
    """What is wrong with a line that does not end."""
    if len(raw) < MAX_LINE_BYTES:
        expected = "a line that ends (the last one may be cut by a crash)"
        return Finding(rule="ledger.torn", place=place, expected=expected, found=f"{len(raw)} bytes, no end")
    expected = f"lines under {MAX_LINE_BYTES} bytes"
    return Finding(rule="ledger.line", place=place, expected=expected, found="a longer one")


def _damaged_line(content: bytes, heads: dict[int, ChainHead], place: str) -> Iterator[Finding]:
    """What is wrong with a line that is not one of an event with all that it carries."""
    try:
        line = LINE.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        yield Finding(rule="ledger.line", place=place, expected="a line of a ledger", found=str(error))
        if rank := RANK.match(content):
            heads.setdefault(int(rank.group(1)), ChainHead()).advance(content)
        return
    head = heads.setdefault(line.rank, ChainHead())
    yield from _check_link(line, head, place)
    head.time_ns = line.time_ns
    head.advance(content)
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


def _check_link(line: Line | _WholeLine, head: ChainHead, place: str) -> Iterator[Finding]:
    if line.seq != head.seq:
        yield Finding(rule="ledger.chain", place=place, expected=f"seq {head.seq}", found=f"seq {line.seq}")
    if line.prev != head.sha256:
        yield Finding(rule="ledger.chain", place=place, expected=f"prev {head.sha256}", found=f"prev {line.prev[:100]}")


def decode_entry(line: bytes, number: int) -> Entry:
    """The event of a line that ``scan_ledger`` has once found to have one.

    Raises:
        RecordError: it has none.
    """
    try:
        parsed = WHOLE_LINE.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        try:  # behind one that was cut
            parsed = WHOLE_LINE.decode(line[max(0, line.rfind(LINE_START)) :])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RecordError(f"line {number} is not one of a ledger") from error
    return Entry(parsed.rank, parsed.seq, number, parsed.time_ns, parsed.value.EVENT, parsed.value)


def read_heads(path: str | os.PathLike[str]) -> dict[int, ChainHead]:
    """By rank the end of its chain in a ledger; a rank without a whole line is not there.

    Raises:
        RecordError: the file cannot be read, or a rank's last whole line is not one of a ledger.
    """
    last: dict[int, bytes] = {}
    for raw in _read_lines(Path(path)):
        if raw.endswith(b"\n"):
            line = raw[max(0, raw.rfind(LINE_START)) : -1]
            if start := RANK.match(line):
                last[int(start.group(1))] = line
    heads = {}
    for rank, line in last.items():
        try:
            parsed = LINE.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RecordError(
                f"the last line of rank {rank} in ledger {str(path)!r} is damaged, so its chain cannot be gone on "
                "with; make a new run"
            ) from error
        heads[rank] = ChainHead(seq=parsed.seq, time_ns=parsed.time_ns)
        heads[rank].advance(line)
    return heads


def _read_lines(path: Path) -> Iterator[bytes]:
    """Yield lines with their newline; one that does not end, or is too long, comes last and without."""
    try:
        with open_plain(path) as file:
            while raw := file.readline(MAX_LINE_BYTES):
                yield raw
    except OSError as error:
        raise RecordError(f"cannot read ledger {str(path)!r} ({error.strerror})") from None
