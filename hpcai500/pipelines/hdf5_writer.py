"""Writes pictures into one HDF5 file (format of hdf5.py), from many processes, resumable and in constant memory.

First pass: the caller states the sizes of all inputs; from them every byte's place is known. An incomplete file is
made with all tables allocated. Second pass: workers read each input once, take its SHA-256 and its header, and write
the bytes where they belong, past HDF5 (hdf5_copy.py). A journal beside the file records finished chunks, so that after
a kill the same command goes on where it was. Memory holds the names and sizes, and one chunk a worker.

Does not decode or encode anything: pictures that have to be made first go through spool.py.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcai500.durable import sync_path
from hpcai500.errors import DataError, UsageError
from hpcai500.pipelines.conversion_journal import Journal, open_journal
from hpcai500.pipelines.hdf5_copy import SHA256_BYTES, SIZE_BYTES, Chunk, Places, copy_chunk, explained
from hpcai500.pipelines.worker_pool import run_tasks
from hpcai500.version import __version__

CHUNK_BYTES = 4 << 20  # large enough that a system call and a message cost nothing, small enough to stay in cache
CHUNK_SAMPLES = 512
WRITE_BACK_PERIOD_S = 0.1

Report = Callable[[str, int, int], None]  # stage, done, total; in bytes or samples


def report_nothing(stage: str, done: int, total: int) -> None:
    """The report of a conversion that nobody watches."""


@dataclass(frozen=True)
class SplitInputs:
    """Where the pictures of a split are, in their order.

    Sample i is the whole file ``folder / names[i]``; or, where ``packed_every`` is k > 0, the i % k-th piece of the
    file ``folder / f"{split}-{i // k:06d}"``, in which k pieces lie end to end.
    """

    folder: Path
    names: Sequence[str]
    labels: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]  # in bytes
    modified_ns: npt.NDArray[np.int64] | None = None  # so that inputs changed since a kill are noticed
    packed_every: int = 0

    @functools.cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Where each sample begins, in bytes from the first; (n + 1,)."""
        offsets = np.zeros(len(self.lengths) + 1, dtype=np.int64)
        np.cumsum(self.lengths, out=offsets[1:])
        return offsets

    def places(self, split: str, first: int, last: int) -> tuple[list[str], list[int] | None]:
        """Where the samples [first, last) are read: files, and positions in them unless the files are read whole."""
        if self.packed_every == 0:
            folder = f"{self.folder}/"
            return [folder + name for name in self.names[first:last]], None
        chunks = [index // self.packed_every for index in range(first, last)]
        begins = self.offsets[first:last] - self.offsets[np.multiply(chunks, self.packed_every)]
        return [f"{self.folder}/{split}-{chunk:06d}" for chunk in chunks], begins.tolist()


def write_images(
    output: Path,
    splits: dict[str, SplitInputs],
    class_names: Sequence[str],
    provenance: dict[str, Any],
    *,
    num_workers: int | None = None,
    report: Report = report_nothing,
) -> Path:
    """Pack the pictures of ``splits`` (train and validation) into the new file ``output``.

    Raises:
        UsageError: ``output`` exists, or no sample is given.
        DataError: an input is missing, has changed, or is no picture; the disk is full or cannot be written.
    """
    refuse_existing(output)
    for split, inputs in splits.items():
        if len(inputs.names) == 0:
            raise DataError(f"{str(inputs.folder)!r} has no {split} pictures; a data file needs some in each split")
        assert len(inputs.names) == len(inputs.labels) == len(inputs.lengths)
    plan = _plan_digest(splits, class_names, provenance)
    partial = partial_path(output)
    with explained(output), open_journal(journal_path(output)) as journal:
        refuse_existing(output)  # another process may have finished it meanwhile
        if not (partial.exists() and journal.resume(plan)):
            journal.restart()
            _check_space(output, splits)
            _create(partial, splits, class_names, provenance)
        journal.begin(plan)
        with _written_back(partial):
            _copy_all(partial, splits, journal, num_workers, report)
        _complete(partial, journal, provenance)
        partial.rename(output)
        journal.path.unlink()
        sync_path(output.parent)
    return output


def partial_path(output: Path) -> Path:
    """Where the incomplete file lies while ``output`` is being written."""
    return output.with_name(output.name + ".partial")


def journal_path(output: Path) -> Path:
    """Where the record of finished chunks lies while ``output`` is being written."""
    return output.with_name(output.name + ".partial.journal")


def refuse_existing(output: Path) -> None:
    """Raise UsageError if there is something at ``output``: nothing written is ever overwritten."""
    if output.exists():
        raise UsageError(f"{str(output)!r} exists and is not overwritten; give another --output or delete it yourself")
    if not output.parent.is_dir():
        raise UsageError(f"folder {str(output.parent)!r} of --output does not exist; make it first")


# ---------------------------------------------------------------------------------------------------- the file's frame


def _create(
    partial: Path, splits: dict[str, SplitInputs], class_names: Sequence[str], provenance: dict[str, Any]
) -> None:
    """Make the file with all tables allocated; the pictures last, so that a truncated file keeps its tables."""
    import h5py

    from hpcai500.pipelines.hdf5 import FORMAT, FORMAT_VERSION, SPLITS

    text = h5py.string_dtype("utf-8")
    # Without HDF5's lock, here and below: the journal's is ours, and workers of a killed conversion may keep the other.
    # Room for the counts that are known at the end: attributes of fixed size are then changed in place.
    room = len(json.dumps(provenance)) + 300
    with h5py.File(partial, "w", locking=False) as file:
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["complete"] = 0
        file.attrs.create("provenance", b"{}", dtype=h5py.string_dtype("utf-8", room))
        file.attrs.create("dataset_sha256", b"", dtype=h5py.string_dtype("utf-8", 64))
        file.create_dataset("class_names", data=list(class_names), dtype=text)
        for split in SPLITS:
            inputs, group = splits[split], file.create_group(split)
            group.create_dataset("offsets", data=inputs.offsets)
            group.create_dataset("labels", data=inputs.labels.astype(np.int32))
            group.create_dataset("names", data=list(inputs.names), dtype=text)
            _allocate(group, "sizes", (len(inputs.names), 2), np.int32)
            _allocate(group, "sha256", (len(inputs.names), SHA256_BYTES), np.uint8)
        for split in SPLITS:
            _allocate(file[split], "bytes", (int(splits[split].offsets[-1]),), np.uint8)


def _allocate(group: Any, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    """Create a contiguous data set with its place in the file fixed and nothing written."""
    import h5py

    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_layout(h5py.h5d.CONTIGUOUS)
    how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    how.set_obj_track_times(False)  # the same input gives the same bytes
    kind = h5py.h5t.py_create(np.dtype(dtype))
    h5py.h5d.create(group.id, name.encode(), kind, h5py.h5s.create_simple(shape), how)


def _places(partial: Path) -> dict[str, Places]:
    import h5py

    from hpcai500.pipelines.hdf5 import SPLITS

    with h5py.File(partial, "r", locking=False) as file:
        return {
            split: Places(*(file[split][name].id.get_offset() for name in ("bytes", "sizes", "sha256")))
            for split in SPLITS
        }


def _complete(partial: Path, journal: Journal, provenance: dict[str, Any]) -> None:
    """Fill the attributes that need all samples, bring everything to disk and only then say `complete`."""
    import h5py

    from hpcai500.pipelines.hdf5 import SPLITS, dataset_digest

    text = json.dumps({**provenance, "created_by": f"hpcai500 {__version__}", "formats": journal.formats()})
    with h5py.File(partial, "r+", locking=False) as file:
        tables = [(split, file[split]["labels"][:], file[split]["sha256"][:]) for split in SPLITS]
        file.attrs.modify("provenance", text.encode())
        file.attrs.modify("dataset_sha256", dataset_digest(tables).encode())
    sync_path(partial)
    with h5py.File(partial, "r+", locking=False) as file:
        file.attrs.modify("complete", 1)
    sync_path(partial)


# ------------------------------------------------------------------------------------------------- copying the pictures


def _copy_all(
    partial: Path, splits: dict[str, SplitInputs], journal: Journal, num_workers: int | None, report: Report
) -> None:
    total_bytes = sum(int(inputs.offsets[-1]) for inputs in splits.values())
    runs = [run for run in _chunks(splits) if not journal.is_certain(run[:2])]
    places = _places(partial)
    chunks = (
        _chunk(splits[split], (split, first, last), places[split], verify=(split, first) in journal.doubtful)
        for split, first, last in runs
    )
    left_bytes = sum(int(splits[split].offsets[last] - splits[split].offsets[first]) for split, first, last in runs)
    report("writing", total_bytes - left_bytes, total_bytes)
    for chunk, formats in run_tasks(functools.partial(copy_chunk, str(partial)), chunks, num_workers):
        journal.record((chunk.split, chunk.first), formats)
        left_bytes -= sum(chunk.lengths)
        report("writing", total_bytes - left_bytes, total_bytes)


def _chunks(splits: dict[str, SplitInputs]) -> Iterator[tuple[str, int, int]]:
    """Cut the splits into runs [first, last) of at most CHUNK_SAMPLES samples and about CHUNK_BYTES."""
    for split, inputs in splits.items():
        offsets, num_samples, first = inputs.offsets, len(inputs.names), 0
        while first < num_samples:
            last = int(np.searchsorted(offsets, offsets[first] + CHUNK_BYTES, side="right")) - 1
            last = min(max(last, first + 1), first + CHUNK_SAMPLES, num_samples)
            yield split, first, last
            first = last


def _chunk(inputs: SplitInputs, run: tuple[str, int, int], places: Places, *, verify: bool) -> Chunk:
    split, first, last = run
    paths, positions = inputs.places(split, first, last)
    rows = Places(
        places.data + int(inputs.offsets[first]),
        places.sizes + first * SIZE_BYTES,
        places.sha256 + first * SHA256_BYTES,
    )
    return Chunk(split, first, paths, positions, inputs.lengths[first:last].tolist(), rows, verify)


def _plan_digest(splits: dict[str, SplitInputs], class_names: Sequence[str], provenance: dict[str, Any]) -> str:
    """SHA-256 of everything known before the second pass: a journal is only trusted for the very same inputs."""
    settings = [__version__, list(class_names), provenance, CHUNK_BYTES, CHUNK_SAMPLES]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for split, inputs in splits.items():
        digest.update(f"{split} {inputs.folder} {inputs.packed_every}\n".encode())
        digest.update("\n".join(inputs.names).encode("utf-8", "surrogateescape"))
        digest.update(inputs.labels.tobytes() + inputs.lengths.tobytes())
        if inputs.modified_ns is not None:
            digest.update(inputs.modified_ns.tobytes())
    return digest.hexdigest()


def _check_space(output: Path, splits: dict[str, SplitInputs]) -> None:
    needed = sum(int(inputs.offsets[-1]) + 200 * len(inputs.names) for inputs in splits.values())
    free = shutil.disk_usage(output.parent).free
    if needed > free:
        raise DataError(
            f"no space left for {str(output)!r}: it needs {needed:,} bytes and {free:,} are free; make room"
        )


@contextmanager
def _written_back(path: Path) -> Iterator[None]:
    """Bring to disk what is being written, all the time, so that little is left to wait for at the end."""
    stop, errors = threading.Event(), list[OSError]()
    descriptor = os.open(path, os.O_RDWR)

    def write_back() -> None:
        try:
            while not stop.wait(WRITE_BACK_PERIOD_S):
                os.fdatasync(descriptor)
        except OSError as error:  # the system reports it only once, so a later fsync would not see it
            errors.append(error)

    thread = threading.Thread(target=write_back, name="write back", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        os.close(descriptor)
    if errors:
        raise errors[0]
