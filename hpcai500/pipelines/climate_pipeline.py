"""What all pipelines of climate fields share: settings, sharding, order, turns and boxes.

A pipeline brings the samples of a folder of climate files (hpcai500/pipelines/climate.py) to the device as normalised
batches with padded boxes. Subclasses of :class:`ClimatePipeline` only say how a planned batch is read and normalised.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hpcai500.errors import UsageError
from hpcai500.pipelines.climate import ClimateSplit
from hpcai500.pipelines.climate_facts import CLASS_NAMES, check_sizes_agree, used_digest
from hpcai500.pipelines.climate_transform import Turn, pad_boxes, plan_turns, turn_boxes
from hpcai500.pipelines.pipeline import open_named
from hpcai500.pipelines.shards import Shards

PIPELINES = {
    "dali": ("hpcai500.pipelines.climate_dali", "DaliClimatePipeline"),
    "torch": ("hpcai500.pipelines.climate_torch", "TorchClimatePipeline"),
}


@dataclass(frozen=True, kw_only=True)
class ClimatePipelineConfig:
    """Settings of a pipeline of climate fields.

    Attributes:
        folder: holds climo_YYYY.h5 files and statistics.json.
        split_files: names of the files of "train" and "validation".
        num_train_samples, num_validation_samples: use only the first so many of each; None for all.
        batch_size_per_rank, validation_batch_size: samples per batch of this rank.
        rank, num_ranks: this rank and how many share the data.
        seed: decides order, mirrors and rolls together with the epoch.
        device: "cpu" or "cuda:N"; where batches arrive.
        num_workers: threads that read; 0 reads in the calling thread, when a batch is asked for.
        prefetch: batches made ready ahead.
        channels_last: memory format of the batches.
        mirror: mirror half of the training samples in the equator.
        roll: move each training sample by a random number of columns.
    """

    folder: Path
    split_files: Mapping[str, Sequence[str]]
    batch_size_per_rank: int
    validation_batch_size: int
    seed: int
    num_train_samples: int | None = None
    num_validation_samples: int | None = None
    rank: int = 0
    num_ranks: int = 1
    device: str = "cpu"
    num_workers: int = 0
    prefetch: int = 2
    channels_last: bool = False
    mirror: bool = True
    roll: bool = True

    def check(self) -> None:
        """Refuse what no data set can satisfy.

        Raises:
            UsageError: a setting is out of range; the message names it.
        """
        least = {
            "batch_size_per_rank": 1,
            "validation_batch_size": 1,
            "num_ranks": 1,
            "num_workers": 0,
            "prefetch": 1,
        }
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise UsageError(f"{name} = {getattr(self, name)!r} is too small; give at least {minimum}")
        lacking = [split for split in ("train", "validation") if split not in self.split_files]
        if lacking:
            raise UsageError(f"split_files names no files for {' and '.join(lacking)}; give a list for each")


class BoxBatch(NamedTuple):
    """Samples on the device."""

    images: torch.Tensor
    """float32, shape (n, 16, height, width), normalised."""
    boxes: torch.Tensor
    """float32, shape (n, 32, 4): x1, y1, x2, y2 in pixels; zeros where there is none."""
    labels: torch.Tensor
    """int64, shape (n, 32): class + 1, and 0 where there is no box."""
    ids: NDArray[np.int64]
    """Index of each sample in its split, shape (n,); on the host."""


class BatchPlan(NamedTuple):
    """What one batch holds."""

    ids: NDArray[np.int64]
    turns: list[Turn]
    """Of each sample."""


def plan_batch(
    config: ClimatePipelineConfig, split: ClimateSplit, epoch: int | None, ids: NDArray[np.int64]
) -> BatchPlan:
    """Random turns of training samples; where ``epoch`` is None, validation samples as they are."""
    if epoch is None:
        return BatchPlan(ids, [Turn()] * len(ids))
    width = split.shape[2]
    return BatchPlan(ids, plan_turns(config.seed, epoch, ids, width, mirror=config.mirror, roll=config.roll))


def planned_boxes(split: ClimateSplit, plan: BatchPlan, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (n, 32, 4) and labels (n, 32) of a planned batch, on the device."""
    _, height, width = split.shape
    boxes, labels = pad_boxes(
        [turn_boxes(*split.boxes(int(i)), turn, height, width) for i, turn in zip(plan.ids, plan.turns, strict=True)]
    )
    return boxes.to(device, non_blocking=True), labels.to(device, non_blocking=True)


class ClimatePipeline(ABC):
    """What all pipelines of climate fields share: opening and checking the data, sharding and order."""

    def __init__(self, config: ClimatePipelineConfig) -> None:
        config.check()
        self.config = config
        files = config.split_files
        self.train = ClimateSplit(config.folder, files["train"], config.num_train_samples, split="train")
        self.validation = ClimateSplit(config.folder, files["validation"], config.num_validation_samples)
        sizes = [(split.files[0].path.name, *split.shape[1:]) for split in (self.train, self.validation)]
        check_sizes_agree(sizes, config.folder)
        self.num_train_samples = self.train.num_samples
        self.num_validation_samples = self.validation.num_samples
        self.num_classes = len(CLASS_NAMES)
        self.train_bytes = self.train.num_bytes
        self.dataset_sha256 = used_digest(self.train.statistics, config.split_files)
        self.provenance = self.train.statistics.provenance
        self.num_skipped = 0  # a damaged sample always stops the run
        self.device = torch.device(config.device)
        self._running: dict[str, Generator[BoxBatch, None, None]] = {}
        self.shards = Shards(config, self.num_train_samples, self.num_validation_samples, config.folder)
        self.num_steps_per_epoch = self.shards.num_steps_per_epoch
        self.num_dropped_per_epoch = self.shards.num_dropped_per_epoch

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[BoxBatch]:
        """Batches of this rank in an epoch, from a step on. One iterator at a time: a new one ends the old one.

        Raises:
            SampleError: a sample is damaged, or holds values that are not finite or channels in another order.
        """
        return self._start("train", self.train, epoch, self.shards.train(epoch, first_step))

    def validation_batches(self) -> Iterator[BoxBatch]:
        """Batches of this rank's shard of the validation samples, each once; the last batch may be short.

        Raises:
            SampleError: a sample is damaged, or holds values that are not finite or channels in another order.
        """
        return self._start("validation", self.validation, None, self.shards.validation())

    def _start(
        self, name: str, split: ClimateSplit, epoch: int | None, todo: list[NDArray[np.int64]]
    ) -> Iterator[BoxBatch]:
        """End the iterator of this split that is still running: threads and buffers serve one at a time."""
        if name in self._running:
            self._running[name].close()
        self._running[name] = self._load(split, (plan_batch(self.config, split, epoch, ids) for ids in todo))
        return self._running[name]

    @abstractmethod
    def _load(self, split: ClimateSplit, plans: Iterator[BatchPlan]) -> Generator[BoxBatch, None, None]:
        """Bring batches to the device, one for each plan, in order."""

    def close(self) -> None:
        """End what is running and close the files; subclasses also end their threads."""
        for batches in self._running.values():
            batches.close()
        self.train.close()
        self.validation.close()


def open_climate_pipeline(name: str, config: ClimatePipelineConfig) -> ClimatePipeline:
    """Open a pipeline by name: "dali" or "torch".

    Raises:
        UnknownNameError: there is no such pipeline.
        BackendUnavailableError: its library is not installed; the message says how to get it.
        UsageError: a setting is out of range, or does not fit the data.
        DataError: a file or the statistics are missing, damaged or of another form.
    """
    pipeline: ClimatePipeline = open_named(PIPELINES, name, config)
    return pipeline
