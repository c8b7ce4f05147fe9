"""Which anchor or proposal belongs to which object, and which of them a step learns from.

Sources: Ren et al., "Faster R-CNN", NIPS 2015, sections 3.1.2 (matching) and 3.1.3 (sampling). All of a batch at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1
SURELY_SAMPLED = 2.0  # above every random number


class Matches(NamedTuple):
    """The object of each box, and whether the box is an example of it.

    Attributes:
        objects: index of the object with the greatest overlap, int64 (batch, k); of no meaning unless positive.
        kinds: POSITIVE, NEGATIVE or IGNORED (between the thresholds), int64 (batch, k).
    """

    objects: Tensor
    kinds: Tensor


class Sample(NamedTuple):
    """The boxes that a step learns from; positives come first.

    Attributes:
        indices: int64 (batch, s).
        is_positive: bool (batch, s).
        is_sampled: bool (batch, s); others only fill the row of an image with fewer examples.
    """

    indices: Tensor
    is_positive: Tensor
    is_sampled: Tensor


def match_boxes(
    iou: Tensor, is_object: Tensor, *, positive_iou: float, negative_iou: float, keep_best_of_object: bool
) -> Matches:
    """Match boxes to objects by overlap.

    A box is positive if its greatest overlap is at least ``positive_iou`` and negative if below ``negative_iou``. With
    ``keep_best_of_object`` a box is also positive if no other overlaps some object more; as in torchvision it then
    belongs to the object that it overlaps most itself, which may be another one. Objects that no box overlaps match
    none.

    Args:
        iou: (batch, m, k), overlaps of m objects and k boxes.
        is_object: bool (batch, m); others are padding.
        positive_iou: least overlap of a positive.
        negative_iou: overlap that a negative stays below.
        keep_best_of_object: whether each object's nearest box is positive, however far.
    """
    iou = iou.masked_fill(~is_object.unsqueeze(-1), -1.0)
    best, objects = iou.max(dim=1)
    positive = best >= positive_iou
    if keep_best_of_object:
        best_of_object = iou.amax(dim=2, keepdim=True)
        positive |= ((iou == best_of_object) & (best_of_object > 0)).any(dim=1)
    ignored = (best >= negative_iou) & ~positive
    return Matches(objects, positive.long() - ignored.long())


def sample_boxes(kinds: Tensor, *, num_samples: int, positive_fraction: float) -> Sample:
    """Choose at random, without repetition, at most ``num_samples`` boxes of each image.

    At most ``positive_fraction`` of them are positives; negatives fill up. Random numbers come from torch's generator
    of the device that ``kinds`` is on.

    Args:
        kinds: (batch, k) of POSITIVE, NEGATIVE, IGNORED.
        num_samples: for each image; s is the smaller of it and k.
        positive_fraction: between 0 and 1.
    """
    num_boxes = kinds.shape[1]
    keys = torch.rand(kinds.shape, device=kinds.device)
    num_positives = min(int(num_samples * positive_fraction), num_boxes)
    best, indices = keys.masked_fill(kinds != POSITIVE, -1.0).topk(num_positives, dim=1)
    keys.masked_fill_(kinds != NEGATIVE, -1.0)
    keys.scatter_(1, indices, torch.where(best >= 0, SURELY_SAMPLED, keys.gather(1, indices)))
    chosen, indices = keys.topk(min(num_samples, num_boxes), dim=1)
    return Sample(indices, is_positive=chosen == SURELY_SAMPLED, is_sampled=chosen >= 0)


def take(values: Tensor, indices: Tensor) -> Tensor:
    """Rows of each batch: (batch, k, ...) at int64 (batch, s) to (batch, s, ...)."""
    batch = torch.arange(len(indices), device=indices.device).unsqueeze(1)
    return values[batch, indices]
