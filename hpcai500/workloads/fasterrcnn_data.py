"""The climate fields of Faster R-CNN: a folder of ``climo_YYYY.h5`` files with a ``statistics.json``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcai500.edition import Size, Workload
from hpcai500.errors import DataError, UsageError
from hpcai500.workloads.data_source import DataFacts, DataPlace

if TYPE_CHECKING:
    from hpcai500.pipelines.pipeline import Pipeline

USED_SPLITS = ("train", "validation")  # nobody trains on the test years, or looks at them


def describe_data(path: Path, size: Size) -> DataFacts:
    """See DataModule."""
    from hpcai500.pipelines.climate_facts import CHANNELS, describe_folder

    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise DataError(f"{str(path)!r} {what}; give the folder of the climo_YYYY.h5 files")
    facts = describe_folder(path, used_files(size))
    wanted = tuple(size.input[name] for name in ("channels", "height", "width"))
    found = (len(CHANNELS), facts.height, facts.width)
    if found != wanted:
        raise UsageError(
            f"{str(path)!r} holds fields of {' x '.join(map(str, found))} and size {size.name!r} has "
            f"{' x '.join(map(str, wanted))} (channels, height, width); prepare the right data with `hpcai500 data`"
        )
    return DataFacts(
        source=facts.source,
        dataset_sha256=facts.dataset_sha256,
        num_train_samples=facts.num_train_samples,
        num_validation_samples=facts.num_validation_samples,
        num_classes=facts.num_classes,
    )


def staged_files(size: Size) -> tuple[str, ...]:
    """See DataModule."""
    return ("statistics.json", *(name for names in used_files(size).values() for name in names))


def open_data(place: DataPlace, settings: dict[str, Any], rules: Workload, size: Size) -> Pipeline:
    """See DataModule."""
    from hpcai500.pipelines.climate_pipeline import ClimatePipelineConfig, open_climate_pipeline

    return open_climate_pipeline(
        settings["pipeline"],
        ClimatePipelineConfig(
            folder=place.path,
            split_files=used_files(size),
            num_train_samples=size.num_train_samples,
            num_validation_samples=size.num_validation_samples,
            batch_size_per_rank=settings["batch_size_per_rank"],
            validation_batch_size=settings["validation_batch_size"],
            rank=place.rank,
            num_ranks=place.num_ranks,
            seed=place.seed,
            device=place.device,
            num_workers=settings["num_workers"],
            prefetch=settings["prefetch"],
            channels_last=settings["memory_format"] == "channels_last",
            mirror=settings["north_south_mirror"],
            roll=settings["longitude_roll"],
        ),
    )


def used_files(size: Size) -> dict[str, tuple[str, ...]]:
    """The files that a run reads."""
    return {split: size.split_files[split] for split in USED_SPLITS}
