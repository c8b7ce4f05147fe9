"""Stores climate files anew so that they can be read faster: contiguously, or in one chunk a sample or channel.

Without compression, contiguous samples and chunks of one sample are read with one system call each. Compressed, chunks
of one channel are read three times as fast as those of one sample: HDF5 takes fresh memory for each chunk, and the
system has to clear what is larger than 32 MiB again and again (benchmarks/weather_reading.rst).

The values stay the same to the last bit, which is verified by reading both; files are written beside and renamed when
they are complete, so that what has its final name is good.
"""

from __future__ import annotations

import functools
import hashlib
import statistics as medians
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from hpcai500.errors import BackendUnavailableError, DataError, UsageError
from hpcai500.pipelines.climate import ClimateFile
from hpcai500.pipelines.climate_facts import (
    STATISTICS_NAME,
    FileFacts,
    Statistics,
    dataset_digest,
    read_statistics,
    statistics_text,
    write_statistics_text,
)
from hpcai500.pipelines.hdf5 import open_hdf5
from hpcai500.pipelines.hdf5_copy import explained
from hpcai500.pipelines.hdf5_writer import Report, report_nothing
from hpcai500.pipelines.worker_pool import run_tasks

LAYOUTS = ("contiguous", "sample-chunks", "channel-chunks")
COMPRESSIONS = ("none", "lz4")
NUM_TIMED_SAMPLES = 5


class Storage(NamedTuple):
    """How files are to be stored: one of LAYOUTS and one of COMPRESSIONS."""

    layout: str
    compression: str


class Repacked(NamedTuple):
    """What became of a folder; seconds to read a sample with a hot page cache, median over some, and bytes in all."""

    files: list[Path]
    bytes_before: int
    bytes_after: int
    read_before_s: float
    read_after_s: float

    def __str__(self) -> str:
        return (
            f"{len(self.files)} files, {self.bytes_before:,} bytes before, {self.bytes_after:,} now; reading a sample "
            f"took {self.read_before_s * 1e3:.1f} ms, now {self.read_after_s * 1e3:.1f} ms: "
            f"{self.read_before_s / self.read_after_s:.2g} times as fast (page cache hot)"
        )


def repack(
    folder: Path,
    output: Path,
    storage: Storage,
    *,
    num_workers: int | None = None,
    report: Report = report_nothing,
) -> Repacked:
    """Write all ``climo_*.h5`` of ``folder`` anew into ``output``, with new statistics if the folder has some.

    Files that an earlier, interrupted call completed are kept.

    Raises:
        UsageError: layout and compression do not go together, or ``output`` is the same folder.
        BackendUnavailableError: hdf5plugin is not installed.
        DataError: a file is damaged, the disk is full, or what was written does not read back the same.
    """
    folder, output = Path(folder), Path(output)
    paths = sorted(folder.glob("climo_*.h5"))
    _check_request(folder, output, storage, paths)
    statistics = read_statistics(folder) if (folder / STATISTICS_NAME).exists() else None
    output.mkdir(parents=True, exist_ok=True)
    todo = [path for path in paths if not (output / path.name).exists()]
    total = sum(path.stat().st_size for path in paths)
    done = total - sum(path.stat().st_size for path in todo)
    for name, _ in run_tasks(
        functools.partial(repack_file, str(folder), str(output), storage), [path.name for path in todo], num_workers
    ):
        done += (folder / name).stat().st_size
        report("repacking", done, total)
    if statistics is not None:
        write_statistics_text(output, statistics_text(_with_new_files(statistics, output)))
    new_paths = [output / path.name for path in paths]
    return Repacked(
        new_paths,
        total,
        sum(path.stat().st_size for path in new_paths),
        reading_time_s(paths[0]),
        reading_time_s(new_paths[0]),
    )


def _check_request(folder: Path, output: Path, storage: Storage, paths: list[Path]) -> None:
    if storage.compression != "none" and storage.layout == "contiguous":
        raise UsageError("contiguous samples cannot be compressed; give --layout channel-chunks or --compression none")
    if not paths:
        raise DataError(f"{str(folder)!r} holds no climo_YYYY.h5; give a folder that does")
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {str(output)!r} is a file; give a folder")
    if output.resolve() == folder.resolve():
        raise UsageError(f"--output {str(output)!r} is the folder itself; give another")
    _creation_options(storage, (1, 1, 1))


def _creation_options(storage: Storage, shape: tuple[int, ...]) -> dict[str, Any]:
    """Options of h5py's create_dataset for samples of ``shape``."""
    if storage.layout == "contiguous":
        return {}
    chunked: dict[str, Any] = {"chunks": (1, *shape) if storage.layout == "sample-chunks" else (1, 1, *shape[1:])}
    if storage.compression == "none":
        return chunked
    try:
        import hdf5plugin
    except ImportError:
        raise BackendUnavailableError(
            "--compression lz4 needs hdf5plugin, which does not import here; get it with `pip install hdf5plugin`, or "
            "give --compression none"
        ) from None
    return chunked | dict(hdf5plugin.Bitshuffle(cname="lz4"))


def repack_file(folder: str, output: str, storage: Storage, name: str) -> None:
    """Write one file anew and verify it."""
    source, target = Path(folder) / name, Path(output) / name
    partial = target.with_name(f"{name}.partial")
    file = ClimateFile(source)
    sample = np.empty(file.shape, dtype=np.float32)
    with explained(target), open_hdf5(source) as old, h5py.File(partial, "w") as new:
        shape = (file.num_samples, *file.shape)
        images = new.create_dataset("images", shape, "<f4", **_creation_options(storage, file.shape))
        for index in range(file.num_samples):
            file.read(index, sample)
            images[index] = sample
        old.copy("boxes", new)
        new.attrs.update(old.attrs)
        images.attrs.update(old["images"].attrs)
    _verify(file, ClimateFile(partial), sample)
    file.close()
    partial.rename(target)


def _verify(before: ClimateFile, after: ClimateFile, sample: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    again = np.empty_like(sample)
    for index in range(before.num_samples):
        before.read(index, sample)
        after.read(index, again)
        boxes, classes = before.boxes(index)
        new_boxes, new_classes = after.boxes(index)
        same_boxes = np.array_equal(boxes, new_boxes) and np.array_equal(classes, new_classes)
        if sample.tobytes() != again.tobytes() or not same_boxes:  # as bytes, for a NaN is not equal to itself
            raise DataError(
                f"{str(after.path)!r}: sample {index} does not read back as it was written; check the disk and repack "
                "again"
            )
    after.close()


def _with_new_files(statistics: Statistics, output: Path) -> Statistics:
    """The same channels, for files of other bytes."""
    facts = []
    for old in statistics.files:
        path = output / old.name
        if path.exists():
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            facts.append(
                FileFacts(
                    old.name,
                    path.stat().st_size,
                    digest,
                    old.num_samples,
                    old.height,
                    old.width,
                    ClimateFile(path).box_order,
                )
            )
    provenance = {**statistics.provenance, "repacked_from": statistics.dataset_sha256}
    return replace(statistics, files=tuple(facts), dataset_sha256=dataset_digest(facts), provenance=provenance)


def reading_time_s(path: Path) -> float:
    """Seconds to read a sample of a file whose bytes are in the page cache, the median over a few samples."""
    file = ClimateFile(path)
    sample = np.empty(file.shape, dtype=np.float32)
    times = []
    for index in range(min(NUM_TIMED_SAMPLES, file.num_samples)):
        file.read(index, sample)  # now its bytes are in the page cache
        start = time.perf_counter()
        file.read(index, sample)
        times.append(time.perf_counter() - start)
    file.close()
    return medians.median(times)
