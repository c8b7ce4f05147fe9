"""The torch pipeline: Pillow in the worker processes of torch's DataLoader; the reference for other pipelines.

Workers hand over whole batches of bytes (uint8), a quarter of what float32 pictures would move between processes or to
the device; the batch is normalised there in one go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from hpcai500.errors import DataError
from hpcai500.pipelines.decode import render_batch
from hpcai500.pipelines.hdf5 import ImageSplit
from hpcai500.pipelines.pipeline import Batch, ImagePipeline, ImagePipelineConfig, plan_batch


class Request(NamedTuple):
    """One batch to make."""

    epoch: int | None
    """None for validation."""
    ids: NDArray[np.int64]


Answer = tuple[torch.Tensor, torch.Tensor] | DataError
"""Pictures, uint8, shape (n, side, side, 3), and ids; or the error as a value, since DataLoader would bury a raised one
in a traceback."""


class Renderer(Dataset[Answer]):
    """Makes batches of a split in whichever process it is; its file is opened there."""

    def __init__(self, config: ImagePipelineConfig, split: ImageSplit) -> None:
        self.config = config
        self.split = split
        self.buffer: NDArray[np.uint8] | None = None

    def __getitem__(self, request: Request) -> Answer:
        config = self.config
        plan = plan_batch(config, self.split, request.epoch, request.ids)
        try:
            packed, offsets = self.split.read(request.ids, self.buffer)
            self.buffer = packed if packed.base is None else packed.base
            pictures, ids = render_batch(self.split, plan, packed, offsets, decode_errors=config.decode_errors)
        except DataError as error:
            return error
        return torch.from_numpy(pictures), torch.from_numpy(ids)


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


class TorchPipeline(ImagePipeline):
    """Batches by Pillow and torch's DataLoader."""

    def __init__(self, config: ImagePipelineConfig) -> None:
        super().__init__(config)
        self.labels = {
            split.split: torch.from_numpy(split.labels.astype(np.int64)) for split in (self.train, self.validation)
        }
        self.requests = {split.split: Requests() for split in (self.train, self.validation)}
        self.loaders = {split.split: self._loader(split) for split in (self.train, self.validation)}

    def _loader(self, split: ImageSplit) -> DataLoader[Answer]:
        num_workers = self.config.num_workers
        return DataLoader(
            Renderer(self.config, split),
            batch_size=None,  # the sampler asks for whole batches, which a worker makes alone
            sampler=self.requests[split.split],
            collate_fn=as_is,
            num_workers=num_workers,
            prefetch_factor=-(-self.config.prefetch // num_workers) if num_workers else None,  # torch counts per worker
            persistent_workers=num_workers > 0,
            pin_memory=self.device.type == "cuda",
        )

    def _load(self, split: ImageSplit, epoch: int | None, todo: list[NDArray[np.int64]]) -> Iterator[Batch]:
        self.requests[split.split].todo = [Request(epoch, ids) for ids in todo]
        for answer in self.loaders[split.split]:
            if isinstance(answer, DataError):
                raise answer
            pictures, ids = answer
            labels = self.labels[split.split][ids].to(self.device, non_blocking=True)
            yield Batch(self.normalise(pictures), labels, ids.numpy())

    def close(self) -> None:
        """End the workers."""
        super().close()
        self.loaders.clear()
