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


def fasterrcnn_flop(
    height: int,
    width: int,
    *,
    in_channels: int,
    num_classes: int,
    regions_per_image: int,
    fpn_channels: int = 256,
    anchors_per_cell: int = 3,
    roi_output_size: int = 7,
    box_head_width: int = 1024,
) -> tuple[int, int]:
    """FLOP of one sample through Faster R-CNN with a ResNet-50-FPN: forward, and forward with backward (closed form).

    Proposals cost nothing by the convention, and the box head sees as many regions as a training step samples,
    whatever is in the image. Widths not given are those of Lin et al., CVPR 2017 (arXiv 1612.03144), sections 3 to 4.2.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        in_channels: of the image.
        num_classes: without the background.
        regions_per_image: sampled for the box head.
        fpn_channels: of each level of the pyramid.
        anchors_per_cell: of each level.
        roi_output_size: cells along a side of a pooled region.
        box_head_width: of its two hidden layers.
    """
    rows, columns = _halved(height), _halved(width)
    first = rows * columns * _convolution_flop(1, in_channels, 64, 7)
    forward = first
    stages = _resnet50_stages(_halved(rows), _halved(columns))
    for (rows, columns, flop), stage_width in zip(stages, RESNET50_WIDTHS, strict=True):
        lateral = _convolution_flop(1, 4 * stage_width, fpn_channels, 1)
        forward += flop + rows * columns * (lateral + _convolution_flop(1, fpn_channels, fpn_channels, 3))
    levels = [(rows, columns) for rows, columns, _ in stages]
    levels.append((_halved(levels[-1][0]), _halved(levels[-1][1])))  # P6, every second cell of P5
    head = _convolution_flop(1, fpn_channels, fpn_channels, 3)
    head += _convolution_flop(1, fpn_channels, 5 * anchors_per_cell, 1)  # objectness and the box's four numbers
    forward += head * sum(rows * columns for rows, columns in levels)
    products = fpn_channels * roi_output_size**2 * box_head_width + box_head_width**2
    products += box_head_width * 5 * (num_classes + 1)  # score and four numbers of each class and the background
    forward += 2 * regions_per_image * products
    return forward, 3 * forward - first


def _resnet50_stages(rows: int, columns: int) -> list[tuple[int, int, int]]:
    """Rows and columns that each stage of ResNet-50 v1.5 puts out, and its FLOP, for such a map of 64 channels."""
    stages, in_channels = [], 64
    for stage, (num_blocks, width) in enumerate(zip(RESNET50_BLOCKS, RESNET50_WIDTHS, strict=True)):
        before = rows * columns  # the first block's 1x1 comes before its stride
        if stage > 0:
            rows, columns = _halved(rows), _halved(columns)
        after = rows * columns
        outer = _convolution_flop(1, width, width, 3) + _convolution_flop(1, width, 4 * width, 1)
        flop = before * _convolution_flop(1, in_channels, width, 1)
        flop += after * (outer + _convolution_flop(1, in_channels, 4 * width, 1))  # with the shortcut's projection
        flop += (num_blocks - 1) * after * (_convolution_flop(1, 4 * width, width, 1) + outer)
        stages.append((rows, columns, flop))
        in_channels = 4 * width
    return stages


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


def _of_fasterrcnn(settings: Mapping[str, Any], size: Size) -> FlopForm:
    shape = (size.input["channels"], size.input["height"], size.input["width"])
    counts = fasterrcnn_flop(
        *shape[1:],
        in_channels=shape[0],
        num_classes=size.num_classes,
        regions_per_image=int(settings["box_batch_size_per_image"]),
        fpn_channels=int(settings["fpn_channels"]),
        roi_output_size=int(settings["roi_output_size"]),
        box_head_width=int(settings["box_head_width"]),
    )
    return FlopForm(shape, *counts)


def evaluation_flop(workload: str, settings: Mapping[str, Any], size: Size) -> int:
    """FLOP of one sample's evaluation, or less: without the box head, since a detector may find nothing to look at."""
    changes: dict[str, Any] = {}
    if workload == "resnet50":
        changes["train_image_size"] = size.input["validation_image_size"]
    elif workload == "fasterrcnn":
        changes["box_batch_size_per_image"] = 0
    return flop_form(workload, {**settings, **changes}, size).forward


FLOP_FORMS: dict[str, Callable[[Mapping[str, Any], Size], FlopForm]] = {
    "resnet50": _of_resnet50,
    "fasterrcnn": _of_fasterrcnn,
}


def flop_form(workload: str, settings: Mapping[str, Any], size: Size) -> FlopForm:
    """FLOP of one training sample of a workload as a run is configured."""
    return FLOP_FORMS[workload](settings, size)
