"""What the engine needs of a pipeline and its batches, whatever they hold.

A pipeline brings the samples of a data set to the device in batches. Which samples a batch holds is decided by the seed
alone (hpcai500/sample_order.py), and so is what is random about them (hpcai500/pipelines/sampling.py), so that all
pipelines and any number of ranks see the same ones.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpcai500.errors import UnknownNameError


class Batch(Protocol):
    """Samples on the device; what else a batch holds is between its pipeline and its workload."""

    @property
    def ids(self) -> NDArray[np.int64]:
        """Index of each sample in its split, shape (n,); on the host."""


class Pipeline(Protocol):
    """What the engine needs of a pipeline."""

    num_steps_per_epoch: int
    num_dropped_per_epoch: int
    num_train_samples: int
    num_validation_samples: int
    num_classes: int
    train_bytes: int
    """Of all training samples, as they are stored."""
    dataset_sha256: str
    provenance: dict[str, Any]
    num_skipped: int
    """Samples this rank has left out so far because they do not decode."""

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Batches of this rank in an epoch, from a step on. One iterator at a time: a new one ends the old one."""

    def validation_batches(self) -> Iterator[Batch]:
        """Batches of this rank's shard of the validation samples, each once; the last batch may be short."""

    def close(self) -> None:
        """End workers and let go of files and buffers."""


def open_named(pipelines: Mapping[str, tuple[str, str]], name: str, config: Any) -> Any:
    """Make the pipeline of that name, of a table of modules and classes, with its settings.

    Raises:
        UnknownNameError: there is no such pipeline.
    """
    if name not in pipelines:
        raise UnknownNameError("pipeline", name, pipelines)
    module, class_name = pipelines[name]
    return getattr(importlib.import_module(module), class_name)(config)
