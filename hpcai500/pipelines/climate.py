"""Reads climate fields as the ExtremeWeather data set publishes them: one HDF5 file a year, ``climo_YYYY.h5``.

::

    /images     float32 (n, 16, height, width)      in physical units, channels as in climate_facts.CHANNELS
    /boxes      int (n, up to 15, 5)                 see climate_boxes.py; rows that are all -1 are unused

Row 0 is the southernmost, as CAM5 writes its grid, column 0 is 0 degrees east, and the columns go round the globe. A
file's ``images`` may have an attribute ``first_row`` of "south" that says so; "north" is refused.

A file whose samples lie contiguously, or in one unfiltered chunk each, is read with one preadv(2) a sample, and chunks
packed by gzip, as the published files have them, are read and unpacked by as many threads as ask for samples
(climate_layout.py says why not by h5py). Files stored in other ways are read through h5py.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hpcai500.errors import DataError, SampleError, UsageError
from hpcai500.pipelines.climate_boxes import MAX_FILE_BOXES, ORDER_ATTRIBUTE, read_boxes
from hpcai500.pipelines.climate_facts import (
    CHANNEL_NAMES,
    CHANNELS,
    CLASS_NAMES,
    NUM_CHANNELS,
    Channel,
    Statistics,
    check_sizes_agree,
    check_split,
    read_statistics,
)
from hpcai500.pipelines.climate_layout import (
    DeflatedChunks,
    describe_layout,
    is_deflated,
    require_filters,
    sample_positions,
)
from hpcai500.pipelines.hdf5 import open_hdf5, readable_tables, text_of

__all__ = ["CHANNELS", "CLASS_NAMES", "Channel", "ClimateFile", "ClimateSplit", "Statistics", "read_statistics"]

FloatArray = NDArray[np.float32]

MAX_STANDARD_DEVIATIONS = 10.0
"""A channel whose mean over a sample is further than this from its mean over the training files is another channel, or
in another unit. Regional means differ by less than one standard deviation between samples."""

_H5PY_LOCK = threading.Lock()  # of opening; h5py has its own for reading


class ClimateFile:
    """One file of climate fields, with its boxes in memory.

    Reads are thread-safe. Objects can be pickled and carried over a fork: each process opens the file for itself.

    Attributes:
        path: absolute.
        num_samples: n.
        shape: of a sample, (16, height, width).
        layout: how samples are stored, in words.
        box_order: how the columns of its boxes are read; a key of climate_boxes.BOX_ORDERS.
        provenance: the text of the file's attribute of that name, or None.
        num_bytes: of all samples, as they are stored.
        is_read_directly: whether samples are read with one preadv each.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open and check everything but the fields.

        Raises:
            DataError: the file is missing, truncated, not HDF5, of another form, or its boxes are wrong.
            BackendUnavailableError: it is compressed in a way that needs hdf5plugin.
        """
        self.path = Path(path).absolute()  # a worker process may have another working folder
        with open_hdf5(self.path) as file, readable_tables(self.path):
            images = self._check_images(file)
            self.num_samples: int = images.shape[0]
            self.shape: tuple[int, int, int] = images.shape[1:]
            self.num_bytes: int = images.id.get_storage_size()
            self.layout = describe_layout(images)
            self._positions = sample_positions(images, self.path)
            self._is_deflated = is_deflated(images)
            provenance = file.attrs.get("provenance")
            self.provenance = None if provenance is None else text_of(provenance)
            self._boxes = self._read_boxes(file)
        self.box_order = self._boxes.order
        self._sample_bytes = 4 * NUM_CHANNELS * self.shape[1] * self.shape[2]
        self._forget()

    @property
    def is_read_directly(self) -> bool:
        return self._positions is not None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": -1, "_file": None, "_chunks": None, "_pid": -1}

    def _forget(self) -> None:
        self._descriptor, self._pid = -1, -1
        self._file: h5py.File | None = None
        self._chunks: DeflatedChunks | None = None

    def _check_images(self, file: h5py.File) -> h5py.Dataset:
        place = f"data file {str(self.path)!r}"
        for name in ("images", "boxes"):
            if name not in file or not isinstance(file[name], h5py.Dataset):
                raise DataError(f"{place} has no data set {name!r}; expected a climo_YYYY.h5 of ExtremeWeather")
        images = file["images"]
        if images.ndim != 4 or images.shape[1] != NUM_CHANNELS:
            last = images.ndim == 4 and images.shape[3] == NUM_CHANNELS
            raise DataError(
                f"{place}: 'images' has shape {images.shape}{' with the channels last' if last else ''}; expected "
                f"(n, {NUM_CHANNELS}, height, width), the channels being {' '.join(CHANNEL_NAMES)}"
            )
        if images.dtype != np.dtype("<f4"):
            raise DataError(f"{place}: 'images' holds {images.dtype.str} values; expected <f4 (float32, little-endian)")
        if 0 in images.shape:
            raise DataError(f"{place}: 'images' has shape {images.shape} and so holds nothing; fetch the file again")
        first_row = text_of(images.attrs.get("first_row", "south"))
        if first_row != "south":
            raise DataError(
                f"{place}: 'images' begins with the row in the {first_row}; expected the southernmost first, as in "
                "CAM5's output: turn the rows and the boxes"
            )
        require_filters(images, self.path)
        return images

    def _read_boxes(self, file: h5py.File) -> Any:
        place, dataset = f"data file {str(self.path)!r}", file["boxes"]
        n, _, height, width = file["images"].shape
        if (
            dataset.ndim != 3
            or dataset.shape[0] != n
            or dataset.shape[2] != 5
            or dataset.shape[1] > MAX_FILE_BOXES
            or dataset.dtype.kind not in "iu"
        ):
            raise DataError(
                f"{place}: 'boxes' has shape {dataset.shape} of {dataset.dtype}; expected integers, "
                f"({n}, at most {MAX_FILE_BOXES}, 5)"
            )
        stated = dataset.attrs.get(ORDER_ATTRIBUTE)
        rows = dataset[:].astype(np.int64)
        stated_order = None if stated is None else text_of(stated)
        return read_boxes(rows, height, width, place=place, stated_order=stated_order)

    def boxes(self, index: int) -> tuple[FloatArray, NDArray[np.int64]]:
        """Boxes of a sample, x1, y1, x2, y2 in pixels, shape (k, 4), and their classes, shape (k,); k may be 0."""
        rows = slice(self._boxes.starts[index], self._boxes.starts[index + 1])
        return self._boxes.boxes[rows], self._boxes.classes[rows]

    def read(self, index: int, out: FloatArray) -> None:
        """Read sample ``index``, in physical units, into ``out``: float32, C-contiguous, of ``shape``.

        Raises:
            SampleError: the sample cannot be read: the file is cut short or a chunk is damaged.
        """
        assert 0 <= index < self.num_samples
        assert out.shape == self.shape
        assert out.dtype == np.float32
        assert out.flags.c_contiguous
        self._open()
        try:
            if self._positions is not None:
                self._read_fully(out.data.cast("B"), int(self._positions[index]), index)
            elif self._chunks is not None:
                self._chunks.read(self._descriptor, index, out)
            else:
                assert self._file is not None
                self._file["images"].read_direct(out, np.s_[index])
        except (OSError, OverflowError, RuntimeError) as error:
            raise SampleError(
                f"data file {str(self.path)!r}: sample {index} cannot be read, it is damaged or the disk is; fetch the "
                f"file again ({error})"
            ) from None

    def _read_fully(self, view: memoryview, position: int, index: int) -> None:
        """Fill ``view`` with what follows ``position``; one preadv may return less than was asked for."""
        while view:
            num_read = os.preadv(self._descriptor, [view], position)
            if num_read == 0:
                raise SampleError(
                    f"data file {str(self.path)!r} ends at byte {position}, amid sample {index}; fetch the file again"
                )
            position += num_read
            view = view[num_read:]

    def _open(self) -> None:
        """Open the file in this process; after a fork anew, since neither h5py nor read-ahead may be shared."""
        if self._pid == os.getpid():
            return
        with _H5PY_LOCK:
            if self._pid == os.getpid():
                return
            try:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                if self._positions is None:
                    self._file = open_hdf5(self.path)
                    if self._is_deflated:
                        self._chunks = DeflatedChunks(self._file["images"], f"data file {str(self.path)!r}")
            except OSError as error:
                raise DataError(f"data file {str(self.path)!r} cannot be opened any more") from error
            self._pid = os.getpid()

    def close(self) -> None:
        """Close the file in this process; a later read opens it again."""
        if self._pid == os.getpid():
            if self._file is not None:
                self._file.close()
            if self._descriptor >= 0:
                os.close(self._descriptor)
        self._forget()


class ClimateSplit:
    """The samples of several files one after the other, or the first ``max_samples`` of them.

    Reads are thread-safe; objects can be pickled.

    Attributes:
        folder, num_samples, shape: (16, height, width) of a sample.
        statistics: of the folder.
        dataset_sha256: of the folder.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        file_names: Sequence[str],
        max_samples: int | None = None,
        *,
        split: str = "validation",
    ) -> None:
        """Open the files.

        Raises:
            UsageError: ``max_samples`` is not to be had.
            DataError: the statistics or a file are missing or wrong, or sizes differ; for ``split`` "train" also where
                the statistics are over other files.
        """
        self.folder = Path(folder).absolute()
        self.statistics = read_statistics(self.folder)
        self.dataset_sha256 = self.statistics.dataset_sha256
        check_split(self.statistics, self.folder, split, file_names)
        self.files = [ClimateFile(self.folder / name) for name in file_names]
        check_sizes_agree([(file.path.name, *file.shape[1:]) for file in self.files], self.folder)
        self.shape = self.files[0].shape
        self._ends = np.cumsum([file.num_samples for file in self.files])
        total = int(self._ends[-1])
        if max_samples is not None and not 1 <= max_samples <= total:
            raise UsageError(
                f"{max_samples} {split} samples are not to be had from {str(self.folder)!r}; valid are 1 to {total}"
            )
        self.num_samples = max_samples or total

    def __len__(self) -> int:
        return self.num_samples

    @property
    def num_bytes(self) -> int:
        """Of all samples, as they are stored; of a part of them, their share."""
        return sum(file.num_bytes for file in self.files) * self.num_samples // int(self._ends[-1])

    def locate(self, index: int) -> tuple[ClimateFile, int]:
        """The file that holds sample ``index``, and its number there."""
        assert 0 <= index < self.num_samples
        k = int(np.searchsorted(self._ends, index, side="right"))
        return self.files[k], index - int(self._ends[k]) + self.files[k].num_samples

    def read(self, index: int, out: FloatArray) -> None:
        """See :meth:`ClimateFile.read`."""
        file, number = self.locate(index)
        file.read(number, out)

    def boxes(self, index: int) -> tuple[FloatArray, NDArray[np.int64]]:
        """See :meth:`ClimateFile.boxes`."""
        file, number = self.locate(index)
        return file.boxes(number)

    def check_means(self, index: int, means: Sequence[float], mirrored: bool = False) -> None:
        """Refuse sample ``index`` if the means of its normalised channels, 16 numbers, say that it is not sound.

        Raises:
            SampleError: a channel holds values that are not finite, or is too far off; the message names it.
        """
        if all(abs(mean) <= MAX_STANDARD_DEVIATIONS for mean in means):  # False for NaN
            physical = (
                (mean * facts.std + facts.mean) * (channel.mirrored_sign if mirrored else 1)
                for mean, facts, channel in zip(means, self.statistics.channels, CHANNELS, strict=True)
            )
            if all(
                channel.plausible[0] <= mean <= channel.plausible[1]
                for mean, channel in zip(physical, CHANNELS, strict=True)
            ):
                return
        file, number = self.locate(index)
        sample = np.empty(self.shape, dtype=np.float32)
        file.read(number, sample)
        check_sample(sample, f"data file {str(file.path)!r}: sample {number}", self.statistics)

    def close(self) -> None:
        """Close the files in this process; a later read opens them again."""
        for file in self.files:
            file.close()


def check_sample(sample: FloatArray, place: str, statistics: Statistics | None) -> None:
    """Look at each channel of a sample, shape (16, height, width), in physical units; ``place`` is for the message.

    Raises:
        SampleError: a channel holds values that are not finite, or its mean is not plausible, or more than 10 standard
            deviations off its statistics, where there are any.
    """
    for k, (channel, field) in enumerate(zip(CHANNELS, sample, strict=True)):
        wrong = np.argwhere(~np.isfinite(field))
        if len(wrong):
            row, column = wrong[0]
            raise SampleError(
                f"{place}, channel {channel.name} holds {field[row, column]} at row {row}, column {column}, and is not "
                f"finite at {len(wrong)} of {field.size} pixels; fetch the file again"
            )
        mean, (least, greatest) = float(field.mean(dtype=np.float64)), channel.plausible
        order = f"; are the channels in the order {' '.join(CHANNEL_NAMES)}?"
        if not least <= mean <= greatest:
            raise SampleError(
                f"{place}, channel {channel.name} (number {k}) has a mean of {mean:.4g} {channel.unit}; expected "
                f"{least:g} to {greatest:g}{order}"
            )
        if statistics is None:
            continue
        facts = statistics.channels[k]
        deviations = abs(mean - facts.mean) / facts.std
        if deviations > MAX_STANDARD_DEVIATIONS:
            raise SampleError(
                f"{place}, channel {channel.name} (number {k}) has a mean of {mean:.4g} {channel.unit}, "
                f"{deviations:.0f} standard deviations off the {facts.mean:.4g} of the training files (at most "
                f"{MAX_STANDARD_DEVIATIONS:.0f} are valid){order}"
            )
