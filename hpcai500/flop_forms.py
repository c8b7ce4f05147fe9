"""FLOP of every workload's model in closed form, so that the verifier can count them again without torch.

Convention: a multiply-add is 2 FLOP; convolutions and matrix products only; forward and backward as executed, so the
first convolution has no input gradient. That is what hpcai500/flop.py counts on the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from hpcai500.edition import Size

RESNET50_BLOCKS = (3, 4, 6, 3)  # He et al., CVPR 2016 (arXiv 1512.03385), table 1, column "50-layer"
RESNET50_WIDTHS = (64, 128, 256, 512)  # same table; a bottleneck puts out four times its width


def resnet50_flop(image_size: int, num_classes: int, *, variant: str = "v1.5") -> tuple[int, int]:
    """FLOP of one sample through ResNet-50: forward, and forward with backward (closed form).

    Convolutions and the last matrix product only. Backward does each of them twice more, save the first convolution,
    whose input needs no gradient. Architecture: He et al. 2016, table 1; v1.5 strides in the 3x3 convolution of a
    bottleneck, v1 in its first 1x1.
    """
    assert variant in ("v1", "v1.5")
    side = _halved(image_size)
    first = _convolution_flop(side, 3, 64, 7)
    forward, in_channels = first, 64
    side = _halved(side)  # the max pooling
    for stage, (num_blocks, width) in enumerate(zip(RESNET50_BLOCKS, RESNET50_WIDTHS, strict=True)):
        for block in range(num_blocks):
            out_side = _halved(side) if stage > 0 and block == 0 else side
            forward += _convolution_flop(out_side if variant == "v1" else side, in_channels, width, 1)
            forward += _convolution_flop(out_side, width, width, 3)
            forward += _convolution_flop(out_side, width, 4 * width, 1)
            if block == 0:  # the shortcut's projection
                forward += _convolution_flop(out_side, in_channels, 4 * width, 1)
            side, in_channels = out_side, 4 * width
    forward += 2 * in_channels * num_classes
    return forward, 3 * forward - first


def _halved(side: int) -> int:
    """Side of the output of a convolution or pooling with stride 2 and padding of half its kernel."""
    return (side + 1) // 2


def _convolution_flop(out_side: int, in_channels: int, out_channels: int, kernel: int) -> int:
    """FLOP of a square convolution: 2 for each product of an output value's receptive field."""
    return 2 * out_side * out_side * out_channels * in_channels * kernel * kernel


class FlopForm(NamedTuple):
    """FLOP of one training sample.

    Attributes:
        input_shape: of the sample.
        forward: FLOP of the forward pass.
        training: FLOP of the forward and the backward pass.
    """

    input_shape: tuple[int, ...]
    forward: int
    training: int


def _of_resnet50(settings: Mapping[str, Any], size: Size) -> FlopForm:
    side = int(settings["train_image_size"])
    counts = resnet50_flop(side, size.num_classes, variant=str(settings["model_variant"]))
    return FlopForm((3, side, side), *counts)


FLOP_FORMS: dict[str, Callable[[Mapping[str, Any], Size], FlopForm]] = {"resnet50": _of_resnet50}


def flop_form(workload: str, settings: Mapping[str, Any], size: Size) -> FlopForm:
    """FLOP of one training sample of a workload as a run is configured."""
    return FLOP_FORMS[workload](settings, size)
