"""The torch pipeline: Pillow in the worker processes of torch's DataLoader; the reference for other pipelines.

Workers write pictures as bytes, a quarter of float32, into shared memory that is used again and again, and DataLoader
only carries which samples they are: fresh shared memory for each batch, as DataLoader makes it by itself, costs more
in page faults than in copying. The batch is normalised on its device in one go.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from hpcai500.errors import DataError
from hpcai500.pipelines.decode import picture_buffer, render_batch
from hpcai500.pipelines.hdf5 import ImageSplit
from hpcai500.pipelines.image_pipeline import ImageBatch, ImagePipeline, ImagePipelineConfig, plan_batch


class Request(NamedTuple):
    """One batch to make."""

    epoch: int | None
    """None for validation."""
    ids: NDArray[np.int64]
    slot: int
    """Which part of the shared memory receives it."""


class Answer(NamedTuple):
    """What a worker sends when the pictures are in their slot."""

    slot: int
    ids: NDArray[np.int64]
    """Of the samples that were decoded."""
    error: DataError | None
    """As a value, since DataLoader would bury a raised one in a traceback."""


class Renderer(Dataset[Answer]):
    """Makes batches of a split in whichever process it is; its file is opened there."""

    def __init__(self, config: ImagePipelineConfig, split: ImageSplit, num_slots: int) -> None:
        self.config = config
        self.split = split
        training = split.split == "train"
        side = config.train_image_size if training else config.validation_image_size
        batch_size = config.batch_size_per_rank if training else config.validation_batch_size
        batch_size = min(batch_size, split.num_samples)
        self.slots = picture_buffer((num_slots, batch_size), side, channels_last=config.channels_last)
        if config.num_workers:
            self.slots.untyped_storage().share_memory_()
        self.buffer: NDArray[np.uint8] | None = None

    def __getitem__(self, request: Request) -> Answer:
        plan = plan_batch(self.config, self.split, request.epoch, request.ids)
        try:
            packed, offsets = self.split.read(request.ids, self.buffer)
            self.buffer = packed if packed.base is None else packed.base
            out = self.slots[request.slot]
            ids = render_batch(self.split, plan, packed, offsets, out, decode_errors=self.config.decode_errors)
        except DataError as error:
            return Answer(request.slot, request.ids[:0], error)
        return Answer(request.slot, ids, None)


class Requests:
    """The sampler of a DataLoader that lives for many epochs: yields whatever was asked for last."""

    def __init__(self) -> None:
        self.todo: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self.todo)

    def __len__(self) -> int:
        return len(self.todo)


def as_is(answer: Any) -> Any:
    """Take the place of DataLoader's own conversion of batches."""
    return answer


def fork_server() -> ForkServerContext:
    """Starts workers from a process without threads, which has imported what they need.

    A fork of this process may deadlock: torch, MPI, DALI and the queues of other workers have threads that hold locks.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


class Loader:
    """The workers of one split."""

    def __init__(self, config: ImagePipelineConfig, split: ImageSplit) -> None:
        num_workers = config.num_workers
        per_worker = -(-config.prefetch // num_workers) if num_workers else None  # torch counts per worker
        # DataLoader asks for batch k when it has taken batch k - num_ahead from a worker, so one slot more suffices.
        num_ahead = num_workers * (per_worker or 0)
        self._renderer = Renderer(config, split, num_ahead + 1)
        self._requests = Requests()
        self._loader: DataLoader[Answer] = DataLoader(
            self._renderer,
            batch_size=None,  # the sampler asks for whole batches, which a worker makes alone
            sampler=self._requests,
            collate_fn=as_is,
            num_workers=num_workers,
            prefetch_factor=per_worker,
            persistent_workers=num_workers > 0,
            multiprocessing_context=fork_server() if num_workers else None,
        )

    def run(self, epoch: int | None, todo: list[NDArray[np.int64]]) -> Iterator[tuple[torch.Tensor, NDArray[np.int64]]]:
        """Pictures of each batch, uint8, shape (n, 3, side, side), valid until the next one, and ids, shape (n,)."""
        num_slots = len(self._renderer.slots)
        self._requests.todo = [Request(epoch, ids, step % num_slots) for step, ids in enumerate(todo)]
        for answer in self._loader:
            if answer.error is not None:
                raise answer.error
            yield self._renderer.slots[answer.slot][: len(answer.ids)], answer.ids

    def close(self) -> None:
        """End the workers, which DataLoader does when it goes; a traceback may keep this object, but not that one."""
        del self._loader


class TorchPipeline(ImagePipeline):
    """Batches by Pillow and torch's DataLoader."""

    def __init__(self, config: ImagePipelineConfig) -> None:
        super().__init__(config)
        self._loaders = {split.split: Loader(config, split) for split in (self.train, self.validation)}

    def _load(self, split: ImageSplit, epoch: int | None, todo: list[NDArray[np.int64]]) -> Iterator[ImageBatch]:
        for pictures, ids in self._loaders[split.split].run(epoch, todo):
            labels = torch.from_numpy(split.labels[ids].astype(np.int64)).to(self.device, non_blocking=True)
            yield ImageBatch(self.normalise(pictures), labels, ids)

    def close(self) -> None:
        """End the workers."""
        super().close()
        while self._loaders:
            self._loaders.popitem()[1].close()
