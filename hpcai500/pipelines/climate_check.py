"""Checks climate files to the last byte and names each sample that is wrong."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpcai500.errors import DataError, SampleError
from hpcai500.pipelines.climate import ClimateFile, check_sample
from hpcai500.pipelines.climate_facts import STATISTICS_NAME, FileFacts, Statistics, read_statistics
from hpcai500.pipelines.hdf5_check import DataFinding
from hpcai500.pipelines.hdf5_writer import Report, report_nothing
from hpcai500.pipelines.worker_pool import run_tasks

RUN_BYTES = 1 << 28  # of fields a worker reads for one task


class ClimateFinding(DataFinding):
    """Something wrong with a climate file; ``split`` is the file's name, ``index`` its sample, where it is one."""

    def __str__(self) -> str:
        place = "" if self.split is None else self.split
        if self.index is not None:
            place += f", sample {self.index}"
        return f"{place}: {self.what}" if place else self.what


class CheckTask(NamedTuple):
    """Samples of a file to read, or a whole file to compare with its SHA-256 (``last`` is 0)."""

    path: str
    first: int
    last: int


def check_climate(path: Path, *, num_workers: int | None = None, report: Report = report_nothing) -> list[DataFinding]:
    """Everything that is wrong with a folder of climate files, or with one file, in their order; empty if all is sound.

    Files are compared with the checksums of the statistics, boxes with the field, and every channel of every sample is
    read: its values must be finite, its mean plausible and no more than 10 standard deviations off the statistics.

    Raises:
        DataError: there is nothing to check.
    """
    paths = sorted(path.glob("climo_*.h5")) if path.is_dir() else [path]
    if not paths:
        raise DataError(f"{str(path)!r} holds no climo_YYYY.h5; give a folder that does, or one file")
    folder = path if path.is_dir() else path.parent
    findings, statistics = _read_statistics(folder, required=path.is_dir())
    tasks: dict[CheckTask, int] = {}
    for one in paths:
        try:
            file = ClimateFile(one)
        except DataError as error:
            findings.append(ClimateFinding(str(error), one.name))
            continue
        tasks |= _tasks(file, None if statistics is None else statistics.file(one.name))
    done_bytes, all_bytes = 0, sum(tasks.values())
    for task, wrong in run_tasks(functools.partial(check_task, statistics), iter(tasks), num_workers):
        name = Path(task.path).name
        findings += [ClimateFinding(what, name, index) for index, what in wrong]
        done_bytes += tasks[task]
        report("checking", done_bytes, all_bytes)
    return sorted(findings, key=lambda one: (one.split or "", -1 if one.index is None else one.index))


def _read_statistics(folder: Path, *, required: bool) -> tuple[list[DataFinding], Statistics | None]:
    if not required and not (folder / STATISTICS_NAME).exists():
        return [], None
    try:
        statistics = read_statistics(folder)
    except DataError as error:
        return [ClimateFinding(str(error))], None
    missing = [one.name for one in statistics.files if not (folder / one.name).exists()] if required else []
    return [ClimateFinding("the file is missing; the statistics cover it", name) for name in missing], statistics


def _tasks(file: ClimateFile, facts: FileFacts | None) -> dict[CheckTask, int]:
    """Tasks of a file, and the bytes that each reads."""
    path, sample_bytes = str(file.path), 4 * int(np.prod(file.shape))
    tasks = {} if facts is None else {CheckTask(path, 0, 0): facts.size_bytes}
    step = max(1, RUN_BYTES // sample_bytes)
    for first in range(0, file.num_samples, step):
        last = min(first + step, file.num_samples)
        tasks[CheckTask(path, first, last)] = (last - first) * sample_bytes
    return tasks


def check_task(statistics: Statistics | None, task: CheckTask) -> list[tuple[int | None, str]]:
    """What is wrong: the sample, or None for the file, and what it is."""
    if task.last == 0:
        return list(_check_digest(statistics, Path(task.path)))
    file = ClimateFile(task.path)
    sample = np.empty(file.shape, dtype=np.float32)
    wrong: list[tuple[int | None, str]] = []
    for index in range(task.first, task.last):
        try:
            file.read(index, sample)
            check_sample(sample, "", statistics)
        except SampleError as error:
            wrong.append((index, str(error).removeprefix(", ")))
    file.close()
    return wrong


def _check_digest(statistics: Statistics | None, path: Path) -> Iterator[tuple[None, str]]:
    facts = None if statistics is None else statistics.file(path.name)
    assert facts is not None
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != facts.sha256:
        yield None, f"its bytes differ from their SHA-256: it is {digest}, the statistics say {facts.sha256}"
