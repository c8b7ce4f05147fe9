"""Decoding and resizing of one picture: the reference for what every pipeline shows, which is what Pillow decodes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import interpolate

from hpcai500.errors import SampleError
from hpcai500.pipelines.hdf5 import ImageSplit
from hpcai500.pipelines.image_pipeline import BatchPlan

FORMATS = ("JPEG", "PNG")  # what ImageNet holds: 1,281,166 JPEG and one PNG named .JPEG; told apart by content


def decode_window(encoded: Any, size: NDArray[Any], window: NDArray[Any]) -> NDArray[np.uint8]:
    """Decode a window of a picture as RGB; grey, palette and CMYK pictures are converted.

    Args:
        encoded: the file's bytes, any buffer.
        size: height and width the picture must have, in pixels.
        window: top, left, height, width in pixels.

    Returns: shape (height, width, 3), perhaps a view of the whole picture.

    Raises:
        ValueError: the picture does not decode, or has another size.
    """
    top, left, height, width = (int(number) for number in window)
    pixels = decode_plain_jpeg(encoded, size)
    if pixels is None:
        pixels = decode_any(encoded, size)
    return pixels[top : top + height, left : left + width]


def decode_plain_jpeg(encoded: Any, size: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Decode an undamaged JPEG of YCbCr or grey as RGB, shape (height, width, 3); None if it is anything else.

    simplejpeg gives the bytes that Pillow gives, since both decode with libjpeg-turbo, in three quarters of its time.
    """
    height, width = (int(length) for length in size)
    if height * width > (Image.MAX_IMAGE_PIXELS or 0):
        return None  # Pillow has an answer to decompression bombs
    try:
        if simplejpeg.decode_jpeg_header(encoded)[:3] not in ((height, width, "YCbCr"), (height, width, "Gray")):
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(encoded, "RGB")
    except ValueError:  # also where libjpeg-turbo only warns; Pillow decides what is too damaged
        return None
    return pixels


def decode_any(encoded: Any, size: NDArray[Any]) -> NDArray[np.uint8]:
    """Decode a picture with Pillow as RGB, shape (height, width, 3).

    Raises:
        ValueError: the picture does not decode, or has another size.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            height, width = (int(length) for length in size)
            if picture.size != (width, height):
                raise ValueError(f"it is {picture.height} x {picture.width}, but the file says {height} x {width}")
            return np.array(picture.convert("RGB"))
    except (ValueError, MemoryError):
        raise
    except (
        Exception
    ) as error:  # damaged files make Pillow's decoders raise nearly anything: OSError, SyntaxError, struct.error ...
        raise ValueError(str(error) or type(error).__name__) from error


def render(encoded: Any, size: NDArray[Any], plan: BatchPlan, row: int) -> torch.Tensor:
    """Decode one sample of a plan: uint8, shape (3, side, side), in memory rows of pixels.

    Resizing is torch's bilinear one, which widens its filter when it shrinks a picture (antialias): within one level of
    Pillow's bilinear filter, and more than twice as fast.

    Raises:
        ValueError: the picture does not decode, or has another size.
    """
    # The batch of one is made before the permutation: so its strides are those of channels_last, which torch resizes
    # in three quarters of the time.
    pixels = torch.from_numpy(decode_window(encoded, size, plan.windows[row]))[None].permute(0, 3, 1, 2)
    if plan.flips[row]:
        pixels = pixels.flip(3)
    resized = (int(plan.resized[row, 0]), int(plan.resized[row, 1]))
    if pixels.shape[2:] != resized:
        pixels = interpolate(pixels, resized, mode="bilinear", antialias=True)
    top, left = (int(number) for number in plan.corners[row])
    return pixels[0, :, top : top + plan.side, left : left + plan.side]


def render_batch(
    split: ImageSplit,
    plan: BatchPlan,
    packed: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    out: torch.Tensor,
    *,
    decode_errors: str,
) -> NDArray[np.int64]:
    """Decode the samples of a plan, whose bytes ``packed`` and ``offsets`` are as ``ImageSplit.read`` returns them.

    They go into the first rows of ``out``, uint8, shape (at least n, 3, side, side), of any memory format.

    Returns: ids of the samples that were decoded; the others were skipped.

    Raises:
        SampleError: a picture does not decode and ``decode_errors`` is "stop".
    """
    kept: list[int] = []
    for row, index in enumerate(plan.ids):
        try:
            out[len(kept)] = render(packed[offsets[row] : offsets[row + 1]], split.sizes[index], plan, row)
        except ValueError as error:
            if decode_errors == "stop":
                raise sample_error(split, int(index), str(error)) from None
        else:
            kept.append(row)
    return plan.ids[kept]


def picture_buffer(shape: tuple[int, ...], side: int, *, channels_last: bool) -> torch.Tensor:
    """Undefined bytes for pictures: shape (*shape, 3, side, side), in memory rows of pixels or planes of channels."""
    if channels_last:
        return torch.empty((*shape, side, side, 3), dtype=torch.uint8).movedim(-1, -3)
    return torch.empty((*shape, 3, side, side), dtype=torch.uint8)


def sample_error(split: ImageSplit, index: int, reason: str) -> SampleError:
    """The error that names a picture which does not decode."""
    return SampleError(
        f"{split.path}: {split.split} sample {index} ({split.name(index)}) does not decode ({reason}); "
        "mend the data set, or leave such samples out with decode_errors = 'skip'"
    )
