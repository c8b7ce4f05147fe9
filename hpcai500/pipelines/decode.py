"""Decoding and resizing of one picture with Pillow: the reference for what every pipeline shows."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpcai500.errors import SampleError
from hpcai500.pipelines.hdf5 import ImageSplit
from hpcai500.pipelines.pipeline import BatchPlan

FORMATS = ("JPEG", "PNG")  # what ImageNet holds: 1,281,166 JPEG and one PNG named .JPEG; told apart by content


def decode_window(encoded: Any, size: NDArray[Any], window: NDArray[Any]) -> Image.Image:
    """Decode a window of a picture as RGB; grey, palette and CMYK pictures are converted.

    Args:
        encoded: the file's bytes, any buffer.
        size: height and width the picture must have, in pixels.
        window: top, left, height, width in pixels.

    Raises:
        ValueError: the picture does not decode, or has another size.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            height, width = (int(length) for length in size)
            if picture.size != (width, height):
                raise ValueError(f"it is {picture.height} x {picture.width}, but the file says {height} x {width}")
            top, left, window_height, window_width = (int(number) for number in window)
            if (window_height, window_width) != (height, width):
                part = picture.crop((left, top, left + window_width, top + window_height))
            else:
                picture.load()
                part = picture
            return part.convert("RGB")
    except (ValueError, MemoryError):
        raise
    except (
        Exception
    ) as error:  # damaged files make Pillow's decoders raise nearly anything: OSError, SyntaxError, struct.error ...
        raise ValueError(str(error) or type(error).__name__) from error


def render(encoded: Any, size: NDArray[Any], plan: BatchPlan, row: int, out: NDArray[np.uint8]) -> None:
    """Decode one sample of a plan into ``out``, uint8, shape (side, side, 3).

    Resizing is Pillow's bilinear one, which widens its filter when it shrinks a picture (antialias).

    Raises:
        ValueError: the picture does not decode, or has another size.
    """
    part = decode_window(encoded, size, plan.windows[row])
    side = plan.side
    height, width = (int(length) for length in plan.resized[row])
    top, left = (int(number) for number in plan.corners[row])
    if (part.height, part.width) != (side, side) or (height, width) != (side, side):
        scale_v, scale_h = part.height / height, part.width / width
        # Pillow's filter also reads what lies beside the box, so this equals resizing all and cropping then.
        box = (left * scale_h, top * scale_v, (left + side) * scale_h, (top + side) * scale_v)
        part = part.resize((side, side), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(part)
    out[...] = pixels[:, ::-1] if plan.flips[row] else pixels


def render_batch(
    split: ImageSplit,
    plan: BatchPlan,
    packed: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    *,
    decode_errors: str,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Decode the samples of a plan, whose bytes ``packed`` and ``offsets`` are as ``ImageSplit.read`` returns them.

    Returns: pictures, uint8, shape (n, side, side, 3), and their ids, shape (n,), without those that were skipped.

    Raises:
        SampleError: a picture does not decode and ``decode_errors`` is "stop".
    """
    pictures = np.empty((len(plan.ids), plan.side, plan.side, 3), dtype=np.uint8)
    kept: list[int] = []
    for row, index in enumerate(plan.ids):
        try:
            render(packed[offsets[row] : offsets[row + 1]], split.sizes[index], plan, row, pictures[len(kept)])
        except ValueError as error:
            if decode_errors == "stop":
                raise sample_error(split, int(index), str(error)) from None
        else:
            kept.append(row)
    return pictures[: len(kept)], plan.ids[kept]


def sample_error(split: ImageSplit, index: int, reason: str) -> SampleError:
    """The error that names a picture which does not decode."""
    return SampleError(
        f"{split.path}: {split.split} sample {index} ({split.name(index)}) does not decode ({reason}); "
        "mend the data set, or leave such samples out with decode_errors = 'skip'"
    )
