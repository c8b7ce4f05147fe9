"""Copies a chunk of pictures into the data file; what each worker of hdf5_writer.py does.

Imports neither h5py nor numpy, so that workers start quickly.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hpcai500.errors import DataError
from hpcai500.pipelines.image_header import read_header

SIZE_BYTES, SHA256_BYTES = 8, 32  # of a row of `sizes` (two int32) and of `sha256`
WRITE_BYTES = 512 << 10  # measured on ext4 of Linux 6.18: larger writes cost up to three times the system time
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Piece(NamedTuple):
    """Bytes of a file: all of it, or a part."""

    path: str
    position: int
    length: int
    is_whole: bool


class Places(NamedTuple):
    """Where the tables of a split lie in the file, in bytes."""

    data: int
    sizes: int
    sha256: int


class Chunk(NamedTuple):
    """A run of samples that one worker copies, the places of its rows, and whether they may already be there."""

    split: str
    first: int
    pieces: list[Piece]
    places: Places
    verify: bool


@functools.cache
def _open_for_writing(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


_buffer = bytearray()  # of this worker; grows to the largest chunk


def copy_chunk(partial: str, chunk: Chunk) -> dict[str, int]:
    """Read the pictures of ``chunk``, write them and their rows to ``partial``; returns the number of each kind.

    Raises:
        DataError: an input is missing, has another size than in the first pass, or is no picture.
    """
    global _buffer  # noqa: PLW0603 - allocated once a process, not once a chunk
    descriptor = _open_for_writing(partial)
    num_bytes = sum(piece.length for piece in chunk.pieces)
    if len(_buffer) < num_bytes:
        _buffer = bytearray(num_bytes)
    view = memoryview(_buffer)[:num_bytes]
    is_there = chunk.verify and _is_there(descriptor, chunk, view)
    counts, sizes, digests, place = Counter[str](), bytearray(), bytearray(), 0
    for piece in chunk.pieces:
        data = view[place : place + piece.length]
        if not is_there:
            _read_piece(piece, data)
        try:
            header = read_header(data)
        except ValueError as error:
            raise DataError(f"{piece.path!r} {error}; remove or replace it and run the same command again") from None
        counts[header.kind] += 1
        sizes += header.height.to_bytes(4, "little") + header.width.to_bytes(4, "little")
        digests += hashlib.sha256(data).digest()
        place += piece.length
    with explained(Path(partial)):
        if not is_there:
            _write_fully(descriptor, view, chunk.places.data)
        _write_fully(descriptor, sizes, chunk.places.sizes)
        _write_fully(descriptor, digests, chunk.places.sha256)
    return dict(counts)


def _is_there(descriptor: int, chunk: Chunk, view: memoryview) -> bool:
    """Read the chunk from the data file itself and say whether its bytes agree with the digests there."""
    os.preadv(descriptor, [view], chunk.places.data)
    digests = os.pread(descriptor, len(chunk.pieces) * SHA256_BYTES, chunk.places.sha256)
    place, found = 0, b""
    for piece in chunk.pieces:
        found += hashlib.sha256(view[place : place + piece.length]).digest()
        place += piece.length
    return found == digests


def _read_piece(piece: Piece, data: memoryview) -> None:
    try:
        descriptor = os.open(piece.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(
            f"picture {piece.path!r} cannot be opened ({error.strerror}); run the same command again"
        ) from None
    try:
        now = os.fstat(descriptor).st_size if piece.is_whole else piece.length
        place = 0
        while now == piece.length and place < piece.length:
            num_read = os.preadv(descriptor, [data[place:]], piece.position + place)
            if num_read == 0:
                now = place
            place += num_read
    except OSError as error:
        raise DataError(f"picture {piece.path!r} cannot be read ({error.strerror})") from None
    finally:
        os.close(descriptor)
    if now != piece.length:
        raise DataError(
            f"picture {piece.path!r} changed from {piece.length} to {now} bytes during the conversion; "
            "run the same command again when nothing writes there"
        )


def _write_fully(descriptor: int, data: memoryview | bytearray, position: int) -> None:
    view = memoryview(data)
    while view:
        num_written = os.pwrite(descriptor, view[:WRITE_BYTES], position)
        position += num_written
        view = view[num_written:]


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the system says about writing ``path`` into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise DataError(
                f"no space left for {str(path)!r} ({error.strerror}); make room and run the same command: it resumes"
            ) from None
        raise DataError(f"{str(path)!r} cannot be written ({error.strerror}); give an --output you may write") from None
