"""The lines of one rank in a node's ledger, as the checks look at them: kept in memory, or read again at each look.

A run on thousands of ranks has millions of lines, each of which takes a kilobyte as objects. Of such a run only the
place of each line and the kind of its event are kept, five bytes, and whoever looks at lines has them decoded anew.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from hpcai500.errors import RecordError
from hpcai500.events import EVENTS
from hpcai500.ledger_reader import Entry, decode_entry, read_whole_lines

KINDS = {name: number for number, name in enumerate(EVENTS)}
NUM_NODES_AT_HAND = 4  # ledgers whose lines are in memory at once; the checks go from node to node


class KeptEntries(list[Entry]):
    """Entries that are kept in memory."""

    is_kept = True

    @functools.cached_property
    def _by_event(self) -> dict[str, list[Entry]]:
        table: dict[str, list[Entry]] = {}
        for entry in self:
            table.setdefault(entry.event, []).append(entry)
        return table

    def of(self, event: str) -> list[Entry]:
        """Those of one kind of event, in order."""
        return self._by_event.get(event, [])


class StoredEntries(Sequence[Entry]):
    """Entries of a rank that stay in the file; looking at one decodes its line.

    Args:
        path: the node's ledger, which must not change meanwhile.
    """

    is_kept = False

    def __init__(self, path: Path) -> None:
        self._path, self._state = path, _state_of(path)
        self._lines = array("I")  # numbers of lines, from 1
        self._kinds = bytearray()

    def append(self, entry: Entry) -> None:
        """Take in the place of one more."""
        self._lines.append(entry.line)
        self._kinds.append(KINDS[entry.event])

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        """Decode one, or some.

        Raises:
            RecordError: the file has changed since it was first read.
        """
        if isinstance(index, slice):
            return self._decode(self._lines[index])
        return self._decode([self._lines[index]])[0]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._decode(self._lines))

    def of(self, event: str) -> list[Entry]:
        """Those of one kind of event, in order."""
        kind = KINDS[event]
        return self._decode([line for line, one in zip(self._lines, self._kinds, strict=True) if one == kind])

    def _decode(self, numbers: Sequence[int]) -> list[Entry]:
        if _state_of(self._path) != self._state:
            raise RecordError(
                f"ledger {str(self._path)!r} has changed while it was read; verify a copy that nobody writes to"
            )
        lines = _read_node(self._path, self._state)
        return [decode_entry(lines[number - 1], number) for number in numbers]


def _state_of(path: Path) -> tuple[int, int, int]:
    """What differs once a file has been written to or replaced.

    Raises:
        RecordError: it is not there any more.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise RecordError(f"cannot read ledger {str(path)!r} ({error.strerror})") from None
    return found.st_ino, found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=NUM_NODES_AT_HAND)
def _read_node(path: Path, state: tuple[int, int, int]) -> list[bytes]:
    """The lines of a ledger in a state; another state is another entry of the cache."""
    return read_whole_lines(path)


Entries = KeptEntries | StoredEntries
