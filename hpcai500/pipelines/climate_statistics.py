"""Statistics of a folder of climate files, computed on all cores in constant memory.

Workers take runs of samples and give back number, mean and sum of squared deviations of each channel in float64, which
are merged without loss, in the order of the files, as in Chan, Golub and LeVeque, "Updating formulae and a pairwise
algorithm for computing sample variances", 1979, eq. 2.1. So the result does not depend on the number of workers. Beside
them, workers read whole files for their SHA-256.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcai500.errors import DataError
from hpcai500.pipelines.climate import ClimateFile, check_sample
from hpcai500.pipelines.climate_facts import (
    CHANNELS,
    NUM_CHANNELS,
    ChannelStatistics,
    FileFacts,
    Statistics,
    check_sizes_agree,
    dataset_digest,
    statistics_text,
    write_statistics_text,
)
from hpcai500.pipelines.hdf5_writer import Report, report_nothing
from hpcai500.pipelines.worker_pool import run_tasks

RUN_BYTES = 1 << 28  # of fields a worker reads for one task
ORIGIN = "https://extremeweatherdataset.github.io"

Float64Array = NDArray[np.float64]


class Moments(NamedTuple):
    """Of each channel over a number of pixels; arrays of shape (16,), in the channels' units."""

    num_pixels: int
    mean: Float64Array
    squares: Float64Array
    """Sum of squared deviations from the mean."""
    minimum: Float64Array
    maximum: Float64Array

    def merged(self, other: Moments) -> Moments:
        """Of the pixels of both."""
        num_pixels = self.num_pixels + other.num_pixels
        share = other.num_pixels / num_pixels
        delta = other.mean - self.mean
        return Moments(
            num_pixels,
            self.mean + delta * share,
            self.squares + other.squares + delta**2 * (self.num_pixels * share),
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
        )


class Task(NamedTuple):
    """Samples of a training file to read, or a whole file to hash (``last`` is 0)."""

    name: str
    first: int
    last: int


def moments_of(sample: NDArray[np.float32]) -> Moments:
    """Moments of one sample, shape (16, height, width), in float64 throughout."""
    mean, squares = np.empty(NUM_CHANNELS), np.empty(NUM_CHANNELS)
    buffer = np.empty(sample.shape[1:], dtype=np.float64)
    for k, field in enumerate(sample):
        np.copyto(buffer, field)
        mean[k] = buffer.mean()
        buffer -= mean[k]
        squares[k] = np.square(buffer, out=buffer).sum()
    minimum, maximum = sample.min(axis=(1, 2)).astype(np.float64), sample.max(axis=(1, 2)).astype(np.float64)
    return Moments(buffer.size, mean, squares, minimum, maximum)


def do_task(folder: str, task: Task) -> Moments | str:
    """The SHA-256 of a file, or the moments of a run of samples; raises SampleError for a sample that is not sound."""
    path = Path(folder) / task.name
    if task.last == 0:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    file = ClimateFile(path)
    sample = np.empty(file.shape, dtype=np.float32)
    total: Moments | None = None
    for index in range(task.first, task.last):
        file.read(index, sample)
        check_sample(sample, f"data file {str(path)!r}: sample {index}", None)
        moments = moments_of(sample)
        total = moments if total is None else total.merged(moments)
    file.close()
    assert total is not None
    return total


def compute_statistics(
    folder: Path,
    train_files: Sequence[str],
    *,
    num_workers: int | None = None,
    report: Report = report_nothing,
) -> Statistics:
    """Compute the statistics of all ``climo_*.h5`` of a folder and write ``statistics.json`` into it.

    Args:
        folder: where the files are.
        train_files: names of those over which the channels' statistics go.
        num_workers: processes; by default one for each usable core.
        report: is told "statistics", bytes done and bytes in all.

    Raises:
        DataError: a file is missing or wrong, sizes differ, or a channel is constant.
        SampleError: a sample is damaged, holds values that are not finite, or channels in another order.
    """
    folder = Path(folder)
    names = sorted(path.name for path in folder.glob("climo_*.h5"))
    missing = [name for name in train_files if not (folder / name).is_file()]
    if missing or not train_files:
        raise DataError(
            f"{str(folder)!r} lacks {', '.join(missing) or 'training files'}; it holds "
            f"{', '.join(names) or 'no climo_YYYY.h5'}: fetch what is missing, or name others with --train-files"
        )
    train_files = sorted(set(train_files))
    names = sorted({*names, *train_files})
    files = {name: ClimateFile(folder / name) for name in names}
    check_sizes_agree([(name, *file.shape[1:]) for name, file in files.items()], folder)
    sizes_bytes = {name: file.path.stat().st_size for name, file in files.items()}
    tasks = {task: _cost_bytes(task, files, sizes_bytes) for task in _tasks(files, train_files)}
    digests, total = _run(folder, tasks, num_workers, report)
    facts = tuple(
        FileFacts(
            name, sizes_bytes[name], digests[name], file.num_samples, file.shape[1], file.shape[2], file.box_order
        )
        for name, file in files.items()
    )
    statistics = Statistics(
        facts, _channels(total, folder), tuple(train_files), dataset_digest(facts), _provenance(files)
    )
    write_statistics_text(folder, statistics_text(statistics))
    return statistics


def _tasks(files: dict[str, ClimateFile], train_files: Sequence[str]) -> Iterator[Task]:
    """A file is hashed while its samples are read, so that a disk gives it only once."""
    for name, file in files.items():
        yield Task(name, 0, 0)
        if name in train_files:
            step = max(1, RUN_BYTES // (4 * int(np.prod(file.shape))))
            for first in range(0, file.num_samples, step):
                yield Task(name, first, min(first + step, file.num_samples))


def _run(
    folder: Path, tasks: dict[Task, int], num_workers: int | None, report: Report
) -> tuple[dict[str, str], Moments]:
    """Digest of each file, and the moments of all training files; ``tasks`` with the bytes that each reads."""
    digests: dict[str, str] = {}
    parts: dict[Task, Moments] = {}
    done_bytes, all_bytes = 0, sum(tasks.values())
    for task, result in run_tasks(functools.partial(do_task, str(folder)), tasks, num_workers):
        if isinstance(result, str):
            digests[task.name] = result
        else:
            parts[task] = result
        done_bytes += tasks[task]
        report("statistics", done_bytes, all_bytes)
    merged = functools.reduce(Moments.merged, (parts[task] for task in tasks if task in parts))
    return digests, merged


def _cost_bytes(task: Task, files: dict[str, ClimateFile], sizes_bytes: dict[str, int]) -> int:
    if task.last == 0:
        return sizes_bytes[task.name]
    return (task.last - task.first) * 4 * int(np.prod(files[task.name].shape))


def _channels(total: Moments, folder: Path) -> tuple[ChannelStatistics, ...]:
    stds = np.sqrt(total.squares / total.num_pixels)
    for channel, std in zip(CHANNELS, stds, strict=True):
        if not std > 0:
            raise DataError(
                f"the training files of {str(folder)!r} have the same value of channel {channel.name} everywhere, so "
                "it cannot be normalised; fetch or generate them again"
            )
    columns = zip(CHANNELS, total.minimum, total.maximum, total.mean, stds, strict=True)
    return tuple(
        ChannelStatistics(channel.name, channel.unit, *(float(value) for value in values))
        for channel, *values in columns
    )


def _provenance(files: dict[str, ClimateFile]) -> dict[str, Any]:
    """What generated files say of themselves; others are taken for those of the ExtremeWeather data set."""
    stated = {name: stated_provenance(file) for name, file in files.items()}
    (first, provenance), *others = stated.items()
    for name, other in others:
        if other != provenance:
            raise DataError(f"{first} and {name} are of different data sets: {provenance} and {other}; keep them apart")
    return provenance


def stated_provenance(file: ClimateFile) -> dict[str, Any]:
    if file.provenance is None:
        return {
            "source": "extreme_weather",
            "description": "16 fields of CAM5 four times a day, with boxes of extreme weather",
            "origin": ORIGIN,
        }
    try:
        provenance = json.loads(file.provenance)
    except ValueError:
        provenance = None
    if not isinstance(provenance, dict) or "source" not in provenance:
        raise DataError(
            f"data file {str(file.path)!r} has the attribute provenance = {file.provenance!r}; expected JSON with a "
            "'source'"
        )
    return {key: value for key, value in provenance.items() if key != "year"}  # the file's, not the data set's
