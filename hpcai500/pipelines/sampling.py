"""What is random about a sample when it is read: pure functions of (seed, epoch, sample), for any number of ranks.

Nothing here keeps a state. Whatever is random comes from a counter (a sample, a draw) and a key (a seed, an epoch), so
a run that is resumed, spread over other ranks or fed by another library sees the same pictures. Which samples there are
in which step is in hpcai500/sample_order.py.

* Draws of one sample: SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014,
  figure 16; mixer: variant 13 of Stafford).
* Random crops: Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6; details as in torchvision's
  ``RandomResizedCrop.get_params``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcai500.sample_order import GOLDEN_GAMMA, MASK_64, mix64

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]
FloatArray = NDArray[np.float64]

NUM_CROP_TRIES = 10  # torchvision's
DRAW_POSITION = 2 * NUM_CROP_TRIES  # draws 0..19 are area and aspect of each try, 20 and 21 top and left
DRAW_FLIP = DRAW_POSITION + 2


def uniforms(seed: int, epoch: int, ids: NDArray[Any], num_draws: int, first_draw: int = 0) -> FloatArray:
    """Random numbers in [0, 1) for samples: each is a function of (seed, epoch, id, number of the draw).

    Returns: shape (len(ids), num_draws). Row i is a SplitMix64 stream, started at the mix of seed, epoch and id.
    """
    key = np.array([seed & MASK_64], dtype=np.uint64)
    for word in (np.uint64(epoch & MASK_64), ids.astype(np.int64).view(np.uint64)):
        key = mix64(mix64(key + np.uint64(GOLDEN_GAMMA)) + word)
    draws = np.arange(first_draw + 1, first_draw + 1 + num_draws, dtype=np.uint64) * np.uint64(GOLDEN_GAMMA)
    words = mix64(key[:, None] + draws)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53  # 53 bits: what a double holds


def random_crops(
    seed: int,
    epoch: int,
    ids: NDArray[Any],
    sizes: NDArray[Any],
    *,
    area: tuple[float, float] = (0.05, 1.0),
    aspect: tuple[float, float] = (0.75, 4 / 3),
) -> Int32Array:
    """Windows of random area and aspect ratio, as torchvision's RandomResizedCrop draws them.

    Ten tries of a uniform area and a log-uniform aspect ratio; the first that fits is placed uniformly. Where none
    fits: the largest central window whose aspect ratio is allowed.

    Args:
        seed: of the run.
        epoch: counted from 0.
        ids: samples, shape (n,).
        sizes: height and width of each picture in pixels, shape (n, 2).
        area: smallest and largest share of the picture.
        aspect: smallest and largest width / height.

    Returns: top, left, height, width in pixels, shape (n, 4).
    """
    n = len(ids)
    draws = uniforms(seed, epoch, ids, DRAW_FLIP)
    heights, widths = sizes[:, 0].astype(np.int64), sizes[:, 1].astype(np.int64)
    log_low, log_high = np.log(aspect)
    areas = (heights * widths)[:, None] * (area[0] + (area[1] - area[0]) * draws[:, 0:DRAW_POSITION:2])
    aspects = np.exp(log_low + (log_high - log_low) * draws[:, 1:DRAW_POSITION:2])
    try_widths = np.rint(np.sqrt(areas * aspects)).astype(np.int64)  # rint rounds half to even, as Python's round
    try_heights = np.rint(np.sqrt(areas / aspects)).astype(np.int64)
    fits = (try_widths > 0) & (try_widths <= widths[:, None]) & (try_heights > 0) & (try_heights <= heights[:, None])
    row, first_fit = np.arange(n), fits.argmax(axis=1)
    central_heights, central_widths = _central_windows(heights, widths, aspect)
    found = fits.any(axis=1)
    crop_heights = np.where(found, try_heights[row, first_fit], central_heights)
    crop_widths = np.where(found, try_widths[row, first_fit], central_widths)
    space_v, space_h = heights - crop_heights, widths - crop_widths
    tops = np.where(found, (draws[:, DRAW_POSITION] * (space_v + 1)).astype(np.int64), space_v // 2)
    lefts = np.where(found, (draws[:, DRAW_POSITION + 1] * (space_h + 1)).astype(np.int64), space_h // 2)
    return np.stack([tops, lefts, crop_heights, crop_widths], axis=1).astype(np.int32)


def _central_windows(heights: Int64Array, widths: Int64Array, aspect: tuple[float, float]) -> tuple[Any, Any]:
    ratios = widths / heights
    central_widths = np.where(ratios > aspect[1], np.rint(heights * aspect[1]).astype(np.int64), widths)
    central_heights = np.where(ratios < aspect[0], np.rint(widths / aspect[0]).astype(np.int64), heights)
    return np.clip(central_heights, 1, heights), np.clip(central_widths, 1, widths)


def random_flips(seed: int, epoch: int, ids: NDArray[Any]) -> NDArray[np.bool_]:
    """Which samples are mirrored left to right: half of them, shape (n,)."""
    return uniforms(seed, epoch, ids, 1, first_draw=DRAW_FLIP)[:, 0] < 0.5


def centre_crops(sizes: NDArray[Any], resize: int, image_size: int) -> tuple[Int32Array, Int32Array]:
    """Geometry of "resize the short side, then crop the centre".

    Rounded as by torchvision's Resize and CenterCrop.

    Args:
        sizes: height and width of each picture in pixels, shape (n, 2).
        resize: short side after resizing in pixels.
        image_size: side of the central square in pixels.

    Returns: height and width after resizing, shape (n, 2); top and left of the square in the resized picture,
    shape (n, 2).
    """
    sizes = sizes.astype(np.int64)
    resized = resize * sizes // sizes.min(axis=1, keepdims=True)
    corners = np.rint((resized - image_size) / 2)  # rint rounds half to even, as Python's round
    return resized.astype(np.int32), corners.astype(np.int32)
