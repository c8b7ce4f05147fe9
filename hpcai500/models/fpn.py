"""Feature pyramid network: Lin et al., CVPR 2017 (arXiv 1612.03144), section 3, with torchvision's parameter names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class FeaturePyramidNetwork(nn.Module):
    """Maps the outputs C2 to C5 of a body to levels P2 to P6 of equally many channels.

    P5 is a projection of C5; each further level adds the next coarser one, enlarged to its size by repetition, to its
    own projection. A 3x3 convolution ends each; P6 is every second cell of P5 (section 4.1, footnote 1).
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        # A list in a list, since torchvision names a convolution within its block "0".
        self.inner_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(count, out_channels, 1)) for count in in_channels)
        self.layer_blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(out_channels, out_channels, 3, padding=1)) for _ in in_channels
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_uniform_(module.weight, a=1)  # He et al., ICCV 2015, equation 10, without a rectifier
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """(batch, in_channels[i], height_i, width_i), finest first, to one level more of (batch, out_channels, ...)."""
        inner = self.inner_blocks[-1](stages[-1])
        levels = [self.layer_blocks[-1](inner)]
        for index in range(len(stages) - 2, -1, -1):
            lateral = self.inner_blocks[index](stages[index])
            inner = lateral + functional.interpolate(inner, size=lateral.shape[-2:], mode="nearest")
            levels.insert(0, self.layer_blocks[index](inner))
        levels.append(functional.max_pool2d(levels[-1], kernel_size=1, stride=2))
        return levels
