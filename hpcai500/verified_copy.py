"""Copies a file in blocks and believes the copy only after it has been read back.

Per block of 64 MiB, the sha256 of the bytes as they came from the source must equal that of the bytes as the local disk
gives them back, with the page cache dropped where the file system lets us. Reading, writing and hashing are done
outside Python's lock, so importing torch is not held up.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcai500.errors import DataError

BLOCK_BYTES = 64 * 2**20
PIECE_BYTES = 4 * 2**20  # of one read and write: large enough for network file systems, small enough for many threads
NUM_THREADS = 4  # parallel file systems give one reader a fraction of what a node can have; sha256 does 1.7 GB/s a core
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class StagingError(Exception):
    """A copy cannot be had on this node; the original is still there to be read."""


class Source:
    """The file to copy, open; knows when it has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self.readable():
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.status = os.fstat(self.descriptor)
        self.num_bytes = self.status.st_size

    @contextmanager
    def readable(self) -> Iterator[None]:
        """Turn a failure to read into the error that says so, lest it pass for one of the local disk."""
        try:
            yield
        except OSError as error:
            raise DataError(f"cannot read {str(self.path)!r} on {socket.gethostname()}; it was to be staged") from error

    def read(self, buffer: memoryview, position: int) -> int:
        """Read into the buffer; returns how many bytes."""
        with self.readable():
            return os.preadv(self.descriptor, [buffer], position)

    def check_unchanged(self) -> None:
        """Raise DataError if the file has changed since it was opened."""
        with self.readable():
            now = self.path.stat()
        if (now.st_size, now.st_mtime_ns, now.st_ino) != (self.num_bytes, self.status.st_mtime_ns, self.status.st_ino):
            raise DataError(f"{str(self.path)!r} changed while it was copied; stage it when nobody writes to it")

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


def copy_verified(source: Source, partial: Path, folder: Path) -> tuple[str, int, int]:
    """Copy and read back; returns the sha256 over the sha256 of all blocks, and the nanoseconds of either."""
    begin_ns = time.monotonic_ns()
    # Ours alone: a link that somebody else has put there is not followed.
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(partial, flags, 0o600)
    try:
        try:
            written = _each_block(source.num_bytes, lambda start, end: _copy_block(source, descriptor, start, end))
            os.fsync(descriptor)
        except OSError as error:
            if error.errno in FULL_DISK:
                free = shutil.disk_usage(folder).free
                raise StagingError(
                    f"the disk filled up meanwhile: {source.num_bytes:,} bytes are needed and {free:,} are free"
                ) from error
            raise
        source.check_unchanged()
        copied_ns = time.monotonic_ns()
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # so that the disk is read, not what we just wrote
        read_back = _each_block(source.num_bytes, lambda start, end: _hash_block(descriptor, start, end))
        for number, (wanted, found) in enumerate(zip(written, read_back, strict=True)):
            if wanted != found:
                raise StagingError(
                    f"the copy differs from what was written, from byte {number * BLOCK_BYTES:,} on; "
                    "the local disk is not to be trusted"
                )
        if os.fstat(descriptor).st_size != source.num_bytes:
            raise StagingError("the copy has another size than the source")
        digest = hashlib.sha256(b"".join(written)).hexdigest()
        return digest, copied_ns - begin_ns, time.monotonic_ns() - copied_ns
    finally:
        os.close(descriptor)


def _each_block(num_bytes: int, work: Callable[[int, int], bytes]) -> list[bytes]:
    """Do the work for each block (first byte, end) in several threads; its results in the order of blocks.

    Daemon threads and not a ThreadPoolExecutor, whose threads would hold up the end of a rank until all is copied.
    """
    starts = range(0, num_bytes, BLOCK_BYTES)
    results = [b""] * len(starts)
    todo = iter(enumerate(starts))
    lock = threading.Lock()
    errors: list[BaseException] = []

    def serve() -> None:
        while not errors:
            with lock:
                number, start = next(todo, (-1, 0))
            if number < 0:
                return
            try:
                results[number] = work(start, min(start + BLOCK_BYTES, num_bytes))
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=serve, name=f"hpcai500-staging-{n}", daemon=True) for n in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def _copy_block(source: Source, descriptor: int, start: int, end: int) -> bytes:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(PIECE_BYTES, end - start)))
    position = start
    while position < end:
        num_read = source.read(buffer[: end - position], position)
        if num_read == 0:
            raise DataError(
                f"{str(source.path)!r} became shorter while it was copied; stage it when nobody writes to it"
            )
        piece = buffer[:num_read]
        digest.update(piece)
        while piece:
            num_written = os.pwrite(descriptor, piece, position)
            piece, position = piece[num_written:], position + num_written
    return digest.digest()


def _hash_block(descriptor: int, start: int, end: int) -> bytes:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(PIECE_BYTES, end - start)))
    position = start
    while position < end:
        num_read = os.preadv(descriptor, [buffer[: end - position]], position)
        if num_read == 0:
            break
        digest.update(buffer[:num_read])
        position += num_read
    return digest.digest()
