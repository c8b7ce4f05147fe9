"""Checks a file of pictures (format of hdf5.py) to the last byte and names each sample that is wrong.

Tables are checked first, then workers read all pictures and compare them with their SHA-256 and the size in their
header, and decode them if asked to. A file that lost its end is still checked: what is gone reads as zeros.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from hpcai500.pipelines.hdf5 import (
    SPLITS,
    TruncatedError,
    check_kind,
    dataset_digest,
    open_hdf5,
    readable_tables,
    text_of,
)
from hpcai500.pipelines.hdf5_writer import CHUNK_BYTES, CHUNK_SAMPLES, Report, report_nothing
from hpcai500.pipelines.image_header import read_header
from hpcai500.pipelines.worker_pool import run_tasks


@dataclass(frozen=True)
class DataFinding:
    """Something wrong with a data file; ``index`` and ``name`` are those of the sample, where it is one."""

    what: str
    split: str | None = None
    index: int | None = None
    name: str | None = None

    def __str__(self) -> str:
        place = "" if self.split is None else f"{self.split}: "
        if self.index is not None:
            place = f"{self.split} sample {self.index} ({self.name}): "
        return place + self.what


class Row(NamedTuple):
    """What the tables say of one sample; ``position`` in the file and ``length`` in bytes."""

    sample: int
    position: int
    length: int
    sha256: bytes
    height: int
    width: int


class CheckTask(NamedTuple):
    """A run of samples that one worker checks."""

    split: str
    rows: list[Row]


def check_images(
    path: Path, *, decode: bool = False, num_workers: int | None = None, report: Report = report_nothing
) -> list[DataFinding]:
    """Everything that is wrong with the file at ``path``, in the order of the file; empty where it is sound.

    Raises:
        DataError: it cannot be checked: missing, of another kind or version, incomplete, or without its tables.
    """
    with readable_tables(path), _open_even_if_truncated(path) as (file, findings):
        check_kind(file, path)
        for split in SPLITS:
            findings.extend(_check_tables(file, split))
        if not findings:
            findings.extend(_check_digest(file))
        tasks, total_bytes = _tasks(file), sum(file[split]["bytes"].shape[0] for split in SPLITS)
        done_bytes = 0
        for task, wrong in run_tasks(functools.partial(check_rows, str(path), decode), tasks, num_workers):
            findings.extend(
                DataFinding(what, task.split, index, _name(file, task.split, index)) for index, what in wrong
            )
            done_bytes += sum(row.length for row in task.rows)
            report("checking", min(done_bytes, total_bytes), total_bytes)
    return sorted(findings, key=lambda one: (one.split or "", -1 if one.index is None else one.index))


# ----------------------------------------------------------------------------------------------------------- the tables


def _check_tables(file: h5py.File, split: str) -> list[DataFinding]:
    group = file[split]
    offsets, labels = group["offsets"][:].astype(np.int64), group["labels"][:]
    num_samples, num_bytes, num_classes = len(offsets) - 1, group["bytes"].shape[0], file["class_names"].shape[0]
    findings = []
    if num_samples < 1:
        return [DataFinding("there are no samples", split)]
    for column in ("labels", "sizes", "sha256", "names"):
        length = group[column].shape[0]
        if length < num_samples:
            what = f"{num_samples - length} samples from this one on have no {column.rstrip('s')}"
            findings.append(DataFinding(what, split, length, _name(file, split, length)))
        elif length > num_samples:
            findings.append(DataFinding(f"there are {length} {column} for {num_samples} samples", split))
    for index in np.flatnonzero((labels < 0) | (labels >= num_classes)).tolist():
        what = f"label {labels[index]} is out of range; {num_classes} classes have labels 0 to {num_classes - 1}"
        findings.append(DataFinding(what, split, index, _name(file, split, index)))
    if offsets[0] != 0 or offsets[-1] != num_bytes:
        what = f"offsets go from {offsets[0]} to {offsets[-1]}; expected 0 to {num_bytes}"
        findings.append(DataFinding(what, split))
    for index in np.flatnonzero(~_is_readable(offsets, num_bytes)).tolist():
        what = f"offsets {offsets[index]} to {offsets[index + 1]} are not a range within {num_bytes} bytes"
        findings.append(DataFinding(what, split, index, _name(file, split, index)))
    return findings


def _is_readable(offsets: npt.NDArray[np.int64], num_bytes: int) -> npt.NDArray[np.bool_]:
    """Which samples have offsets that make sense; (n,)."""
    return (offsets[:-1] >= 0) & (offsets[:-1] < offsets[1:]) & (offsets[1:] <= num_bytes)


def _check_digest(file: h5py.File) -> list[DataFinding]:
    found = dataset_digest([(split, file[split]["labels"][:], file[split]["sha256"][:]) for split in SPLITS])
    expected = text_of(file.attrs["dataset_sha256"])
    if found == expected:
        return []
    return [DataFinding(f"labels or checksums were changed: the data set's digest is {found}, expected {expected}")]


def _name(file: h5py.File, split: str, index: int) -> str:
    names = file[split]["names"]
    return text_of(names[index]) if index < names.shape[0] else "no name"


# --------------------------------------------------------------------------------------------------------- the pictures


def _tasks(file: h5py.File) -> Iterator[CheckTask]:
    for split in SPLITS:
        group = file[split]
        offsets = group["offsets"][:].astype(np.int64)
        position = group["bytes"].id.get_offset() or 0
        num_samples = min(len(offsets) - 1, group["sha256"].shape[0], group["sizes"].shape[0])
        usable = _is_readable(offsets, group["bytes"].shape[0])[:num_samples]
        step = max(1, min(CHUNK_SAMPLES, CHUNK_BYTES * max(num_samples, 1) // max(group["bytes"].shape[0], 1)))
        for first in range(0, num_samples, step):
            last = min(first + step, num_samples)
            digests, sizes = group["sha256"][first:last], group["sizes"][first:last].tolist()
            rows = [
                Row(
                    index,
                    position + int(offsets[index]),
                    int(offsets[index + 1] - offsets[index]),
                    digests[index - first].tobytes(),
                    *sizes[index - first],
                )
                for index in range(first, last)
                if usable[index]
            ]
            if rows:
                yield CheckTask(split, rows)


def check_rows(path: str, decode: bool, task: CheckTask) -> list[tuple[int, str]]:
    """The samples of ``task`` that are wrong, each with what is wrong with it."""
    wrong = []
    with Path(path).open("rb", buffering=0) as file:
        for row in task.rows:
            data = os.pread(file.fileno(), row.length, row.position)
            what = _what_is_wrong(row, data, decode)
            if what is not None:
                wrong.append((row.sample, what))
    return wrong


def _what_is_wrong(row: Row, data: bytes, decode: bool) -> str | None:
    if len(data) < row.length:
        return f"the file ends amid it: {len(data)} of {row.length} bytes are there"
    if hashlib.sha256(data).digest() != row.sha256:
        return "its bytes differ from their SHA-256"
    try:
        header = read_header(memoryview(data))
    except ValueError as error:
        return f"it {error}"
    if (header.height, header.width) != (row.height, row.width):
        return f"it is {header.height} x {header.width} pixels, the table says {row.height} x {row.width}"
    return _decoding_error(data) if decode else None


def _decoding_error(data: bytes) -> str | None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
    except Exception as error:  # Pillow's decoders raise many kinds; each means the same here
        return f"it does not decode ({error})"
    return None


# ------------------------------------------------------------------------------------------------------ truncated files


class _Padded(io.RawIOBase):
    """A file that lost its end, as if the lost part were zeros: HDF5 refuses to open one that is too short."""

    def __init__(self, path: Path, num_bytes: int) -> None:
        self._file = path.open("rb")
        self._num_bytes = num_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            return self._file.seek(self._num_bytes + offset)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        buffer[len(data) :] = bytes(len(buffer) - len(data))
        return len(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def _open_even_if_truncated(path: Path) -> Iterator[tuple[h5py.File, list[DataFinding]]]:
    """The open file, and what there is to say about its length."""
    findings = []
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_hdf5(path))
        except TruncatedError as error:
            expected = _stored_size(path)
            padded = stack.enter_context(_Padded(path, expected))
            try:
                file = stack.enter_context(h5py.File(padded, "r"))
            except (OSError, RuntimeError):
                raise error from None
            findings.append(DataFinding(f"the file is truncated: {path.stat().st_size} of {expected} bytes are there"))
        yield file, findings


def _stored_size(path: Path) -> int:
    """The size that the file's superblock of version 0 states: "End of File Address" (HDF5 File Format 3.0, II.A)."""
    with path.open("rb") as file:
        superblock = file.read(48)
    return int.from_bytes(superblock[40:48], "little")
