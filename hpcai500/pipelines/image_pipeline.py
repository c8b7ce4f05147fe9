"""The pipelines of pictures: their settings, and what they share: sharding, order, windows and flips.

A pipeline brings pictures of an HDF5 file (format "hpcai500-images") to the device as normalised batches. Subclasses
of :class:`ImagePipeline` only say how a planned batch is read, decoded and resized; which samples it holds and which
part of each is decided here, so that all pipelines and any number of ranks see the same pictures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hpcai500.errors import SampleError, UnknownNameError, UsageError
from hpcai500.pipelines import sampling
from hpcai500.pipelines.hdf5 import ImageSplit
from hpcai500.pipelines.normalise import Normaliser
from hpcai500.pipelines.pipeline import Pipeline, open_named
from hpcai500.pipelines.shards import Shards

PIPELINES = {
    "dali": ("hpcai500.pipelines.dali", "DaliPipeline"),
    "torch": ("hpcai500.pipelines.torch_loader", "TorchPipeline"),
}
DECODE_ERRORS = ("stop", "skip")


@dataclass(frozen=True, kw_only=True)
class ImagePipelineConfig:
    """Settings of a picture pipeline.

    Attributes:
        path: HDF5 file of format "hpcai500-images".
        num_train_samples, num_validation_samples: use only the first so many of the file; None for all.
        train_image_size, validation_image_size: side of the square pictures in pixels.
        validation_resize: short side in pixels to which validation pictures are resized before the centre is cropped.
        crop_area: smallest and largest share of the picture a training crop covers.
        crop_aspect: smallest and largest aspect ratio (width / height) of a training crop.
        horizontal_flip: mirror half of the training pictures.
        mean, std: per channel (red, green, blue), of pictures with values 0..1.
        batch_size_per_rank, validation_batch_size: samples per batch of this rank.
        rank, num_ranks: this rank and how many share the data.
        seed: decides order, crops and flips together with the epoch.
        device: "cpu" or "cuda:N"; where batches arrive.
        num_workers: processes or threads that decode; 0 decodes in the calling thread, when a batch is asked for.
        prefetch: batches made ready ahead.
        channels_last: memory format of the batches.
        decode_errors: "stop" raises SampleError; "skip" leaves the sample out and counts it.
    """

    path: Path
    train_image_size: int
    validation_image_size: int
    validation_resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    batch_size_per_rank: int
    validation_batch_size: int
    seed: int
    num_train_samples: int | None = None
    num_validation_samples: int | None = None
    crop_area: tuple[float, float] = (0.05, 1.0)
    crop_aspect: tuple[float, float] = (0.75, 4 / 3)
    horizontal_flip: bool = True
    rank: int = 0
    num_ranks: int = 1
    device: str = "cpu"
    num_workers: int = 0
    prefetch: int = 2
    channels_last: bool = False
    decode_errors: str = "stop"

    def check(self) -> None:
        """Refuse what no data set can satisfy.

        Raises:
            UsageError: a setting is out of range; the message names it.
        """
        least = {
            "train_image_size": 1,
            "validation_image_size": 1,
            "validation_resize": self.validation_image_size,
            "batch_size_per_rank": 1,
            "validation_batch_size": 1,
            "num_ranks": 1,
            "num_workers": 0,
            "prefetch": 1,
        }
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise UsageError(f"{name} = {getattr(self, name)!r} is too small; give at least {minimum}")
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise UsageError(
                f"crop_area = {self.crop_area!r} is not possible; give two shares of the picture, "
                "0 < smallest <= largest <= 1"
            )
        if not 0 < self.crop_aspect[0] <= self.crop_aspect[1]:
            raise UsageError(
                f"crop_aspect = {self.crop_aspect!r} is not possible; give two ratios, 0 < smallest <= largest"
            )
        if min(self.std) <= 0:
            raise UsageError(f"std = {self.std!r} is not possible; give three numbers above 0")
        if self.decode_errors not in DECODE_ERRORS:
            raise UnknownNameError("way to treat decode errors", self.decode_errors, DECODE_ERRORS)


class ImageBatch(NamedTuple):
    """Pictures on the device."""

    images: torch.Tensor
    """float32, shape (n, 3, side, side), normalised."""
    labels: torch.Tensor
    """int64, shape (n,)."""
    ids: NDArray[np.int64]
    """Index of each sample in its split, shape (n,); on the host."""


class BatchPlan(NamedTuple):
    """What one batch holds: which samples, which window of each, at what size. All of n samples, in pixels.

    A window of the picture is resized to ``resized``; of that the square at ``corners`` is kept, and mirrored.
    """

    ids: NDArray[np.int64]
    windows: NDArray[np.int32]
    """Top, left, height, width in the picture, shape (n, 4)."""
    resized: NDArray[np.int32]
    """Height and width to which the window is resized, shape (n, 2)."""
    corners: NDArray[np.int32]
    """Top and left of the square in the resized window, shape (n, 2)."""
    flips: NDArray[np.bool_]
    side: int
    """Of the square, in pixels."""


def plan_batch(config: ImagePipelineConfig, split: ImageSplit, epoch: int | None, ids: NDArray[np.int64]) -> BatchPlan:
    """Random windows and flips of training samples; where ``epoch`` is None, the centres of validation pictures."""
    sizes = split.sizes[ids].astype(np.int32)
    flips = np.zeros(len(ids), dtype=np.bool_)
    if epoch is None:
        side = config.validation_image_size
        resized, corners = sampling.centre_crops(sizes, config.validation_resize, side)
        windows = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
        return BatchPlan(ids, windows, resized, corners, flips, side)
    side = config.train_image_size
    windows = sampling.random_crops(config.seed, epoch, ids, sizes, area=config.crop_area, aspect=config.crop_aspect)
    if config.horizontal_flip:
        flips = sampling.random_flips(config.seed, epoch, ids)
    return BatchPlan(ids, windows, np.full_like(sizes, side), np.zeros_like(sizes), flips, side)


class ImagePipeline(ABC):
    """What all picture pipelines share: opening and checking the data, sharding, order, counting of skipped samples."""

    def __init__(self, config: ImagePipelineConfig) -> None:
        config.check()
        self.config = config
        self.train = ImageSplit(config.path, "train", config.num_train_samples)
        self.validation = ImageSplit(config.path, "validation", config.num_validation_samples)
        self.num_train_samples = self.train.num_samples
        self.num_validation_samples = self.validation.num_samples
        self.num_classes = len(self.train.class_names)
        self.train_bytes = self.train.num_bytes
        self.dataset_sha256 = self.train.dataset_sha256
        self.provenance = self.train.provenance
        self.num_skipped = 0
        self.device = torch.device(config.device)
        self.normalise = Normaliser(config.mean, config.std, self.device, channels_last=config.channels_last)
        self._running: dict[str, Generator[ImageBatch, None, None]] = {}
        self.shards = Shards(config, self.num_train_samples, self.num_validation_samples, config.path)
        self.num_steps_per_epoch = self.shards.num_steps_per_epoch
        self.num_dropped_per_epoch = self.shards.num_dropped_per_epoch

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[ImageBatch]:
        """Batches of this rank in an epoch, from a step on. One iterator at a time: a new one ends the old one.

        Raises:
            SampleError: a picture does not decode and ``decode_errors`` is "stop", or no picture of a batch decodes.
        """
        return self._start("train", self._train_batches(epoch, self.shards.train(epoch, first_step)))

    def _train_batches(self, epoch: int, todo: list[NDArray[np.int64]]) -> Generator[ImageBatch, None, None]:
        for ids, batch in zip(todo, self._load(self.train, epoch, todo), strict=True):
            self.num_skipped += len(ids) - len(batch.ids)
            if len(batch.ids) == 0:  # ranks step together, so a rank cannot leave out a step
                raise SampleError(
                    f"{self.config.path}: none of the {len(ids)} pictures of a batch decodes, the first being train "
                    f"sample {ids[0]} ({self.train.name(int(ids[0]))}); mend the data set"
                )
            yield batch

    def validation_batches(self) -> Iterator[ImageBatch]:
        """Batches of this rank's shard of the validation samples, each once; the last batch may be short.

        Raises:
            SampleError: a picture does not decode and ``decode_errors`` is "stop".
        """
        return self._start("validation", self._validation_batches())

    def _start(self, split: str, batches: Generator[ImageBatch, None, None]) -> Iterator[ImageBatch]:
        """End the iterator of this split that is still running: workers and buffers serve one at a time."""
        if split in self._running:
            self._running[split].close()
        self._running[split] = batches
        return batches

    def _validation_batches(self) -> Generator[ImageBatch, None, None]:
        todo = self.shards.validation()
        for ids, batch in zip(todo, self._load(self.validation, None, todo), strict=True):
            self.num_skipped += len(ids) - len(batch.ids)
            if len(batch.ids):
                yield batch

    @abstractmethod
    def _load(self, split: ImageSplit, epoch: int | None, todo: list[NDArray[np.int64]]) -> Iterator[ImageBatch]:
        """Bring batches to the device, one for each array of ids, in order; skipped samples are missing in the batch.

        Args:
            split: to read from.
            epoch: of training; None for validation.
            todo: samples of each batch.
        """

    def close(self) -> None:
        """End what is running and close the files; subclasses also end their workers."""
        for batches in self._running.values():
            batches.close()
        self.train.close()
        self.validation.close()


def open_image_pipeline(name: str, config: ImagePipelineConfig) -> Pipeline:
    """Open a pipeline by name: "dali" or "torch".

    Raises:
        UnknownNameError: there is no such pipeline.
        BackendUnavailableError: its library is not installed; the message says how to get it.
        UsageError: a setting is out of range, or does not fit the data set.
        DataError: the file is missing, damaged or of another kind.
    """
    pipeline: Pipeline = open_named(PIPELINES, name, config)
    return pipeline
