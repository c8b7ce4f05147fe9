"""Copies the data file to storage of the node before training, while the rank still imports its libraries.

Each node copies the whole file, not a shard of it: every epoch shuffles over all samples, so each rank reads every
sample sooner or later, whatever the number of nodes. One rank a node copies (``Stage``), the others wait for it
(``collect``). A copy that an earlier job has left is used again.

Data may be a folder; then the files that a run reads are copied, one after the other. A copy is believed only after it
has been read back (hpcai500/verified_copy.py).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hpcai500.errors import DataError
from hpcai500.verified_copy import BLOCK_BYTES, Source, StagingError, copy_verified

if TYPE_CHECKING:
    from hpcai500.comm.communicator import Communicator

OnFullDisk = Literal["fallback", "stop"]
MARKER_FORMAT = 1
WAIT_INTERVAL_S = 0.2


@dataclass(frozen=True)
class StagedFile:
    """What came of staging a file, or a folder's files.

    Attributes:
        source: what was to be copied.
        path: what is to be read: the copy, or the source where there is none.
        num_bytes: size of it.
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
    """Copies a file, or files of a folder, to a folder of this node, in threads of its own.

    ::

        stage = Stage(Path("/lustre/imagenet.h5"), Path("/local"))
        stage.start()
        import torch                # meanwhile it copies
        staged = stage.wait()       # read staged.path

    Args:
        source: the file, or the folder with the files.
        folder: a folder on storage of this node; made if it is missing.
        files: names of the files, if the source is a folder.
        on_full_disk: where no copy can be had (disk full, read-only, damaged), "fallback" reads the source and says so
            in ``StagedFile.fell_back``, "stop" raises.
    """

    def __init__(
        self, source: Path, folder: Path, *, files: Sequence[str] = (), on_full_disk: OnFullDisk = "fallback"
    ) -> None:
        self._source, self._folder, self._files, self._on_full_disk = source, folder, files, on_full_disk
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
            num_bytes = sum((source / name).stat().st_size for name in self._files or ("",))
        except OSError as error:
            raise DataError(
                f"cannot read {str(self._source)!r} on {socket.gethostname()}; it was to be staged"
            ) from error
        try:
            with writing(self._folder), locked(self._folder, copy_name(source)):
                if self._files:
                    return stage_files(source, self._folder, self._files)
                return stage_locked(source, self._folder, copy_name(source))
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


def stage_files(source: Path, folder: Path, names: Sequence[str]) -> StagedFile:
    """As ``stage_locked`` for files of a folder, which keep their names in a folder of their own.

    Raises:
        StagingError: there is no room for all of them, or a copy is not what was written.
        DataError: a file cannot be read, or changes meanwhile.
    """
    target = folder / copy_name(source)
    target.mkdir(mode=0o700, exist_ok=True)
    needed = sum((source / name).stat().st_size for name in names if not (target / name).exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StagingError(f"{needed:,} bytes are needed and {free:,} are free")
    staged = [stage_locked(source / name, target, name) for name in names]
    return StagedFile(
        source,
        target,
        num_bytes=sum(one.num_bytes for one in staged),
        copy_ns=sum(one.copy_ns for one in staged),
        verify_ns=sum(one.verify_ns for one in staged),
        reused=all(one.reused for one in staged),
    )


def stage_locked(source: Path, folder: Path, name: str) -> StagedFile:
    """Use the copy of that name that is there, or make and verify one; the caller holds the lock.

    Raises:
        StagingError: there is no room, or the copy is not what was written.
        DataError: the source cannot be read, or changes meanwhile.
    """
    target = folder / name
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
            digest, copy_ns, verify_ns = copy_verified(opened, partial, folder)
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _write_marker(marker, opened, target, digest)
    return StagedFile(source, target, opened.num_bytes, copy_ns=copy_ns, verify_ns=verify_ns)


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
