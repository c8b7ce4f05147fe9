"""Arithmetic of boxes, and non-maximum suppression beside a loop that does what its definition says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hpcai500.models.boxes import (
    ROWS_AT_ONCE,
    are_large,
    box_areas,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    pairwise_iou,
    suppress,
)

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
LIMIT = math.log(1000 / 16)


def crowd(batch: int, count: int, seed: int) -> Tensor:
    """Boxes of some 40 pixels around a few centres, so that many overlap and chains of overlaps are long."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand((batch, count, 2), generator=generator) * 120
    sides = 30 + 20 * torch.rand((batch, count, 2), generator=generator)
    return torch.cat((centres - sides / 2, centres + sides / 2), dim=-1)


def greedy(boxes: Tensor, valid: Tensor, threshold: float) -> list[bool]:
    """Suppression as it is told: go from the best to the worst, keep what no kept box overlaps."""
    kept: list[int] = []
    for index in range(len(boxes)):
        overlaps = [float(pairwise_iou(boxes[index : index + 1], boxes[i : i + 1])) > threshold for i in kept]
        if valid[index] and not any(overlaps):
            kept.append(index)
    return [index in kept for index in range(len(boxes))]


def test_overlaps_of_known_boxes() -> None:
    first = torch.tensor([[0.0, 0, 4, 4], [1, 1, 2, 2]])
    second = torch.tensor([[2.0, 0, 6, 4], [0, 0, 4, 4], [10, 10, 11, 11]])
    torch.testing.assert_close(pairwise_iou(first, second), torch.tensor([[8 / 24, 1.0, 0.0], [0.0, 1 / 16, 0.0]]))
    assert box_areas(first).tolist() == [16, 1]


def test_overlaps_of_batches_are_those_of_each_batch() -> None:
    first, second = crowd(3, 5, seed=0), crowd(3, 7, seed=1)
    together = pairwise_iou(first, second)
    assert together.shape == (3, 5, 7)
    for index in range(3):
        assert torch.equal(together[index], pairwise_iou(first[index], second[index]))


def test_a_known_box_has_its_known_code() -> None:
    reference, box = torch.tensor([0.0, 0, 10, 20]), torch.tensor([5.0, 10, 25, 20])
    # Centre (5, 10) to (15, 15); sides (10, 20) to (20, 10).
    expected = torch.tensor([10 * 1.0, 10 * 0.25, 5 * math.log(2), 5 * math.log(0.5)])
    torch.testing.assert_close(encode_boxes(box, reference, WEIGHTS), expected)


def test_decoding_undoes_encoding() -> None:
    boxes, references = crowd(2, 50, seed=2), crowd(2, 50, seed=3)
    codes = encode_boxes(boxes, references, WEIGHTS)
    torch.testing.assert_close(decode_boxes(codes, references, WEIGHTS, max_log_scale=LIMIT), boxes, atol=1e-3, rtol=0)


def test_no_decoded_side_grows_beyond_the_limit() -> None:
    reference = torch.tensor([0.0, 0, 16, 16])
    box = decode_boxes(torch.tensor([0.0, 0, 1e6, 1.0]), reference, (1.0, 1, 1, 1), max_log_scale=LIMIT)
    assert float(box[2] - box[0]) == pytest.approx(1000)
    assert float(box[3] - box[1]) == pytest.approx(16 * math.e)


def test_clipping_leaves_what_is_inside() -> None:
    boxes = torch.tensor([[-5.0, -5, 5, 5], [10, 10, 200, 100], [300, 1, 400, 2]])
    clipped = clip_boxes(boxes, height=50, width=150)
    assert clipped.tolist() == [[0, 0, 5, 5], [10, 10, 150, 50], [150, 1, 150, 2]]


def test_a_box_is_large_if_both_sides_are() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 9], [0, 0, 9, 1], [3, 3, 3, 3]])
    assert are_large(boxes, 2.0).tolist() == [True, False, False, False]


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_suppression_keeps_exactly_what_the_greedy_loop_keeps(seed: int, threshold: float) -> None:
    boxes = crowd(2, 60, seed=seed)
    valid = torch.rand((2, 60), generator=torch.Generator().manual_seed(seed)) > 0.2
    kept = suppress(boxes, valid, threshold)
    assert kept.tolist() == [greedy(b, v, threshold) for b, v in zip(boxes, valid, strict=True)]
    assert 2 < kept.sum() < valid.sum()


def test_suppression_is_exact_across_blocks_of_the_matrix() -> None:
    boxes, valid = crowd(1, ROWS_AT_ONCE + 70, seed=5), torch.ones(1, ROWS_AT_ONCE + 70, dtype=torch.bool)
    assert suppress(boxes, valid, 0.3)[0].tolist() == greedy(boxes[0], valid[0], 0.3)


def test_a_suppressed_box_suppresses_nothing() -> None:
    # A row of boxes, each of which overlaps only its neighbours: every second one stays.
    left = 6.0 * torch.arange(9)
    boxes = torch.stack((left, torch.zeros(9), left + 10, torch.full((9,), 10.0)), dim=1).unsqueeze(0)
    kept = suppress(boxes, torch.ones(1, 9, dtype=torch.bool), 0.2)
    assert kept[0].tolist() == [True, False] * 4 + [True]


def test_a_box_that_is_not_there_suppresses_nothing_and_is_not_kept() -> None:
    boxes = torch.tensor([0.0, 0, 10, 10]).expand(1, 3, 4)
    assert suppress(boxes, torch.tensor([[False, True, True]]), 0.5).tolist() == [[False, True, False]]


def test_suppression_of_nothing_and_of_boxes_that_are_no_numbers_ends() -> None:
    assert suppress(torch.zeros(3, 0, 4), torch.zeros(3, 0, dtype=torch.bool), 0.5).shape == (3, 0)
    nowhere = torch.full((1, 4, 4), math.nan)
    assert suppress(nowhere, torch.ones(1, 4, dtype=torch.bool), 0.5).all()
