"""The feature pyramid: shapes, names, and what adds up to what."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hpcai500.models.fpn import FeaturePyramidNetwork


@pytest.mark.parametrize("size", [(32, 48), (37, 51)])
def test_each_level_has_the_size_of_its_stage_and_the_last_half_of_it(size: tuple[int, int]) -> None:
    heights, widths = [size[0]], [size[1]]
    for _ in range(4):
        heights.append((heights[-1] + 1) // 2)
        widths.append((widths[-1] + 1) // 2)
    channels = (8, 16, 32, 64)
    stages = [torch.randn(2, count, heights[i], widths[i]) for i, count in enumerate(channels)]
    levels = FeaturePyramidNetwork(channels, 12)(stages)
    assert [tuple(level.shape) for level in levels] == [(2, 12, heights[i], widths[i]) for i in range(5)]


def test_names_are_torchvisions() -> None:
    state = FeaturePyramidNetwork((8, 16), 12).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "inner_blocks.0.0.weight": (12, 8, 1, 1),
        "inner_blocks.0.0.bias": (12,),
        "inner_blocks.1.0.weight": (12, 16, 1, 1),
        "inner_blocks.1.0.bias": (12,),
        "layer_blocks.0.0.weight": (12, 12, 3, 3),
        "layer_blocks.0.0.bias": (12,),
        "layer_blocks.1.0.weight": (12, 12, 3, 3),
        "layer_blocks.1.0.bias": (12,),
    }


def test_a_level_is_its_own_stage_plus_the_coarser_levels_repeated() -> None:
    pyramid = FeaturePyramidNetwork((1, 1, 1), 1)
    with torch.no_grad():  # every convolution passes on what it gets
        for module in pyramid.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.dirac_(module.weight)
    coarse, middle, fine = torch.rand(1, 1, 2, 3), torch.rand(1, 1, 4, 6), torch.rand(1, 1, 8, 12)
    levels = pyramid([fine, middle, coarse])
    repeated = middle + coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(levels[1], repeated)
    torch.testing.assert_close(levels[0], fine + repeated.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(levels[3], coarse[:, :, ::2, ::2])
