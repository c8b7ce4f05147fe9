"""ResNet-50 (v1 and v1.5), with the parameter names and shapes of torchvision's ``resnet50``.

Sources: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385), table 1, for the
network; Goyal et al., arXiv 1706.02677, section 5.1, for the zero-initialised last normalisation of each block.
v1.5 differs from v1 in one place: the stride 2 of a bottleneck sits in its 3x3 convolution, not in its first 1x1.

Does not import torchvision and does not download weights: ``load_state_dict`` takes torchvision's as they are.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Variant = Literal["v1", "v1.5"]
STAGE_BLOCKS = (3, 4, 6, 3)  # He et al. 2016, table 1, column "50-layer"
STAGE_WIDTHS = (64, 128, 256, 512)  # same table; a bottleneck puts out four times its width
EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a shortcut (He et al. 2016, figure 5, right).

    Maps (batch, in_channels, height, width) to (batch, 4 * width, height / stride, width / stride).
    """

    def __init__(self, in_channels: int, width: int, *, stride: int = 1, variant: Variant = "v1.5") -> None:
        super().__init__()
        out_channels = width * EXPANSION
        stride_1x1, stride_3x3 = (stride, 1) if variant == "v1" else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride=stride_1x1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride_3x3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        output: Tensor = self.relu(x + shortcut)
        return output


def _make_stage(in_channels: int, width: int, num_blocks: int, *, stride: int, variant: Variant) -> nn.Sequential:
    """Bottlenecks of one width; the first one takes the stride."""
    first = Bottleneck(in_channels, width, stride=stride, variant=variant)
    others = [Bottleneck(width * EXPANSION, width, variant=variant) for _ in range(num_blocks - 1)]
    return nn.Sequential(first, *others)


class ResNet50(nn.Module):
    """ResNet-50: maps pictures (batch, in_channels, height, width) to class scores (batch, num_classes).

    Any height and width of at least 32 work, since the last pooling is global. Without classes (None) it is a body for
    other networks, which take its ``stages``; it then has no last layer and cannot be called.
    """

    def __init__(self, *, in_channels: int = 3, num_classes: int | None = 1000, variant: Variant = "v1.5") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _make_stage(64, STAGE_WIDTHS[0], STAGE_BLOCKS[0], stride=1, variant=variant)
        self.layer2 = _make_stage(256, STAGE_WIDTHS[1], STAGE_BLOCKS[1], stride=2, variant=variant)
        self.layer3 = _make_stage(512, STAGE_WIDTHS[2], STAGE_BLOCKS[2], stride=2, variant=variant)
        self.layer4 = _make_stage(1024, STAGE_WIDTHS[3], STAGE_BLOCKS[3], stride=2, variant=variant)
        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(STAGE_WIDTHS[3] * EXPANSION, num_classes)
        self._initialise()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.fc(torch.flatten(self.avgpool(self.stages(x)[-1]), 1))
        return scores

    def stages(self, x: Tensor) -> list[Tensor]:
        """What the four stages put out: 256, 512, 1024 and 2048 channels at 1/4, 1/8, 1/16 and 1/32 of the size."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        outputs = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            outputs.append(x)
        return outputs

    def _initialise(self) -> None:
        if self.conv1.weight.is_meta:
            return  # to count FLOP; there are no values to set, and torch would import sympy for it, which takes 0.4 s
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # He et al., "Delving Deep into Rectifiers", ICCV 2015, equation 14 (backward form).
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)  # Goyal et al. 2017, section 5.1: each block starts as identity
