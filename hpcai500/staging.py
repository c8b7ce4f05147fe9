"""Copies the data file to storage of the node before training, while the rank still imports its libraries.

Each node copies the whole file, not a shard of it: every epoch shuffles over all samples, so each rank reads every
sample sooner or later, whatever the number of nodes. One rank a node copies (``Stage``), the others wait for it
(``collect``). A copy that an earlier job has left is used again.

A copy is believed only after it has been read back: per block of 64 MiB, the sha256 of the bytes as they came from the
source must equal that of the bytes as the local disk gives them back, with the page cache dropped where the file system
lets us. Reading, writing and hashing are done outside Python's lock, so importing torch is not held up.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hpcai500.errors import DataError

if TYPE_CHECKING:
    from hpcai500.comm.communicator import Communicator

OnFullDisk = Literal["fallback", "stop"]
BLOCK_BYTES = 64 * 2**20
PIECE_BYTES = 4 * 2**20  # of one read and write: large enough for network file systems, small enough for many threads
NUM_THREADS = 4  # parallel file systems give one reader a fraction of what a node can have; sha256 does 1.7 GB/s a core
MARKER_FORMAT = 1
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
WAIT_INTERVAL_S = 0.2


class StagingError(Exception):
    """A copy cannot be had on this node; the original is still there to be read."""


@dataclass(frozen=True)
class StagedFile:
    """What came of staging.

    Attributes:
        source: the file that was to be copied.
        path: the file to read: the copy, or the source where there is none.
        num_bytes: size of the file.
        copy_ns: time of reading, writing and flushing, in nanoseconds; 0 if nothing was copied.
        verify_ns: time of reading the copy back; 0 if nothing was copied.
        reused: a verified copy was there already.
        fell_back: why the source is read; None if the copy is.
    """

    source: Path
    path: Path
    num_bytes: int
    copy_ns: int = 0
    verify_ns: int = 0
    reused: bool = False
    fell_back: str | None = None

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """Bytes copied in a second; 0 if nothing was copied."""
        return self.num_bytes / (self.copy_ns * 1e-9) if self.copy_ns else 0.0

    def event(self) -> dict[str, Any]:
        """The ledger event ``staging``."""
        return {
            "source": str(self.source),
            "path": str(self.path),
            "num_bytes": self.num_bytes,
            "duration_ns": self.copy_ns,
            "verify_ns": self.verify_ns,
            "reused": self.reused,
            "fell_back": self.fell_back,
        }


class Stage:
    """Copies one file to a folder of this node, in threads of its own.

    ::

        stage = Stage(Path("/lustre/imagenet.h5"), Path("/local"))
        stage.start()
        import torch                # meanwhile it copies
        staged = stage.wait()       # read staged.path

    Args:
        source: the file.
        folder: a folder on storage of this node; made if it is missing.
        on_full_disk: where no copy can be had (disk full, read-only, damaged), "fallback" reads the source and says so
            in ``StagedFile.fell_back``, "stop" raises.
    """

    def __init__(self, source: Path, folder: Path, *, on_full_disk: OnFullDisk = "fallback") -> None:
        self._source, self._folder, self._on_full_disk = source, folder, on_full_disk
        self._staged: StagedFile | None = None
        self._error: BaseException | None = None
        # A daemon: a rank that ends early does not wait for gigabytes. What it leaves half done is begun anew.
        self._thread = threading.Thread(target=self._run, name="hpcai500-staging", daemon=True)

    def start(self) -> None:
        """Begin to copy; returns at once."""
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether ``wait`` would return (or raise) at once."""
        return not self._thread.is_alive()

    def wait(self) -> StagedFile:
        """Return when the copy is there and verified, or is known not to come.

        Raises:
            DataError: the source cannot be read; or no copy can be had and ``on_full_disk`` is "stop".
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._staged is not None, "wait was called before start"
        return self._staged

    def _run(self) -> None:
        try:
            self._staged = self._stage()
        except BaseException as error:
            self._error = error

    def _stage(self) -> StagedFile:
        try:
            source = self._source.resolve(strict=True)
            num_bytes = source.stat().st_size
        except OSError as error:
            raise DataError(
                f"cannot read {str(self._source)!r} on {socket.gethostname()}; it was to be staged"
            ) from error
        try:
            with writing(self._folder), locked(self._folder, copy_name(source)):
                return stage_locked(source, self._folder)
        except StagingError as error:
            where = f"{str(self._source)!r} to {str(self._folder)!r} on {socket.gethostname()}"
            if self._on_full_disk == "stop":
                raise DataError(
                    f"cannot stage {where}: {error}; make room, name another folder, or choose --on-full-disk fallback"
                ) from error.__cause__
            return StagedFile(self._source, source, num_bytes, fell_back=f"cannot stage {where}: {error}")


def collect(stage: Stage | None, comm: Communicator, source: Path) -> tuple[Path, StagedFile | None]:
    """Wait until all nodes have their copies; collective.

    Asks again and again instead of waiting in one call, which a long copy would let run into its deadline.

    Args:
        stage: of the first rank of each node; None on its other ranks (and everywhere if nothing is staged).
        comm: all ranks.
        source: the file itself, to be read where nothing is staged.

    Returns:
        The file this rank is to read, and what came of staging on the rank that did it.

    Raises:
        DataError: as ``Stage.wait``, on the rank where it happened; its process must then end the others.
    """
    host = socket.gethostname()
    while not all(comm.allgather(stage is None or stage.is_done)):
        time.sleep(WAIT_INTERVAL_S)
    staged = stage.wait() if stage is not None else None
    paths = dict(entry for entry in comm.allgather((host, staged.path) if staged else None) if entry)
    return paths.get(host, source), staged


def copy_name(source: Path) -> str:
    """The copy's name: that of the source, told apart from files of the same name elsewhere."""
    return f"{source.stem}-{hashlib.sha256(os.fsencode(source)).hexdigest()[:12]}{source.suffix}"


def stage_locked(source: Path, folder: Path) -> StagedFile:
    """Use the copy that is there, or make and verify one; the caller holds the lock.

    Raises:
        StagingError: there is no room, or the copy is not what was written.
        DataError: the source cannot be read, or changes meanwhile.
    """
    target = folder / copy_name(source)
    marker = target.with_name(f"{target.name}.json")
    with closing(Source(source)) as opened:
        if _is_verified(marker, opened, target):
            return StagedFile(source, target, opened.num_bytes, reused=True)
        partial = target.with_name(f"{target.name}.part")
        for path in (partial, marker):  # partial: of a job that was killed
            path.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
        if opened.num_bytes > free:
            raise StagingError(f"{opened.num_bytes:,} bytes are needed and {free:,} are free")
        try:
            digest, copy_ns, verify_ns = _copy_verified(opened, partial, folder)
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _write_marker(marker, opened, target, digest)
    return StagedFile(source, target, opened.num_bytes, copy_ns=copy_ns, verify_ns=verify_ns)


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


def _copy_verified(source: Source, partial: Path, folder: Path) -> tuple[str, int, int]:
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


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make the folder; what fails at it in the block is a StagingError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise StagingError(f"{error.strerror} ({error.filename or folder})") from error


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """One process of this node at a time; the lock of a process that dies is free again."""
    descriptor = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_verified(marker: Path, source: Source, target: Path) -> bool:
    """Whether the copy is our own, was verified, and neither it nor the source has changed since."""
    try:
        told = json.loads(marker.read_text(encoding="utf-8"))
        return target.lstat().st_uid == os.geteuid() and told == {**_facts(source, target), "digest": told["digest"]}
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or it is damaged
        return False


def _write_marker(marker: Path, source: Source, target: Path, digest: str) -> None:
    temporary = marker.with_name(f"{marker.name}.part")
    temporary.write_text(json.dumps({**_facts(source, target), "digest": digest}, indent=2) + "\n", encoding="utf-8")
    temporary.replace(marker)


def _facts(source: Source, target: Path) -> dict[str, Any]:
    """What tells a verified copy from any other file; ``digest`` joins it: sha256 over the sha256 of all blocks."""
    copy = target.lstat()
    return {
        "format": MARKER_FORMAT,
        "source": str(source.path),
        "num_bytes": source.num_bytes,
        "source_mtime_ns": source.status.st_mtime_ns,
        "copy_num_bytes": copy.st_size,
        "copy_mtime_ns": copy.st_mtime_ns,
        "copy_inode": copy.st_ino,
        "block_bytes": BLOCK_BYTES,
    }
