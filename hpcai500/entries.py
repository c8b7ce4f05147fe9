"""The lines of one rank in a node's ledger, as the checks look at them: kept in memory, or read again at each look.

A run on thousands of ranks has millions of lines, each of which takes a kilobyte as objects. Of such a run only the
place of each line and the kind of its event are kept, nine bytes, and whoever looks at lines has them decoded anew.
"""

from __future__ import annotations

import functools
import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

from hpcai500.errors import RecordError
from hpcai500.events import EVENTS
from hpcai500.ledger_reader import Entry, decode_entry
from hpcai500.plain_files import open_plain

KINDS = {name: number for number, name in enumerate(EVENTS)}
NUM_NODES_AT_HAND = 4  # ledgers that are in memory at once; the checks go from node to node


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


class StoredLines:
    """Where the lines of a node's ledger lie in its file, which must not change from now on.

    Raises:
        RecordError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._state = path, _state_of(path)
        self._starts = array("I", [0])  # MAX_NODE_BYTES is far below its 4 GiB
        content = _read_file(path, self._state)
        end = content.find(b"\n")
        while end >= 0:
            self._starts.append(end + 1)
            end = content.find(b"\n", end + 1)

    def decode(self, numbers: Iterable[int]) -> list[Entry]:
        """The events of some lines, numbered from 1.

        Raises:
            RecordError: the file has changed since it was first read.
        """
        if _state_of(self._path) != self._state:
            raise RecordError(
                f"ledger {str(self._path)!r} has changed while it was read; verify a copy that nobody writes to"
            )
        content, starts = _read_file(self._path, self._state), self._starts
        return [decode_entry(content[starts[number - 1] : starts[number] - 1], number) for number in numbers]


class StoredEntries(Sequence[Entry]):
    """Entries of a rank that stay in the file; looking at one decodes its line.

    Args:
        lines: of the node's ledger.
    """

    is_kept = False

    def __init__(self, lines: StoredLines) -> None:
        self._lines = lines
        self._numbers = array("I")  # of lines, from 1
        self._kinds = bytearray()

    def append(self, entry: Entry) -> None:
        """Take in the place of one more."""
        self._numbers.append(entry.line)
        self._kinds.append(KINDS[entry.event])

    def __len__(self) -> int:
        return len(self._numbers)

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
            return self._lines.decode(self._numbers[index])
        return self._lines.decode([self._numbers[index]])[0]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self[:])

    def of(self, event: str) -> list[Entry]:
        """Those of one kind of event, in order."""
        return self._lines.decode(itertools.compress(self._numbers, map(KINDS[event].__eq__, self._kinds)))


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
def _read_file(path: Path, state: tuple[int, int, int]) -> bytes:
    """A ledger in a state; another state is another entry of the cache."""
    try:
        with open_plain(path) as file:
            return file.read()
    except OSError as error:
        raise RecordError(f"cannot read ledger {str(path)!r} ({error.strerror})") from None


Entries = KeptEntries | StoredEntries
