"""Generates a folder of ``climo_YYYY.h5`` with physically plausible weather, in the layout of the ExtremeWeather data.

    hpcai500 data generate-weather --height 128 --width 192 --train 1979=320 --validation 1997=64 --output data/weather

Each sample is written where it belongs, by many processes, past HDF5; memory holds one sample a process. A year is
complete when its file has its final name; a killed run goes on with the years that are missing.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcai500.datasets.extreme_weather.grid import Grid
from hpcai500.datasets.extreme_weather.weather import MAX_BOXES, snapshot
from hpcai500.errors import DataError, UsageError
from hpcai500.pipelines.climate_boxes import BOX_ORDERS, ORDER_ATTRIBUTE
from hpcai500.pipelines.climate_facts import NUM_CHANNELS, STATISTICS_NAME
from hpcai500.pipelines.hdf5_copy import explained
from hpcai500.pipelines.hdf5_writer import Report, report_nothing
from hpcai500.pipelines.worker_pool import run_tasks
from hpcai500.version import __version__

RECIPE_VERSION = 1  # changes whenever the same recipe gives other bytes
FLOAT_BYTES = 4
MIN_HEIGHT, MAX_HEIGHT = 64, 2048
MAX_YEAR = 9999

Task = tuple[str, int, int, int]  # partial file, where its images begin in bytes, year, index


@dataclass(frozen=True)
class WeatherRecipe:
    """What to generate: everything that decides the bytes.

    ``height`` and ``width`` in cells; ``samples_by_year`` says how many snapshots the file of each year has.
    """

    seed: int
    height: int
    width: int
    samples_by_year: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"seed {self.seed} is not possible; valid are 0 to 2**64 - 1")
        if not MIN_HEIGHT <= self.height <= MAX_HEIGHT or not self.height <= self.width <= 2 * self.height:
            raise UsageError(
                f"{self.height} x {self.width} cells are not possible; valid are heights of {MIN_HEIGHT} to "
                f"{MAX_HEIGHT} and widths of 1 to 2 heights, such as 128 x 192 or 768 x 1152"
            )
        if not self.samples_by_year:
            raise UsageError("no year is given; name at least one with its number of samples, such as 1979 with 100")
        for year, number in self.samples_by_year.items():
            if not 0 < year <= MAX_YEAR or number < 1:
                raise UsageError(
                    f"{number} samples of year {year} are not possible; valid are years 1 to {MAX_YEAR} with 1 sample "
                    "or more"
                )

    def provenance(self) -> dict[str, Any]:
        """What each file says of its making, besides its year."""
        return {
            "source": "generated_weather",
            "seed": self.seed,
            "recipe_version": RECIPE_VERSION,
            "created_by": f"hpcai500 {__version__}",
        }


def generate(
    folder: Path, recipe: WeatherRecipe, *, num_workers: int | None = None, report: Report = report_nothing
) -> list[Path]:
    """Write the years of ``recipe`` into ``folder``, which is made if it is not there; returns their files.

    Years that a killed attempt at the same recipe completed are kept.

    Raises:
        UsageError: ``folder`` has something else in it, which is never overwritten.
        DataError: the disk is full or cannot be written.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files = {year: folder / f"climo_{year:04d}.h5" for year in sorted(recipe.samples_by_year)}
    done = sum(recipe.samples_by_year[year] for year in _complete_years(folder, recipe, files))
    total = sum(recipe.samples_by_year.values())
    _check_space(folder, (total - done) * FLOAT_BYTES * NUM_CHANNELS * recipe.height * recipe.width)
    report("generating", done, total)
    for year, path in files.items():
        if path.exists():
            continue
        with explained(path):
            done = _write_year(path, recipe, year, num_workers=num_workers, report=report, done=done)
    return list(files.values())


def _complete_years(folder: Path, recipe: WeatherRecipe, files: dict[int, Path]) -> list[int]:
    """Years whose files are there and of this recipe; everything else in the folder is refused."""
    import h5py

    complete = []
    known = {path.name: year for year, path in files.items()}
    for path in sorted(folder.iterdir()):
        if path.name == STATISTICS_NAME or (path.suffix == ".partial" and path.stem in known):
            continue
        if path.name not in known:
            raise UsageError(
                f"folder {str(folder)!r} has {path.name!r} in it, not of this recipe; give another, empty folder"
            )
        year = known[path.name]
        try:
            with h5py.File(path, "r", locking="best-effort") as file:
                same = (json.loads(file.attrs["provenance"]), file["images"].shape) == (
                    recipe.provenance() | {"year": year},
                    _shape(recipe, year),
                )
        except (OSError, KeyError, ValueError):
            same = False
        if not same:
            raise UsageError(
                f"{str(path)!r} exists, is not of this recipe and is not overwritten; give another, empty folder"
            )
        complete.append(year)
    return complete


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"no space left in {str(folder)!r}: its files need {needed:,} bytes more and {free:,} are free; make room"
        )


def _shape(recipe: WeatherRecipe, year: int) -> tuple[int, int, int, int]:
    return recipe.samples_by_year[year], NUM_CHANNELS, recipe.height, recipe.width


def _write_year(
    path: Path, recipe: WeatherRecipe, year: int, *, num_workers: int | None, report: Report, done: int
) -> int:
    """Write one file; returns how many samples there are with it."""
    import h5py

    number, total = recipe.samples_by_year[year], sum(recipe.samples_by_year.values())
    partial = path.with_name(path.name + ".partial")
    begin = _create(partial, recipe, year)
    boxes = np.full((number, MAX_BOXES, 5), -1, np.int32)
    write = functools.partial(write_sample, recipe.seed, recipe.height, recipe.width)
    tasks: list[Task] = [(str(partial), begin, year, index) for index in range(number)]
    for task, rows in run_tasks(write, tasks, num_workers):
        boxes[task[-1]] = rows
        done += 1
        report("generating", done, total)
    with h5py.File(partial, "r+", locking="best-effort") as file:
        file["boxes"][...] = boxes
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    partial.rename(path)
    return done


def _create(partial: Path, recipe: WeatherRecipe, year: int) -> int:
    """Make the file with both tables allocated; returns where the images begin, in bytes."""
    import h5py

    shape = _shape(recipe, year)
    with h5py.File(partial, "w", locking="best-effort") as file:
        file.attrs["provenance"] = json.dumps(recipe.provenance() | {"year": year})
        file.create_dataset("boxes", data=np.full((shape[0], MAX_BOXES, 5), -1, np.int32), track_times=False)
        how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        how.set_layout(h5py.h5d.CONTIGUOUS)
        how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        how.set_obj_track_times(False)  # the same recipe gives the same bytes
        kind = h5py.h5t.py_create(np.dtype("<f4"))
        images = h5py.h5d.create(file.id, b"images", kind, h5py.h5s.create_simple(shape), how)
        file["images"].attrs["first_row"] = "south"
        file["boxes"].attrs[ORDER_ATTRIBUTE] = next(iter(BOX_ORDERS))  # as weather.boxes has them
        return int(images.get_offset())


def write_sample(seed: int, height: int, width: int, task: Task) -> npt.NDArray[np.int32]:
    """Make one sample and write its channels to its place; returns its boxes (15, 5)."""
    partial, begin, year, index = task
    fields, rows = snapshot(seed, year, index, _grid(height, width))
    data = memoryview(np.ascontiguousarray(fields, dtype="<f4").tobytes())
    with explained(Path(partial)):
        descriptor = os.open(partial, os.O_WRONLY)
        try:
            position = begin + index * len(data)
            while data:
                written = os.pwrite(descriptor, data, position)
                data, position = data[written:], position + written
        finally:
            os.close(descriptor)
    return rows


@functools.lru_cache(maxsize=1)
def _grid(height: int, width: int) -> Grid:
    return Grid(height, width)  # keeps its interpolation tables from sample to sample
