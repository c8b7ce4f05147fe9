"""Published values: weights, pictures, labels and boxes that every framework can make to the bit.

Each value is a function of a name and an index alone. The words of a name are a SplitMix64 stream (Steele, Lea, Flood,
OOPSLA 2014, figure 16), started at the first 8 bytes of the name's sha256, little endian::

    word(name, i)  = mix64(start(name) + (i + 1) * GOLDEN_GAMMA)  mod 2**64
    signed(name, i)   = (word >> 40) / 2**23 - 1        in [-1, 1), exact in float32
    fraction(name, i) = (word >> 11) / 2**53            in [0, 1), exact in float64

Everything else is one rounding away from these, so that no library's generator, logarithm or cosine matters.
docs/equivalence.rst is the same definition in words.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcai500.sample_order import GOLDEN_GAMMA, mix64

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

PATCHES = 4  # along each axis of an image
GRID = 8  # boxes lie on eighths of a pixel, so that their areas and overlaps are exact in float32
IMAGE_SCALE = np.float32(math.sqrt(3.0))  # gives uniform values a variance of 1


def words(name: str, num_words: int) -> NDArray[np.uint64]:
    """The first words of a name's stream, shape (num_words,)."""
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    steps = np.arange(1, num_words + 1, dtype=np.uint64) * np.uint64(GOLDEN_GAMMA)
    return mix64(np.uint64(start) + steps)


def signed(name: str, shape: tuple[int, ...]) -> Float32Array:
    """Numbers in [-1, 1) of that shape, in the order of their flat index (the last axis runs fastest)."""
    drawn = (words(name, math.prod(shape)) >> np.uint64(40)).astype(np.float32)
    return (drawn * np.float32(2.0**-23) - np.float32(1.0)).reshape(shape)


def fractions(name: str, shape: tuple[int, ...]) -> Float64Array:
    """Numbers in [0, 1) of that shape."""
    drawn = (words(name, math.prod(shape)) >> np.uint64(11)).astype(np.float64)
    return (drawn * 2.0**-53).reshape(shape)


def weights(name: str, shape: tuple[int, ...]) -> Float32Array:
    """Values of a parameter: kernels and matrices, whose first axis is that of their outputs, and vectors.

    Kernels and matrices are uniform with the variance of He et al., ICCV 2015, equation 10 without a rectifier
    (1 / fan_in). Scales of normalisation lie around 1, and around 1/8 where one ends a residual branch: as with the 0
    of Goyal et al. 2017, section 5.1, gradients then stay tame, so that roundings do not grow. Biases lie around 0.
    None is exactly 1 or 0, so that one which is left out shows.
    """
    drawn = signed(name, shape)
    if len(shape) > 1:
        return drawn * np.float32(math.sqrt(3.0 / math.prod(shape[1:])))
    if not name.endswith("weight"):
        return drawn * np.float32(0.125)
    scales: Float32Array = np.float32(1.0) + drawn * np.float32(0.25)
    return scales * np.float32(0.125) if name.endswith("bn3.weight") else scales


def images(name: str, shape: tuple[int, int, int, int]) -> Float32Array:
    """Inputs (batch, channels, height, width) of variance 1: patches of noise.

    Noise of single pixels would all but vanish in a deep network's means, and with it all difference of two images.
    """
    drawn = signed(name, (*shape[:2], PATCHES, PATCHES)) * IMAGE_SCALE
    rows, columns = (np.arange(side) * PATCHES // side for side in shape[2:])
    return np.ascontiguousarray(drawn[:, :, rows][:, :, :, columns])


def labels(name: str, num_labels: int, num_classes: int) -> Int64Array:
    """Classes from 0, shape (num_labels,)."""
    return (words(name, num_labels) % np.uint64(num_classes)).astype(np.int64)


def boxes(name: str, num_boxes: int, *, height: int, width: int) -> Float32Array:
    """Boxes (x1, y1, x2, y2) in an image, shape (num_boxes, 4): sides of an eighth to a half of the image's."""
    drawn = fractions(name, (num_boxes, 4))
    sides = np.array([width, height]) * (0.125 + 0.375 * drawn[:, :2])
    corners = (np.array([width, height]) - sides) * drawn[:, 2:]
    return _on_grid(np.concatenate([corners, corners + sides], axis=1))


def neighbours(name: str, of: Float32Array, *, height: int, width: int) -> Float32Array:
    """Boxes that lie about those given, same shape: each edge is moved by at most an eighth of the box's side."""
    drawn = fractions(name, of.shape)
    exact = of.astype(np.float64)
    sides = np.tile(exact[:, 2:] - exact[:, :2], 2)
    moved = exact + (drawn - 0.5) * 0.25 * sides
    return _on_grid(np.clip(moved, 0.0, np.array([width, height, width, height])))


def _on_grid(values: NDArray[Any]) -> Float32Array:
    rounded: Float32Array = (np.floor(values * GRID) / GRID).astype(np.float32)
    return rounded


class Objects(NamedTuple):
    """What there is on the images of a batch.

    Attributes:
        boxes: float32 (batch, m, 4).
        labels: int64 (batch, m), class + 1.
        regions: float32 (batch, k, 4): neighbours of the objects, and as many boxes anywhere.
    """

    boxes: Float32Array
    labels: Int64Array
    regions: Float32Array


def objects(name: str, batch: int, *, num_objects: int, num_classes: int, height: int, width: int) -> Objects:
    """Objects of a batch and regions to judge, two of them for each object: a neighbour and a stranger."""
    size = {"height": height, "width": width}
    flat = boxes(f"{name}/boxes", batch * num_objects, **size)
    near = neighbours(f"{name}/neighbours", flat, **size)
    far = boxes(f"{name}/strangers", batch * num_objects, **size)
    regions = np.concatenate([near.reshape(batch, -1, 4), far.reshape(batch, -1, 4)], axis=1)
    classes = labels(f"{name}/labels", batch * num_objects, num_classes) + 1
    return Objects(flat.reshape(batch, -1, 4), classes.reshape(batch, -1), regions)
