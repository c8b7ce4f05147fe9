"""Small real pictures and folders of them, for the tests of data files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hpcai500.datasets import folder
from hpcai500.pipelines.hdf5_writer import SplitInputs, write_images


def picture_bytes(seed: int, height: int = 40, width: int = 48, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """A picture of noise, so that its file is large for its size."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, quality=90)
    return buffer.getvalue()


def make_class_folders(root: Path, class_names: Sequence[str], num_each: int, seed: int = 0) -> Path:
    """``root / class / class_000k.JPEG`` with pictures of different sizes."""
    for label, name in enumerate(class_names):
        (root / name).mkdir(parents=True)
        for k in range(num_each):
            data = picture_bytes(seed + 1000 * label + k, height=24 + 3 * label + k, width=32 + k)
            (root / name / f"{name}_{k:04d}.JPEG").write_bytes(data)
    return root


def inputs_below(root: Path) -> SplitInputs:
    return folder.scan_split(root, folder.class_folders(root))


def make_data_file(path: Path, num_classes: int = 3, num_train: int = 4, num_validation: int = 2) -> Path:
    """A data file of ``num_train`` and ``num_validation`` pictures of each class; its sources lie beside it."""
    names = [f"class{label}" for label in range(num_classes)]
    sources = path.parent / (path.stem + "-sources")
    train = make_class_folders(sources / "train", names, num_train)
    validation = make_class_folders(sources / "val", names, num_validation, seed=10**6)
    splits = {"train": inputs_below(train), "validation": inputs_below(validation)}
    return write_images(path, splits, names, {"source": "folder", "description": "noise", "origin": "made by a test"})
