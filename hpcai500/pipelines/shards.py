"""Which samples a rank has in which batch: the same for whatever is read."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hpcai500 import sample_order
from hpcai500.errors import UsageError


class ShardedConfig(Protocol):
    """What the settings of every pipeline have in common."""

    @property
    def batch_size_per_rank(self) -> int: ...
    @property
    def validation_batch_size(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def num_ranks(self) -> int: ...
    @property
    def seed(self) -> int: ...


class Shards:
    """The batches of a rank, as arrays of sample ids.

    Attributes:
        num_steps_per_epoch: complete global batches.
        num_dropped_per_epoch: samples of the last, incomplete one.
    """

    def __init__(self, config: ShardedConfig, num_train_samples: int, num_validation_samples: int, path: Path) -> None:
        """Cut the splits of the data at ``path`` into batches.

        Raises:
            UsageError: the rank does not exist, or there are too few training samples for the ranks or their batch.
        """
        if not 0 <= config.rank < config.num_ranks:
            raise UsageError(
                f"rank = {config.rank!r} does not exist among {config.num_ranks} ranks; give 0 to "
                f"{config.num_ranks - 1}"
            )
        if config.num_ranks > num_train_samples:
            raise UsageError(
                f"{config.num_ranks} ranks are more than the {num_train_samples} training samples of {path}; "
                "start fewer ranks or use more data"
            )
        global_batch_size = config.batch_size_per_rank * config.num_ranks
        if global_batch_size > num_train_samples:
            raise UsageError(
                f"a global batch of {global_batch_size} ({config.num_ranks} ranks of {config.batch_size_per_rank}) is "
                f"larger than the {num_train_samples} training samples of {path}; give a batch size per rank of "
                f"at most {num_train_samples // config.num_ranks}"
            )
        self._config = config
        self._num_train_samples, self._num_validation_samples = num_train_samples, num_validation_samples
        shares = (num_train_samples, config.batch_size_per_rank, config.num_ranks)
        self.num_steps_per_epoch = sample_order.num_steps(*shares)
        self.num_dropped_per_epoch = sample_order.num_dropped(*shares)

    def train(self, epoch: int, first_step: int) -> list[NDArray[np.int64]]:
        """The rank's batches of an epoch from a step on.

        Raises:
            UsageError: the epoch has no such step.
        """
        if not 0 <= first_step <= self.num_steps_per_epoch:
            raise UsageError(
                f"first_step = {first_step!r} is not a step of the epoch; give 0 to {self.num_steps_per_epoch}"
            )
        config = self._config
        order = sample_order.epoch_order(config.seed, epoch, self._num_train_samples)
        return [
            sample_order.step_ids(order, step, config.batch_size_per_rank, config.rank, config.num_ranks)
            for step in range(first_step, self.num_steps_per_epoch)
        ]

    def validation(self) -> list[NDArray[np.int64]]:
        """The rank's batches of the validation samples, each of which some rank has once; the last may be short."""
        size = self._config.validation_batch_size
        shard = sample_order.validation_ids(self._num_validation_samples, self._config.rank, self._config.num_ranks)
        return [shard[start : start + size] for start in range(0, len(shard), size)]
