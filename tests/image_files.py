"""Small HDF5 files of pictures for tests, written in the layout by plain h5py."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image


def picture(seed: int, height: int, width: int) -> Image.Image:
    """A smooth coloured picture with some detail, so that JPEG and resizing have something to do."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, height // 12), max(2, width // 12), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **({"quality": 90} if kind == "JPEG" else {}), **options)
    return out.getvalue()


def pictures(count: int, first_seed: int = 0, sides: tuple[int, int] = (40, 90)) -> list[bytes]:
    rng = np.random.default_rng(first_seed)
    sizes = rng.integers(sides[0], sides[1], (count, 2))
    return [encode(picture(first_seed + i, int(h), int(w))) for i, (h, w) in enumerate(sizes)]


def write(
    path: Path,
    train: Sequence[bytes],
    validation: Sequence[bytes],
    sizes: dict[tuple[str, int], tuple[int, int]] | None = None,
) -> Path:
    """Write samples whose label is their index mod 10; ``sizes`` tells the size of those that have no header."""
    text = h5py.string_dtype("utf-8")
    total = hashlib.sha256()
    with h5py.File(path, "w") as file:
        file.attrs.update({"format": "hpcai500-images", "format_version": 1})
        file.attrs["provenance"] = json.dumps({"source": "generated", "seed": 0})
        file.create_dataset("class_names", data=[f"class {i}" for i in range(10)], dtype=text)
        for split, samples in (("train", train), ("validation", validation)):
            digests = [hashlib.sha256(sample).digest() for sample in samples]
            labels = np.arange(len(samples), dtype=np.int32) % 10
            group = file.create_group(split)
            group["bytes"] = np.frombuffer(b"".join(samples), dtype=np.uint8)
            group["offsets"] = np.cumsum([0] + [len(sample) for sample in samples], dtype=np.int64)
            group["labels"] = labels
            known = {index: size for (name, index), size in (sizes or {}).items() if name == split}
            group["sizes"] = np.array(
                [known.get(i) or Image.open(io.BytesIO(s)).size[::-1] for i, s in enumerate(samples)], dtype=np.int32
            ).reshape(-1, 2)
            group["sha256"] = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32)
            group.create_dataset("names", data=[f"{split}-{i:06d}.JPEG" for i in range(len(samples))], dtype=text)
            total.update(split.encode() + labels.astype("<i4").tobytes() + b"".join(digests))
        file.attrs["dataset_sha256"] = total.hexdigest()
        file.attrs["complete"] = 1
    return path
