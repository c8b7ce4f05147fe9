"""From a raw climate sample to a normalised one: mirrored in the equator, turned in longitude, in one fused pass.

A mirrored field is a state of the other hemisphere: rows change places, and wind to the north becomes wind to the south
(an east-west mirror would turn cyclones the wrong way round, for the Coriolis force does not follow). A turned field
is the same globe seen from another meridian, so columns move round and a box may come to lie across the seam.

The code is torch's throughout, so that it runs wherever the raw sample is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hpcai500.pipelines import sampling
from hpcai500.pipelines.climate_facts import CHANNELS, Statistics

MAX_BOXES = 32
"""Boxes of a sample in a batch: a file has up to 15 a sample, and the seam may cut each in two."""
MIN_PART = 0.25
"""A part narrower than this share of its box, which the seam cut off, is no object of its own."""

FloatArray = NDArray[np.float32]
Int64Array = NDArray[np.int64]


class Turn(NamedTuple):
    """What is done to a sample."""

    mirror: bool = False
    roll: int = 0
    """Columns by which it is moved to the east, 0 <= roll < width."""


def plan_turns(seed: int, epoch: int, ids: Int64Array, width: int, *, mirror: bool, roll: bool) -> list[Turn]:
    """Draw the turn of each sample of ``ids``, shape (n,), from the seed, the epoch and its number alone.

    Args:
        seed: of the run.
        epoch: counted from 0.
        ids: samples.
        width: columns of a sample.
        mirror: mirror half of them.
        roll: move each by a uniform number of columns.
    """
    draws = sampling.uniforms(seed, epoch, ids, 2)
    return [Turn(mirror and bool(u < 0.5), int(v * width) if roll else 0) for u, v in draws]


class Transform:
    """(x - mean) / std per channel, with mirror and roll, on one device.

    Args:
        statistics: of the channels, in physical units.
        shape: (16, height, width) of a sample.
        device: of the raw and the normalised samples.
    """

    def __init__(self, statistics: Statistics, shape: tuple[int, int, int], device: torch.device) -> None:
        signs = [[1] * len(CHANNELS), [channel.mirrored_sign for channel in CHANNELS]]
        self._scales = [
            [sign / facts.std for sign, facts in zip(row, statistics.channels, strict=True)] for row in signs
        ]
        shifts = torch.tensor([-facts.mean / facts.std for facts in statistics.channels], dtype=torch.float64)
        self._shifts = list(shifts.to(device, torch.float32))
        rows = torch.arange(shape[1], device=device)
        self._rows = (rows, rows.flip(0))
        self._device = device
        self._field = shape[1:]

    def scratch(self) -> torch.Tensor:
        """One field, (height, width), for a caller's thread to pass to every call."""
        return torch.empty(self._field, dtype=torch.float32, device=self._device)

    def __call__(self, raw: torch.Tensor, out: torch.Tensor, turn: Turn, scratch: torch.Tensor) -> torch.Tensor:
        """Normalise a sample, (16, height, width) in physical units, into ``out``, of the same shape.

        ``out`` may be ``raw`` itself. It goes channel by channel, since a field stays in the cache between turning it
        (one copy of rows for each piece of columns), scaling and shifting it (one operation) and taking its mean, which
        tells whether all values are finite.

        Returns: mean of each normalised channel, shape (16,), on the device; not finite where a value is not.
        """
        means = torch.empty(len(raw), dtype=torch.float32, device=self._device)
        scales, rows = self._scales[turn.mirror], self._rows[turn.mirror]
        pieces = _pieces(turn.roll, raw.shape[2])
        for k, (field, normalised) in enumerate(zip(raw.unbind(), out.unbind(), strict=True)):
            if turn != Turn():
                for piece, place in pieces:
                    torch.index_select(field[:, piece], 0, rows, out=scratch[:, place])
            source = field if turn == Turn() else scratch
            torch.add(self._shifts[k], source, alpha=scales[k], out=normalised)
            torch.mean(normalised, (0, 1), out=means[k])
        return means


def _pieces(roll: int, width: int) -> list[tuple[slice, slice]]:
    """Columns to take, and where to put them."""
    if roll == 0:
        return [(slice(None), slice(None))]
    return [(slice(0, width - roll), slice(roll, width)), (slice(width - roll, width), slice(0, roll))]


def join_at_seam(boxes: FloatArray, classes: Int64Array, width: int) -> tuple[FloatArray, Int64Array]:
    """Put together boxes that a file cut at its seam: of one class and the same rows, one ending at the last column,
    the other beginning at the first.

    Args:
        boxes: x1, y1, x2, y2 in pixels, shape (k, 4).
        classes: shape (k,).
        width: of the field in pixels.

    Returns: boxes, of which x2 is beyond ``width`` in those that lie across the seam, and their classes.
    """
    whole = (boxes[:, 0] == 0) & (boxes[:, 2] == width)
    wests = np.flatnonzero((boxes[:, 2] == width) & ~whole)
    easts = np.flatnonzero((boxes[:, 0] == 0) & ~whole)
    if len(wests) == 0 or len(easts) == 0:
        return boxes, classes
    keys = np.column_stack([classes.astype(np.float32), boxes[:, 1], boxes[:, 3]])
    fits = (keys[wests][:, None] == keys[easts][None]).all(axis=2)
    boxes, gone = boxes.copy(), np.zeros(len(boxes), dtype=np.bool_)
    for west, row in zip(wests, fits, strict=True):  # at most a few of at most 15
        for east in easts[row]:
            if not gone[east]:
                boxes[west, 2] = width + boxes[east, 2]
                gone[east] = True
                break
    return boxes[~gone], classes[~gone]


def turn_boxes(
    boxes: FloatArray, classes: Int64Array, turn: Turn, height: int, width: int
) -> tuple[FloatArray, Int64Array]:
    """Boxes of a mirrored and rolled sample; those that come to lie across the seam are cut there.

    Args:
        boxes: x1, y1, x2, y2 in pixels, shape (k, 4).
        classes: shape (k,).
        turn: of the sample.
        height: of the field in pixels.
        width: of the field in pixels.

    Returns: boxes within the field, shape (m, 4), m <= 2 k, and their classes. A part narrower than a quarter of its
    box is left out.
    """
    if turn == Turn() or len(boxes) == 0:
        return boxes, classes
    boxes, classes = join_at_seam(boxes, classes, width)
    x1, y1, x2, y2 = boxes.T
    if turn.mirror:
        y1, y2 = height - y2, height - y1
    lengths = np.minimum(x2 - x1, width)
    round_the_globe = lengths >= width
    lefts = np.where(round_the_globe, 0, (x1 + turn.roll) % width)
    rights = lefts + lengths
    parts = np.stack([lefts, y1, np.minimum(rights, width), y2], axis=1)
    beyond = np.stack([np.zeros_like(lefts), y1, rights - width, y2], axis=1)
    both, lengths = np.concatenate([parts, beyond]), np.concatenate([lengths, lengths])
    widths = both[:, 2] - both[:, 0]
    kept = (widths > 0) & (widths >= MIN_PART * lengths)
    return both[kept].astype(np.float32), np.concatenate([classes, classes])[kept]


def pad_boxes(samples: list[tuple[FloatArray, Int64Array]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes and classes of n samples as a batch.

    Returns: boxes float32, (n, 32, 4), and labels int64, (n, 32): class + 1, and 0 where there is no box.
    """
    boxes = np.zeros((len(samples), MAX_BOXES, 4), dtype=np.float32)
    labels = np.zeros((len(samples), MAX_BOXES), dtype=np.int64)
    for k, (some, classes) in enumerate(samples):
        boxes[k, : len(some)] = some
        labels[k, : len(some)] = classes + 1
    return torch.from_numpy(boxes), torch.from_numpy(labels)
