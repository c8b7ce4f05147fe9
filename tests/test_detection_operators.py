"""RoIAlign beside its definition, point by point; which operators are in use."""

from __future__ import annotations

import importlib
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hpcai500.models import operators
from hpcai500.models.operators import align_regions_torch

STRIDES = (4, 8)


def features(*shapes: tuple[int, int], channels: int = 3, batch: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((batch, channels, *shape), generator=generator, dtype=torch.float64) for shape in shapes]


def pool(levels: list[Tensor], boxes: Tensor, images: list[int], box_levels: list[int], **changes: int) -> Tensor:
    sizes = {"output_size": 7, "sampling_ratio": 2} | changes
    index = torch.tensor(images, dtype=torch.long), torch.tensor(box_levels, dtype=torch.long)
    return align_regions_torch(levels, boxes.double(), *index, strides=STRIDES[: len(levels)], **sizes)


def value_at(image: Tensor, y: float, x: float) -> Tensor:
    """Between the four features around a point; nothing further than one cell out, the border's value nearer."""
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros(len(image), dtype=image.dtype)
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = image[:, top, left] * (1 - x + left) + image[:, top, right] * (x - left)
    lower = image[:, bottom, left] * (1 - x + left) + image[:, bottom, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


def pooled_by_definition(image: Tensor, box: list[float], stride: int, size: int, ratio: int) -> Tensor:
    x1, y1, x2, y2 = (edge / stride for edge in box)
    cell_height, cell_width = max(y2 - y1, 1.0) / size, max(x2 - x1, 1.0) / size
    output = torch.zeros(len(image), size, size, dtype=image.dtype)
    for row in range(size * ratio):
        for column in range(size * ratio):
            y, x = y1 + (row + 0.5) * cell_height / ratio, x1 + (column + 0.5) * cell_width / ratio
            output[:, row // ratio, column // ratio] += value_at(image, y, x) / ratio**2
    return output


def test_pooling_is_what_its_definition_says() -> None:
    levels = features((16, 24), (8, 11))
    boxes = torch.tensor(
        [
            [3.0, 5, 60, 41],
            [10.2, 3.3, 12.1, 60.9],  # narrower than a cell
            [0, 0, 0, 0],
            [-30, -30, 200, 200],  # further than the features
            [90, 60, 96, 64],  # at the far corner
        ]
    )
    images, box_levels = [0, 1, 0, 1, 0], [0, 1, 1, 0, 0]
    for size, ratio in ((7, 2), (3, 1), (2, 3)):
        regions = pool(levels, boxes, images, box_levels, output_size=size, sampling_ratio=ratio)
        for index, box in enumerate(boxes.tolist()):
            level = box_levels[index]
            expected = pooled_by_definition(levels[level][images[index]], box, STRIDES[level], size, ratio)
            torch.testing.assert_close(regions[index], expected)


def test_features_that_rise_evenly_are_pooled_exactly() -> None:
    column = torch.arange(40.0, dtype=torch.float64).expand(1, 1, 30, 40)
    region = pool([column], torch.tensor([[8.0, 12, 64, 68]]), [0], [0])  # 14 cells wide: two for each output
    torch.testing.assert_close(region[0, 0], (3.0 + 2 * torch.arange(7, dtype=torch.float64)).expand(7, 7))


def test_gradients_reach_the_features_of_the_right_level_and_image() -> None:
    levels = [level.requires_grad_() for level in features((6, 7), (3, 4), channels=2)]
    boxes = torch.tensor([[2.0, 3, 20, 17], [1, 1, 30, 22]])

    def pooled(*levels: Tensor) -> Tensor:
        return pool(list(levels), boxes, [1, 0], [0, 1], output_size=2)

    assert torch.autograd.gradcheck(pooled, levels)
    pooled(*levels).sum().backward()
    reached = [[bool(image.any()) for image in level.grad] for level in levels if level.grad is not None]
    assert reached == [[False, True], [True, False]]


def test_memory_format_changes_nothing() -> None:
    levels = features((16, 24), (8, 11))
    boxes = torch.tensor([[3.0, 5, 60, 41], [10, 3, 12, 60]])
    other = [level.contiguous(memory_format=torch.channels_last) for level in levels]
    assert torch.equal(pool(levels, boxes, [0, 1], [1, 0]), pool(other, boxes, [0, 1], [1, 0]))


def test_a_box_that_is_no_number_reads_no_foreign_memory() -> None:
    # The step's loss will not be finite, and the run says so; the process must not die before.
    boxes = torch.tensor([[math.nan] * 4, [-math.inf, 0, math.inf, 5]])
    assert pool(features((6, 7)), boxes, [0, 1], [0, 0]).shape == (2, 3, 7, 7)


def test_no_region_pools_to_none() -> None:
    assert pool(features((6, 7)), torch.zeros(0, 4), [], []).shape == (0, 3, 7, 7)


def refuse(name: str) -> Any:
    raise RuntimeError("operator torchvision::nms does not exist")


def lacks_its_operators(name: str) -> Any:
    return SimpleNamespace(nms=lambda *_: refuse(name))


@pytest.mark.parametrize("broken", [refuse, lacks_its_operators])
def test_a_torchvision_for_another_torch_is_done_without(monkeypatch: pytest.MonkeyPatch, broken: Any) -> None:
    monkeypatch.setattr(importlib, "import_module", broken)
    assert operators._load_torchvision() is None
