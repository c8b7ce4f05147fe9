"""The pictures of ResNet-50: one HDF5 file that ``hpcai500 data prepare`` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcai500.edition import Size, Workload
from hpcai500.workloads.data_source import DataFacts, DataPlace

if TYPE_CHECKING:
    from hpcai500.pipelines.pipeline import Pipeline


def describe_data(path: Path, size: Size) -> DataFacts:
    """See DataModule."""
    from hpcai500.pipelines.hdf5 import open_images

    info = open_images(path)
    return DataFacts(
        source=info.provenance["source"],
        dataset_sha256=info.dataset_sha256,
        num_train_samples=info.splits["train"].num_samples,
        num_validation_samples=info.splits["validation"].num_samples,
        num_classes=len(info.class_names),
    )


def staged_files(size: Size) -> tuple[str, ...]:
    """See DataModule."""
    return ()


def open_data(place: DataPlace, settings: dict[str, Any], rules: Workload, size: Size) -> Pipeline:
    """See DataModule."""
    from hpcai500.pipelines.image_pipeline import ImagePipelineConfig, open_image_pipeline

    red, green, blue = rules.channel_mean
    red_std, green_std, blue_std = rules.channel_std
    return open_image_pipeline(
        settings["pipeline"],
        ImagePipelineConfig(
            path=place.path,
            num_train_samples=size.num_train_samples,
            num_validation_samples=size.num_validation_samples,
            train_image_size=settings["train_image_size"],
            validation_image_size=size.input["validation_image_size"],
            validation_resize=size.input["validation_resize"],
            crop_area=(settings["crop_area_min"], settings["crop_area_max"]),
            crop_aspect=(settings["crop_aspect_min"], settings["crop_aspect_max"]),
            horizontal_flip=settings["horizontal_flip"],
            mean=(red, green, blue),
            std=(red_std, green_std, blue_std),
            batch_size_per_rank=settings["batch_size_per_rank"],
            validation_batch_size=settings["validation_batch_size"],
            rank=place.rank,
            num_ranks=place.num_ranks,
            seed=place.seed,
            device=place.device,
            num_workers=settings["num_workers"],
            prefetch=settings["prefetch"],
            channels_last=settings["memory_format"] == "channels_last",
            decode_errors=settings["decode_errors"],
        ),
    )
