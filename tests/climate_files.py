"""Small folders of climate files for tests, written by plain h5py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcai500.pipelines.climate_facts import CHANNELS, Statistics
from hpcai500.pipelines.climate_statistics import compute_statistics

HEIGHT, WIDTH = 24, 36
SHAPE = (len(CHANNELS), HEIGHT, WIDTH)
SPLIT_FILES = {"train": ["climo_1979.h5", "climo_1980.h5"], "validation": ["climo_1997.h5"]}
NUM_TRAIN, NUM_VALIDATION = 13, 7  # 6 + 7, and 7
UNUSED = [-1] * 5

# x1, y1, x2, y2, class. The first only fits the page's order of columns; two pairs are cut by the file at its seam.
BOXES = [
    [[2, 10, 8, 20, 1]],
    [[30, 3, 36, 9, 2], [0, 3, 4, 9, 2], [12, 14, 20, 18, 0]],
    [],
    [[33, 5, 36, 12, 3], [0, 5, 2, 12, 0]],
]


def sample(seed: int) -> np.ndarray:
    """A plausible sample of SHAPE: noise of a tenth of each channel's range about its middle."""
    rng = np.random.default_rng(seed)
    noise = rng.uniform(-0.5, 0.5, SHAPE)
    low, high = (np.array([channel.plausible[k] for channel in CHANNELS])[:, None, None] for k in range(2))
    return ((low + high) / 2 + 0.1 * (high - low) * noise).astype(np.float32)


def rows_of(boxes: Sequence[Sequence[int]], order: str = "y1 x1 y2 x2") -> np.ndarray:
    """Boxes (x1, y1, x2, y2, class) of a sample as a file has them, (15, 5)."""
    rows = np.full((15, 5), -1, dtype=np.int32)
    for row, (x1, y1, x2, y2, number) in zip(rows, boxes, strict=False):
        row[:] = (y1, x1, y2, x2, number) if order == "y1 x1 y2 x2" else (y1, y2, x1, x2, number)
    return rows


def write_file(
    path: Path,
    images: np.ndarray,
    boxes: np.ndarray,
    *,
    attributes: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """One file; ``options`` are those of h5py's create_dataset for the images."""
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=images, **options)
        file["boxes"] = boxes
        file["boxes"].attrs.update(attributes or {})
    return path


def write_year(path: Path, num_samples: int, first_seed: int, order: str = "y1 x1 y2 x2", **options: Any) -> Path:
    images = np.stack([sample(first_seed + i) for i in range(num_samples)])
    boxes = np.stack([rows_of(BOXES[(first_seed + i) % len(BOXES)], order) for i in range(num_samples)])
    return write_file(path, images, boxes, **options)


def write_folder(folder: Path) -> Path:
    """A folder of three files, each stored in another way, with its statistics: 6 + 7 to train on, 7 to validate.

    Sample i of the split "train" is ``sample(i)``, sample i of "validation" is ``sample(100 + i)``.
    """
    folder.mkdir(exist_ok=True)
    write_year(folder / "climo_1979.h5", 6, 0)
    write_year(folder / "climo_1980.h5", 7, 6, "y1 y2 x1 x2", chunks=(1, *SHAPE))
    write_year(folder / "climo_1997.h5", NUM_VALIDATION, 100, chunks=(1, 2, HEIGHT, WIDTH), compression="gzip")
    compute(folder)
    return folder


def compute(folder: Path, train_files: Sequence[str] | None = None) -> Statistics:
    return compute_statistics(folder, train_files or SPLIT_FILES["train"], num_workers=1)
