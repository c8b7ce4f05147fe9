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


class Places(NamedTuple):
    """Where the tables of a split lie in the file, in bytes."""

    data: int
    sizes: int
    sha256: int


class Chunk(NamedTuple):
    """A run of samples that one worker copies: where each is read, where the rows go.

    ``positions`` is None where each sample is a whole file; ``verify`` says that it may already be there.
    """

    split: str
    first: int
    paths: list[str]
    positions: list[int] | None
    lengths: list[int]
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
    num_bytes = sum(chunk.lengths)
    if len(_buffer) < num_bytes:
        _buffer = bytearray(num_bytes)
    view = memoryview(_buffer)[:num_bytes]
    is_there = chunk.verify and _is_there(descriptor, chunk, view)
    counts, sizes, digests, place = Counter[str](), bytearray(), bytearray(), 0
    for row, (path, length) in enumerate(zip(chunk.paths, chunk.lengths, strict=True)):
        data = view[place : place + length]
        if not is_there:
            _read_sample(path, data, None if chunk.positions is None else chunk.positions[row])
        try:
            header = read_header(data)
        except ValueError as error:
            raise DataError(f"{path!r} {error}; remove or replace it and run the same command again") from None
        counts[header.kind] += 1
        sizes += header.height.to_bytes(4, "little") + header.width.to_bytes(4, "little")
        digests += hashlib.sha256(data).digest()
        place += length
    with explained(Path(partial)):
        if not is_there:
            _write_fully(descriptor, view, chunk.places.data)
        _write_fully(descriptor, sizes, chunk.places.sizes)
        _write_fully(descriptor, digests, chunk.places.sha256)
    return dict(counts)


def _is_there(descriptor: int, chunk: Chunk, view: memoryview) -> bool:
    """Read the chunk from the data file itself and say whether its bytes agree with the digests there."""
    os.preadv(descriptor, [view], chunk.places.data)
    digests = os.pread(descriptor, len(chunk.lengths) * SHA256_BYTES, chunk.places.sha256)
    place, found = 0, b""
    for length in chunk.lengths:
        found += hashlib.sha256(view[place : place + length]).digest()
        place += length
    return found == digests


def _read_sample(path: str, data: memoryview, position: int | None) -> None:
    """Fill ``data`` from the whole file, which must be as long, or from ``position`` on."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(f"picture {path!r} cannot be opened ({error.strerror}); run the same command again") from None
    try:
        length = os.fstat(descriptor).st_size if position is None else len(data)
        place = 0
        while length == len(data) and place < length:
            num_read = os.preadv(descriptor, [data[place:]], (position or 0) + place)
            if num_read == 0:
                length = place
            place += num_read
    except OSError as error:
        raise DataError(f"picture {path!r} cannot be read ({error.strerror})") from None
    finally:
        os.close(descriptor)
    if length != len(data):
        raise DataError(
            f"picture {path!r} changed from {len(data)} to {length} bytes during the conversion; "
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
        why = error.strerror or error  # h5py's errors have words only
        raise DataError(f"{str(path)!r} cannot be written ({why}); give an --output you may write") from None
