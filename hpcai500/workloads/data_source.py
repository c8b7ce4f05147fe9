"""What the run half asks about the data of a workload, answered by ``hpcai500/workloads/NAME_data.py``.

Such a module has three functions. ``describe_data(path, size)`` looks at the data and is called before anything starts,
without torch. ``staged_files(size)`` tells which files a node copies. ``open_data(place, settings, rules, size)`` opens
a rank's pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from hpcai500.edition import Size, Workload
    from hpcai500.pipelines.pipeline import Pipeline


@dataclass(frozen=True)
class DataFacts:
    """What there is at a data path.

    Attributes:
        source: one word for where the data comes from; the size says which it takes.
        dataset_sha256: identifies content and order.
        num_train_samples, num_validation_samples: that are there.
        num_classes: of the data.
    """

    source: str
    dataset_sha256: str
    num_train_samples: int
    num_validation_samples: int
    num_classes: int


@dataclass(frozen=True)
class DataPlace:
    """Where a rank finds its data and what part of it is its own.

    Attributes:
        path: file or folder.
        rank, num_ranks: this rank and how many share the data.
        seed: of the run.
        device: "cpu" or "cuda:N"; where batches arrive.
    """

    path: Path
    rank: int
    num_ranks: int
    seed: int
    device: str


class DataModule(Protocol):
    """A module ``hpcai500/workloads/NAME_data.py``."""

    def describe_data(self, path: Path, size: Size) -> DataFacts:
        """Look at the data.

        Raises:
            DataError: it is missing, damaged or of another kind.
            UsageError: it is not what the size asks for.
        """

    def staged_files(self, size: Size) -> tuple[str, ...]:
        """Names of the files of the data folder that a run reads; none if the data is one file."""

    def open_data(self, place: DataPlace, settings: dict[str, Any], rules: Workload, size: Size) -> Pipeline:
        """Open a rank's pipeline.

        Raises:
            DataError: the data is missing, damaged or of another kind.
            UsageError: a setting does not fit the data.
            BackendUnavailableError: the library of the pipeline is not installed.
        """
