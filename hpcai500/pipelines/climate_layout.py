"""How the samples of a climate file are stored, and what of it can be read without h5py.

h5py holds one lock for all reads of a process, also while it unpacks (docs.h5py.org, "Thread-safety"; HDFGroup/hdf5
serialises filters in any case). Samples in one piece, and chunks packed by gzip as the published files have them, are
therefore read past it, so that threads read and unpack side by side.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from hpcai500.errors import BackendUnavailableError, DataError, SampleError

FloatArray = NDArray[np.float32]

FILTER_NAMES = {h5py.h5z.FILTER_DEFLATE: "gzip", h5py.h5z.FILTER_SHUFFLE: "shuffle"}


def filters_of(images: h5py.Dataset) -> list[tuple[int, str]]:
    """Number and name of each filter of a data set, in the order in which they were applied."""
    plist = images.id.get_create_plist()
    found = [plist.get_filter(k) for k in range(plist.get_nfilters())]
    return [
        (number, FILTER_NAMES.get(number) or name.decode(errors="replace").split(";")[0] or f"filter {number}")
        for number, _, _, name in found
    ]


def describe_layout(images: h5py.Dataset) -> str:
    """How a data set is stored, in words: "contiguous", or "chunks of (1, 16, 96, 144), gzip"."""
    if images.chunks is None:
        return "contiguous"
    return f"chunks of {images.chunks}, {' + '.join(name for _, name in filters_of(images)) or 'none'}"


def require_filters(images: h5py.Dataset, path: Path) -> None:
    """Make sure that HDF5 has the filters of a data set; raises BackendUnavailableError where hdf5plugin is needed."""
    for number, name in filters_of(images):
        if h5py.h5z.filter_avail(number):
            continue
        try:
            import hdf5plugin  # noqa: F401  # registers its filters
        except ImportError:
            raise BackendUnavailableError(
                f"data file {str(path)!r} is compressed with {name!r}, which needs hdf5plugin; get it with "
                "`pip install hdf5plugin`"
            ) from None
        if not h5py.h5z.filter_avail(number):
            raise BackendUnavailableError(
                f"data file {str(path)!r} is compressed with {name!r}, which is not available here; repack it where it "
                "is, with `hpcai500 data repack`"
            )


def sample_positions(images: h5py.Dataset, path: Path) -> NDArray[np.int64] | None:
    """The byte at which each sample begins in the file, shape (n,); None where samples are not in one piece each."""
    num_samples = images.shape[0]
    sample_bytes = 4 * int(np.prod(images.shape[1:]))
    if images.chunks is None:
        start = images.id.get_offset()
        if start is None:
            raise DataError(f"data file {str(path)!r}: 'images' was never written; fetch or generate the file again")
        return int(start) + sample_bytes * np.arange(num_samples, dtype=np.int64)
    if images.chunks != (1, *images.shape[1:]) or filters_of(images):
        return None
    chunks = [images.id.get_chunk_info_by_coord((i, 0, 0, 0)) for i in range(num_samples)]
    unwritten = [i for i, chunk in enumerate(chunks) if chunk.byte_offset is None or chunk.size != sample_bytes]
    if any(chunk.byte_offset is not None and chunk.byte_offset >= 1 << 63 for chunk in chunks):
        raise DataError(f"data file {str(path)!r} has damaged tables; copy or fetch it again")
    if unwritten:
        raise DataError(
            f"data file {str(path)!r}: sample {unwritten[0]} and {len(unwritten) - 1} others were never written; fetch "
            "or generate the file again"
        )
    return np.array([chunk.byte_offset for chunk in chunks], dtype=np.int64)


def is_deflated(images: h5py.Dataset) -> bool:
    """Whether :class:`DeflatedChunks` reads it: chunks of one sample, or a part of one, packed by gzip alone."""
    numbers = [number for number, _ in filters_of(images)]
    packed = ([h5py.h5z.FILTER_DEFLATE], [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE])
    return images.chunks is not None and images.chunks[0] == 1 and numbers in packed


class ChunkPlace(NamedTuple):
    """Where a chunk lies in the file in bytes, and at which channel, row and column it begins."""

    position: int
    size: int
    corner: tuple[int, int, int]


class DeflatedChunks:
    """Reads samples whose chunks are packed by gzip: h5py only says where the chunks lie.

    Args:
        images: float32, little-endian, shape (n, 16, height, width), for which :func:`is_deflated` is true.
        place: the file, for messages.
    """

    def __init__(self, images: h5py.Dataset, place: str) -> None:
        self._images, self._place = images, place
        self._shape: tuple[int, int, int] = images.shape[1:]
        self._chunk: tuple[int, int, int] = images.chunks[1:]
        self._is_shuffled = len(filters_of(images)) > 1

    def read(self, descriptor: int, index: int, out: FloatArray) -> None:
        """Read sample ``index`` into ``out``, float32 (16, height, width), from the open file ``descriptor``.

        Raises:
            SampleError: a chunk is missing or damaged.
        """
        num_values = int(np.prod(self._chunk))
        for chunk in self._places(index):
            packed = os.pread(descriptor, chunk.size, chunk.position)
            try:
                data = zlib.decompress(packed, bufsize=4 * num_values)
            except zlib.error as error:
                raise self._error(index, chunk.corner, f"does not unpack ({error})") from None
            if len(data) != 4 * num_values:
                raise self._error(index, chunk.corner, f"unpacks to {len(data)} bytes instead of {4 * num_values}")
            values = self._unshuffled(data) if self._is_shuffled else np.frombuffer(data, "<f4")
            target = out[
                tuple(slice(first, first + length) for first, length in zip(chunk.corner, self._chunk, strict=True))
            ]
            inside = tuple(slice(0, length) for length in target.shape)  # chunks reach beyond the edge of the field
            target[...] = values.reshape(self._chunk)[inside]

    def _places(self, index: int) -> list[ChunkPlace]:
        steps = (range(0, size, chunk) for size, chunk in zip(self._shape, self._chunk, strict=True))
        places = []
        for corner in np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3).tolist():
            info = self._images.id.get_chunk_info_by_coord((index, *corner))
            if info.byte_offset is None or info.filter_mask != 0:
                what = "was never written" if info.byte_offset is None else "is not packed as the others"
                raise self._error(index, tuple(corner), what)
            places.append(ChunkPlace(info.byte_offset, info.size, tuple(corner)))
        return places

    @staticmethod
    def _unshuffled(data: bytes) -> FloatArray:
        """Undo HDF5's shuffle, which puts the first bytes of all values first, then the second ones, and so on."""
        planes = np.frombuffer(data, np.uint8).reshape(4, -1)
        values = np.empty((planes.shape[1], 4), np.uint8)
        for k, plane in enumerate(planes):
            values[:, k] = plane
        return values.reshape(-1).view("<f4")

    def _error(self, index: int, corner: tuple[int, ...], what: str) -> SampleError:
        channel, row, column = corner
        return SampleError(
            f"{self._place}: sample {index} cannot be read, its chunk from channel {channel}, row {row}, column "
            f"{column} {what}; fetch the file again"
        )
