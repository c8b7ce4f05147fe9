"""Remembers which chunks of a data file are done, so that a killed conversion goes on where it was.

A text file beside the incomplete data file, only ever appended to: a line for each attempt, then one for each finished
chunk. It is also the lock that keeps two conversions from writing the same file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcai500.errors import DataError

JOURNAL_VERSION = 1

ChunkKey = tuple[str, int]  # split and first sample


@dataclass
class Journal:
    """What is done: for each chunk how many pictures of each kind it has.

    Chunks recorded on another boot are doubtful: the machine may have lost what was not yet on its disk. While the boot
    lasts, everything written is in the page cache, even if the process that wrote it was killed.
    """

    path: Path
    descriptor: int
    done: dict[ChunkKey, dict[str, int]] = field(default_factory=dict)
    doubtful: set[ChunkKey] = field(default_factory=set)

    def is_certain(self, key: ChunkKey) -> bool:
        """Whether the chunk needs neither copying nor checking."""
        return key in self.done and key not in self.doubtful

    def resume(self, plan: str) -> bool:
        """Read what earlier attempts with the same ``plan`` did; False if there were none, or with another plan."""
        boot = ""
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]  # a killed attempt may have left part of a line
        os.ftruncate(self.descriptor, len(whole))
        for line in whole.splitlines():
            entry = json.loads(line)
            if "plan" in entry:
                boot = entry["boot"]
                if entry["plan"] != plan or entry["journal"] != JOURNAL_VERSION:
                    return False
                continue
            key = (entry["split"], entry["first"])
            self.done[key] = entry["formats"]
            if boot == boot_id():
                self.doubtful.discard(key)
            else:
                self.doubtful.add(key)
        return boot != ""

    def restart(self) -> None:
        """Forget all attempts."""
        os.ftruncate(self.descriptor, 0)
        self.done.clear()
        self.doubtful.clear()

    def begin(self, plan: str) -> None:
        """Record that an attempt begins."""
        self._append({"journal": JOURNAL_VERSION, "plan": plan, "boot": boot_id()})

    def record(self, key: ChunkKey, formats: dict[str, int]) -> None:
        """Record that a chunk is written."""
        self._append({"split": key[0], "first": key[1], "formats": formats})
        self.done[key] = formats

    def formats(self) -> dict[str, int]:
        """How many pictures of each kind all chunks have together."""
        total: Counter[str] = Counter()
        for counts in self.done.values():
            total.update(counts)
        return dict(sorted(total.items()))

    def _append(self, entry: dict[str, Any]) -> None:
        os.write(self.descriptor, json.dumps(entry).encode() + b"\n")


def boot_id() -> str:
    """Identifies this boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@contextlib.contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """Open the journal as the only process that has it open; raises DataError if another one has."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{str(path)!r} is in use: another process is writing this data file; wait for it"
            ) from None
        yield Journal(path, descriptor)
    finally:
        os.close(descriptor)
