"""At what rate a node reads a data file, cold: what the page cache holds of it is dropped first, where one may."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcai500.errors import DataError

PIECE_BYTES = 4 * 2**20
NUM_THREADS = 4  # as staging reads
HEAD_BYTES = 2**16


@dataclass(frozen=True)
class ReadSize:
    """How much is read: at most num_bytes, for at most budget_s."""

    num_bytes: int
    budget_s: float


QUICK = ReadSize(64 * 2**20, 0.5)
LONG = ReadSize(2 * 2**30, 10.0)


def read_file(path: Path, size: ReadSize, *, place: int) -> dict[str, Any]:
    """Read a part of the file.

    Args:
        path: the file.
        size: how much.
        place: number of this node; each begins elsewhere, so that a server cannot answer all from one read.

    Returns:
        path, file_bytes, head_sha256 (of its first 64 KiB), read_bytes, seconds, bytes_per_s.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not hold us
    except OSError as error:
        raise DataError(f"cannot open {str(path)!r}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            raise DataError(f"{str(path)!r} is not a file with data in it")
        wanted = min(size.num_bytes, status.st_size)
        first = place * wanted % (status.st_size - wanted + 1)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        begin_s = time.perf_counter()
        read_bytes = _read_parallel(descriptor, first, wanted, begin_s + size.budget_s)
        seconds = time.perf_counter() - begin_s
        head = os.pread(descriptor, HEAD_BYTES, 0)
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}") from error
    finally:
        os.close(descriptor)
    return {
        "path": str(path),
        "file_bytes": status.st_size,
        "head_sha256": hashlib.sha256(head).hexdigest(),
        "read_bytes": read_bytes,
        "seconds": seconds,
        "bytes_per_s": read_bytes / seconds,
    }


def _read_parallel(descriptor: int, first: int, num_bytes: int, end_s: float) -> int:
    """Read so many bytes from the first on with several threads, until the time is over; returns how many."""
    positions = iter(range(first, first + num_bytes, PIECE_BYTES))
    lock = threading.Lock()
    counts: list[int] = []
    errors: list[OSError] = []

    def serve() -> None:
        buffer = memoryview(bytearray(PIECE_BYTES))
        while not errors:
            with lock:
                position = next(positions, None)
            if position is None:
                return
            try:
                counts.append(os.preadv(descriptor, [buffer[: first + num_bytes - position]], position))
            except OSError as error:
                errors.append(error)
            if time.perf_counter() > end_s:
                return

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(counts)
