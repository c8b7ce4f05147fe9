"""Reads pictures packed in one HDF5 file (format "hpcai500-images", version 1).

::

    /                   attributes format, format_version, complete, provenance (JSON), dataset_sha256
    /class_names        UTF-8 strings (num_classes,)
    /train, /validation, each with
        bytes           uint8 (total,)      the JPEG files as published, end to end; contiguous
        offsets         int64 (n + 1,)      sample i is bytes[offsets[i]:offsets[i + 1]]
        labels          int32 (n,)
        sizes           int32 (n, 2)        height, width in pixels, as in the picture's header
        sha256          uint8 (n, 32)       of each sample's bytes
        names           UTF-8 strings (n,)  original file names

h5py only reads the tables. The pictures are read past it, with preadv(2) at the place where the contiguous data set
lies in the file: h5py holds one lock for all reads of a process (docs.h5py.org, "Thread-safety"), and a plain file
descriptor can be read by several threads at once. Nothing of h5py stays open, so forking and pickling are safe.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hpcai500.errors import DataError, UsageError

FORMAT = "hpcai500-images"
FORMAT_VERSION = 1
SPLITS = ("train", "validation")
COLUMNS = ("bytes", "offsets", "labels", "sizes", "sha256", "names")
MAX_BUFFERS = 512  # of one preadv; Linux allows 1,024 (IOV_MAX)

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
ByteArray = npt.NDArray[np.uint8]


class TruncatedError(DataError):
    """A data file has lost its end."""


@dataclass(frozen=True)
class SplitTable:
    """What a file says about the samples of one split, without the pictures.

    ``offsets`` int64 (n + 1,) in bytes from ``position_bytes``, the place of the first picture in the file;
    ``labels`` int32 (n,); ``sizes`` int32 (n, 2) height and width in pixels.
    """

    position_bytes: int
    offsets: Int64Array
    labels: Int32Array
    sizes: Int32Array

    @property
    def num_samples(self) -> int:
        return len(self.labels)

    @property
    def num_bytes(self) -> int:
        return int(self.offsets[-1])


@dataclass(frozen=True)
class ImageFileInfo:
    """What a file of pictures holds: its classes, where it comes from and the tables of both splits."""

    path: Path
    class_names: tuple[str, ...]
    dataset_sha256: str
    provenance: dict[str, Any]
    splits: dict[str, SplitTable]


def open_images(path: str | os.PathLike[str]) -> ImageFileInfo:
    """Read the tables of the file at ``path`` and check everything that can be checked without reading the pictures.

    Raises:
        DataError: the file is missing, not HDF5, truncated, of another kind or version, incomplete, without
            validation samples, or has labels or offsets out of range.
    """
    path = Path(path)
    with open_hdf5(path) as file, readable_tables(path):
        check_kind(file, path)
        class_names = tuple(file["class_names"].asstr()[:])
        splits = {split: _read_table(file, split, path) for split in SPLITS}
        for split, table in splits.items():
            _check_table(table, split, len(class_names), path)
        return ImageFileInfo(
            path=path,
            class_names=class_names,
            dataset_sha256=text_of(file.attrs["dataset_sha256"]),
            provenance=json.loads(file.attrs["provenance"]),
            splits=splits,
        )


def open_hdf5(path: Path) -> h5py.File:
    """Open ``path`` for reading; raises DataError if it is missing, cannot be read, is truncated or not HDF5."""
    if not path.exists():
        raise DataError(f"data file {str(path)!r} does not exist; prepare it with `hpcai500 data prepare`")
    if not path.is_file():
        raise DataError(f"data file {str(path)!r} is not a file; give one that `hpcai500 data prepare` wrote")
    try:
        # best-effort: some parallel file systems do not support the lock that HDF5 asks for
        return h5py.File(path, "r", locking="best-effort")
    except OSError as error:
        if "truncated" in str(error):
            message = f"data file {str(path)!r} is truncated at {path.stat().st_size} bytes; copy or prepare it again"
            raise TruncatedError(message) from None
        if "signature not found" in str(error):
            raise DataError(
                f"data file {str(path)!r} is not an HDF5 file; give one that `hpcai500 data prepare` wrote"
            ) from None
        raise DataError(f"data file {str(path)!r} cannot be opened") from error


@contextmanager
def readable_tables(path: Path) -> Iterator[None]:
    """Turn what h5py says of damaged tables into a sentence."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise DataError(f"data file {str(path)!r} has damaged tables; copy or prepare it again") from error


def check_kind(file: h5py.File, path: Path) -> None:
    """Raise DataError unless ``file`` is a complete file of this format, of a version that this module reads."""
    kind = file.attrs.get("format")
    if kind != FORMAT:
        what = "some other HDF5 file" if kind is None else f"of format {kind!r}"
        raise DataError(f"data file {str(path)!r} is {what}; expected format {FORMAT!r}, see `hpcai500 data prepare`")
    version = int(file.attrs.get("format_version", 0))
    if version != FORMAT_VERSION:
        raise DataError(
            f"data file {str(path)!r} has format version {version}; this version of hpcai500 reads {FORMAT_VERSION}: "
            "prepare the file again or use the hpcai500 that wrote it"
        )
    if int(file.attrs.get("complete", 0)) != 1:
        raise DataError(
            f"data file {str(path)!r} is incomplete; the `hpcai500 data prepare` that began it resumes when run again"
        )
    missing = ["class_names"] if "class_names" not in file else []
    missing += [f"{split}/{column}" for split in SPLITS for column in COLUMNS if f"{split}/{column}" not in file]
    missing += [f"attribute {name}" for name in ("provenance", "dataset_sha256") if name not in file.attrs]
    if missing:
        raise DataError(f"data file {str(path)!r} lacks {', '.join(missing)}; prepare it again")


def text_of(attribute: str | bytes) -> str:
    """An attribute's text; h5py gives strings of fixed size as bytes."""
    return attribute.decode("utf-8") if isinstance(attribute, bytes) else attribute


def _read_table(file: h5py.File, split: str, path: Path) -> SplitTable:
    group = file[split]
    position_bytes = group["bytes"].id.get_offset()
    if group["bytes"].chunks is not None or (position_bytes is None and group["bytes"].size > 0):
        raise DataError(
            f"data file {str(path)!r} stores {split}/bytes in chunks; it must be contiguous: prepare it again"
        )
    offsets = group["offsets"][:].astype(np.int64)
    if len(offsets) == 0 or offsets[-1] != group["bytes"].shape[0]:
        raise DataError(f"data file {str(path)!r}: {split}/offsets do not end at the end of {split}/bytes")
    return SplitTable(
        position_bytes=position_bytes or 0,
        offsets=offsets,
        labels=group["labels"][:].astype(np.int32),
        sizes=group["sizes"][:].astype(np.int32),
    )


def _check_table(table: SplitTable, split: str, num_classes: int, path: Path) -> None:
    place = f"data file {str(path)!r}"
    if len(table.offsets) == 1:
        raise DataError(f"{place} has no {split} samples; training needs at least one, and so does validation")
    if not len(table.offsets) - 1 == len(table.labels) == len(table.sizes):
        raise DataError(
            f"{place} has {len(table.offsets) - 1} {split} pictures, {len(table.labels)} labels and "
            f"{len(table.sizes)} sizes; these must agree: see `hpcai500 data check`"
        )
    wrong = np.flatnonzero((table.labels < 0) | (table.labels >= num_classes))
    if len(wrong) > 0:
        raise DataError(
            f"{place}: label {table.labels[wrong[0]]} of {split} sample {wrong[0]} is out of range; "
            f"{num_classes} classes have labels 0 to {num_classes - 1} ({len(wrong)} such samples in all)"
        )
    if table.offsets[0] != 0 or np.any(np.diff(table.offsets) <= 0):
        raise DataError(f"{place}: {split}/offsets do not rise from 0; see `hpcai500 data check`")


def dataset_digest(tables: Sequence[tuple[str, Int32Array, ByteArray]]) -> str:
    """SHA-256 that identifies content and order, from (split, labels (n,), sha256 (n, 32)) of train, then validation.

    It covers, for each split, its name in ASCII, the labels as little-endian int32, and the digests of the samples.
    """
    digest = hashlib.sha256()
    for split, labels, sha256 in tables:
        digest.update(split.encode("ascii"))
        digest.update(labels.astype("<i4").tobytes())
        digest.update(sha256.tobytes())
    return digest.hexdigest()


class ImageSplit:
    """The samples of one split, or its first ``max_samples``.

    Objects can be pickled and carried over a fork: each process opens the file for itself at its first read.
    """

    def __init__(self, path: str | os.PathLike[str], split: str, max_samples: int | None = None) -> None:
        if split not in SPLITS:
            raise UsageError(f"split {split!r} does not exist; known: {', '.join(SPLITS)}")
        info = open_images(path)
        table = info.splits[split]
        if max_samples is not None and not 1 <= max_samples <= table.num_samples:
            raise UsageError(
                f"{max_samples} {split} samples are not to be had from {str(info.path)!r}; "
                f"valid are 1 to {table.num_samples}"
            )
        self.path = info.path.absolute()  # a worker process may have another working folder
        self.split = split
        self.num_samples = max_samples or table.num_samples
        self.labels = table.labels[: self.num_samples]
        self.sizes = table.sizes[: self.num_samples]
        self.class_names = info.class_names
        self.dataset_sha256 = info.dataset_sha256
        self.provenance = info.provenance
        self._positions = table.offsets[: self.num_samples + 1] + table.position_bytes  # in the file
        self._lengths = np.diff(self._positions)
        self._descriptor = -1
        self._pid = -1

    def __len__(self) -> int:
        return self.num_samples

    @property
    def num_bytes(self) -> int:
        """Of all samples, as they are stored."""
        return int(self._positions[-1] - self._positions[0])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": -1, "_pid": -1}

    def read(self, indices: npt.NDArray[np.integer[Any]], out: ByteArray | None = None) -> tuple[ByteArray, Int64Array]:
        """Read the samples ``indices`` (k,), in that order and with repetitions, packed end to end.

        Args:
            indices: integers in [0, num_samples).
            out: a one-dimensional buffer to read into. Where it is too small a larger one is allocated, so a caller
                that passes ``packed.base`` of the last call soon reads without allocating.

        Returns:
            packed uint8 (total,), a view of the buffer, and offsets int64 (k + 1,):
            sample ``indices[j]`` is ``packed[offsets[j]:offsets[j + 1]]``.

        Raises:
            DataError: the file ends early or cannot be read.
        """
        indices = np.asarray(indices, dtype=np.int64)
        assert indices.ndim == 1
        assert indices.size == 0 or (indices.min() >= 0 and indices.max() < self.num_samples)
        offsets = np.zeros(len(indices) + 1, dtype=np.int64)
        np.cumsum(self._lengths[indices], out=offsets[1:])
        total = int(offsets[-1])
        if out is None or out.size < total:
            out = np.empty(total if out is None else total + total // 4, dtype=np.uint8)
        packed = out[:total]
        if total == 0:
            return packed, offsets
        view = packed.data
        descriptor = self._open()
        # In the order of the file, so that a disk reads forward; neighbours in one system call.
        order = np.argsort(indices, kind="stable")
        in_file = indices[order]
        starts = np.flatnonzero(np.diff(in_file, prepend=-2) != 1)
        bounds = offsets.tolist()
        for first, last in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
            position = int(self._positions[in_file[first]])
            buffers = [view[bounds[j] : bounds[j + 1]] for j in order[first:last].tolist()]
            self._read_fully(descriptor, buffers, position)
        return packed, offsets

    def read_one(self, index: int) -> bytes:
        """The bytes of one sample; see ``read``."""
        packed, _ = self.read(np.array([index]))
        return packed.tobytes()

    def name(self, index: int) -> str:
        """The original file name of sample ``index``."""
        with open_hdf5(self.path) as file:
            return str(file[self.split]["names"].asstr()[index])

    def close(self) -> None:
        """Close the file in this process; a later read opens it again."""
        if self._pid == os.getpid():
            os.close(self._descriptor)
        self._descriptor = self._pid = -1

    def _open(self) -> int:
        """The file's descriptor in this process; after a fork a new one, so that read-ahead is not shared."""
        if self._pid != os.getpid():
            try:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise DataError(f"data file {str(self.path)!r} cannot be opened any more") from error
            self._pid = os.getpid()
        return self._descriptor

    def _read_fully(self, descriptor: int, buffers: list[memoryview], position: int) -> None:
        """Fill ``buffers`` with what follows ``position``; one preadv may return less than was asked for."""
        while buffers:
            try:
                num_read = os.preadv(descriptor, buffers[:MAX_BUFFERS], position)
            except OSError as error:
                raise DataError(f"data file {str(self.path)!r} cannot be read at byte {position}") from error
            if num_read == 0:
                raise DataError(
                    f"data file {str(self.path)!r} ends at byte {position}, amid the pictures of {self.split}"
                )
            position += num_read
            while buffers and num_read >= len(buffers[0]):
                num_read -= len(buffers.pop(0))
            if num_read > 0:
                buffers[0] = buffers[0][num_read:]
