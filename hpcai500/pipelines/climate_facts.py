"""What is known of climate data without reading it: channels, classes, and the statistics stored beside the files.

A folder holds one HDF5 file a year, ``climo_YYYY.h5``, as the ExtremeWeather data set publishes them (Racah et al.,
"ExtremeWeather", NeurIPS 2017), and ``statistics.json``, which `hpcai500 data stats` writes. This module needs neither
torch nor h5py, so that a plan or a launcher can ask it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpcai500.errors import DataError

STATISTICS_NAME = "statistics.json"
STATISTICS_FORMAT = 1


@dataclass(frozen=True)
class Channel:
    """One field of a sample.

    Attributes:
        name, unit, long_name: as CAM5's output calls it (CAM 5.0 user's guide, "History file fields").
        plausible: least and greatest mean over the globe (each pixel counts alike) that any snapshot can have. Wide
            enough for every season and for generated fields, and narrow enough to tell most channels apart.
        mirrored_sign: what the value is multiplied by when north and south change places: -1 for wind to the north.
    """

    name: str
    unit: str
    long_name: str
    plausible: tuple[float, float]
    mirrored_sign: int = 1


CHANNELS = (
    Channel("PRECT", "m/s", "total precipitation rate", (0.0, 1e-6)),
    Channel("PS", "Pa", "surface pressure", (80_000.0, 106_000.0)),
    Channel("PSL", "Pa", "sea level pressure", (95_000.0, 106_000.0)),
    Channel("QREFHT", "kg/kg", "reference height humidity", (1e-4, 0.03)),
    Channel("T200", "K", "temperature at 200 hPa", (195.0, 239.0)),
    Channel("T500", "K", "temperature at 500 hPa", (239.0, 275.0)),
    Channel("TMQ", "kg/m2", "precipitable water", (2.0, 70.0)),
    Channel("TREFHT", "K", "reference height temperature", (255.0, 312.0)),
    Channel("TS", "K", "surface temperature (radiative)", (255.0, 315.0)),
    Channel("U850", "m/s", "zonal wind at 850 hPa", (-20.0, 20.0)),
    Channel("UBOT", "m/s", "zonal wind at the lowest level", (-20.0, 20.0)),
    Channel("V850", "m/s", "meridional wind at 850 hPa", (-15.0, 15.0), mirrored_sign=-1),
    Channel("VBOT", "m/s", "meridional wind at the lowest level", (-15.0, 15.0), mirrored_sign=-1),
    Channel("Z1000", "m", "geopotential height at 1000 hPa", (-300.0, 500.0)),
    Channel("Z200", "m", "geopotential height at 200 hPa", (10_000.0, 13_500.0)),
    Channel("ZBOT", "m", "height of the lowest level", (20.0, 120.0)),
)
"""In the order of the files (Racah et al., table 1)."""

NUM_CHANNELS = len(CHANNELS)
CHANNEL_NAMES = tuple(channel.name for channel in CHANNELS)

CLASS_NAMES = ("tropical_depression", "tropical_cyclone", "extratropical_cyclone", "atmospheric_river")
"""In the order of the class numbers in the files."""


@dataclass(frozen=True)
class FileFacts:
    """One file, as it was when the statistics were made."""

    name: str
    size_bytes: int
    sha256: str
    num_samples: int
    height: int
    width: int
    box_order: str
    """How its box columns are to be read; see climate_boxes.py."""


@dataclass(frozen=True)
class ChannelStatistics:
    """Of one channel over all pixels of all training files, each counted alike, in the channel's unit."""

    name: str
    unit: str
    min: float
    max: float
    mean: float
    std: float


@dataclass(frozen=True)
class Statistics:
    """What ``statistics.json`` says of a folder."""

    files: tuple[FileFacts, ...]
    channels: tuple[ChannelStatistics, ...]
    train_files: tuple[str, ...]
    """Over which ``channels`` are."""
    dataset_sha256: str
    provenance: dict[str, Any]

    def file(self, name: str) -> FileFacts | None:
        """The facts of a file, or None."""
        return next((one for one in self.files if one.name == name), None)


def dataset_digest(files: Iterable[FileFacts]) -> str:
    """SHA-256 of the lines ``NAME SHA256`` of all files, sorted, each with its line feed."""
    lines = sorted(f"{one.name} {one.sha256}\n" for one in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def used_digest(statistics: Statistics, split_files: Mapping[str, Sequence[str]]) -> str:
    """The digest of the files that training and validation use, whatever else is in the folder."""
    names = {name for split in ("train", "validation") for name in split_files[split]}
    return dataset_digest(one for one in statistics.files if one.name in names)


def statistics_text(statistics: Statistics) -> str:
    """``statistics.json`` for :func:`read_statistics`."""
    return json.dumps({"format": STATISTICS_FORMAT, **asdict(statistics)}, indent=2) + "\n"


def write_statistics_text(folder: Path, text: str) -> None:
    """Write ``statistics.json`` so that it is whole or not there; raises DataError where it cannot be written."""
    path = folder / STATISTICS_NAME
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{str(path)!r} cannot be written") from error


def read_statistics(folder: Path) -> Statistics:
    """The statistics of a folder, compared with the sizes of those of its files that are there.

    Raises:
        DataError: the folder or its statistics are missing, cannot be read, or a file has another size than they say.
    """
    path = Path(folder) / STATISTICS_NAME
    try:
        text = path.read_text()
    except FileNotFoundError:
        if not Path(folder).is_dir():
            what = "is a file" if Path(folder).exists() else "does not exist"
            raise DataError(
                f"the data folder {str(folder)!r} {what}; give a folder that holds climo_YYYY.h5 files"
            ) from None
        raise DataError(f"{str(path)!r} does not exist; write it with `hpcai500 data stats {folder}`") from None
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read") from error
    try:
        statistics = _parse(json.loads(text))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{str(path)!r} is damaged ({type(error).__name__}: {error}); write it again with "
            f"`hpcai500 data stats {folder}`"
        ) from None
    _compare_sizes(statistics, Path(folder))
    return statistics


def _parse(content: Mapping[str, Any]) -> Statistics:
    if content["format"] != STATISTICS_FORMAT:
        raise ValueError(f"format {content['format']!r}, this version of hpcai500 reads {STATISTICS_FORMAT}")
    statistics = Statistics(
        files=tuple(FileFacts(**one) for one in content["files"]),
        channels=tuple(ChannelStatistics(**one) for one in content["channels"]),
        train_files=tuple(content["train_files"]),
        dataset_sha256=content["dataset_sha256"],
        provenance=dict(content["provenance"]),
    )
    names = tuple(channel.name for channel in statistics.channels)
    if names != CHANNEL_NAMES:
        raise ValueError(f"channels {' '.join(names)}, expected {' '.join(CHANNEL_NAMES)}")
    for channel in statistics.channels:
        if not (math.isfinite(channel.mean) and math.isfinite(channel.std) and channel.std > 0):
            raise ValueError(f"channel {channel.name} has mean {channel.mean} and std {channel.std}")
    if dataset_digest(statistics.files) != statistics.dataset_sha256:
        raise ValueError("dataset_sha256 is not that of its files")
    return statistics


def _compare_sizes(statistics: Statistics, folder: Path) -> None:
    for one in statistics.files:
        path = folder / one.name
        if path.exists() and path.stat().st_size != one.size_bytes:
            raise DataError(
                f"{str(path)!r} has {path.stat().st_size} bytes, {one.size_bytes} when its statistics were made; "
                f"copy it again, or run `hpcai500 data stats {folder}` if the change was meant"
            )


def check_split(statistics: Statistics, folder: Path, split: str, file_names: Sequence[str]) -> list[FileFacts]:
    """The facts of the files of one split, in its order.

    Raises:
        DataError: the split names no file, or one that is missing, or that the statistics do not cover; or the
            statistics are over other training files; or sizes of fields differ.
    """
    if not file_names:
        raise DataError(f"the split {split!r} of {str(folder)!r} names no file; give at least one, as climo_1979.h5")
    missing = [name for name in file_names if not (folder / name).is_file()]
    if missing:
        present = sorted(path.name for path in folder.glob("climo_*.h5"))
        raise DataError(
            f"{str(folder)!r} lacks {', '.join(missing)} of the split {split!r}; it holds "
            f"{', '.join(present) or 'no climo_YYYY.h5'}: fetch what is missing, or give another --data folder"
        )
    facts = [statistics.file(name) for name in file_names]
    unknown = [name for name, one in zip(file_names, facts, strict=True) if one is None]
    if unknown:
        raise DataError(
            f"the statistics of {str(folder)!r} do not cover {', '.join(unknown)}; "
            f"run `hpcai500 data stats {folder}` again"
        )
    if split == "train" and sorted(file_names) != sorted(statistics.train_files):
        raise DataError(
            f"the statistics of {str(folder)!r} are over {', '.join(statistics.train_files)}, but the training files "
            f"are {', '.join(file_names)}; run `hpcai500 data stats {folder} --train-files {' '.join(file_names)}`"
        )
    found = [one for one in facts if one is not None]
    check_sizes_agree([(one.name, one.height, one.width) for one in found], folder)
    return found


def check_sizes_agree(sizes: Sequence[tuple[str, int, int]], folder: Path) -> None:
    """Raise DataError unless all of (file name, height, width) have one height and width."""
    first_name, *first = sizes[0]
    for name, *size in sizes[1:]:
        if size != first:
            raise DataError(
                f"files of mixed sizes in {str(folder)!r}: {first_name} holds fields of {first[0]} x {first[1]}, "
                f"{name} of {size[0]} x {size[1]}; keep fields of one size in a folder"
            )


@dataclass(frozen=True)
class FolderFacts:
    """What a run says of its data before it reads any."""

    source: str
    """"extreme_weather" or "generated_weather"."""
    dataset_sha256: str
    num_train_samples: int
    num_validation_samples: int
    num_classes: int
    height: int
    width: int
    provenance: dict[str, Any]


def describe_folder(folder: Path, split_files: Mapping[str, Sequence[str]]) -> FolderFacts:
    """What the statistics say of the split ``{"train": file names, "validation": file names}`` of a folder.

    Raises:
        DataError: as :func:`read_statistics` and :func:`check_split`.
    """
    folder = Path(folder)
    statistics = read_statistics(folder)
    splits = {split: check_split(statistics, folder, split, split_files[split]) for split in ("train", "validation")}
    check_sizes_agree([(one.name, one.height, one.width) for files in splits.values() for one in files], folder)
    return FolderFacts(
        source=str(statistics.provenance.get("source", "unknown")),
        dataset_sha256=used_digest(statistics, split_files),
        num_train_samples=sum(one.num_samples for one in splits["train"]),
        num_validation_samples=sum(one.num_samples for one in splits["validation"]),
        num_classes=len(CLASS_NAMES),
        height=splits["train"][0].height,
        width=splits["train"][0].width,
        provenance=statistics.provenance,
    )
