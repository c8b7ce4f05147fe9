"""Counts the FLOP of a model, without running it on data.

Convention, stated wherever a figure appears: 2 FLOP per multiply-add; convolutions and matrix products only; forward
and backward as executed, so the first convolution has no input gradient. This is the convention of
``torch.utils.flop_counter``, which does the counting. fvcore, ptflops and torchtnt count a multiply-add as 1 and so
give half of it.

Does not count: normalisation, activations, pooling, loss, optimizer, communication, data preparation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

BATCH = 2  # normalisation refuses a batch of one sample where the feature map has shrunk to one pixel
CONVENTION = "2 FLOP per multiply-add; convolutions and matrix products; forward and backward as executed"


@dataclass(frozen=True)
class FlopCount:
    """FLOP of one sample, a count.

    Attributes:
        forward: of the forward pass.
        training: of the forward and the backward pass together.
    """

    forward: int
    training: int


def count_flop(build_model: Callable[[], nn.Module], input_shape: tuple[int, ...]) -> FlopCount:
    """Count the FLOP of one sample through the model that ``build_model`` makes.

    Args:
        build_model: makes the model; it is called on the meta device, so nothing is computed or allocated.
        input_shape: shape of one sample without the batch axis, for example (3, 224, 224).

    Returns:
        The counts for one sample. They do not depend on the precision or the memory format.
    """
    with torch.device("meta"):
        model = build_model()
        samples = torch.empty((BATCH, *input_shape))
    with FlopCounterMode(display=False) as forward_counter, torch.no_grad():
        model(samples)
    with FlopCounterMode(display=False) as training_counter:
        output: Tensor = model(samples)
        torch.autograd.backward(output.sum())
    return FlopCount(
        forward=forward_counter.get_total_flops() // BATCH, training=training_counter.get_total_flops() // BATCH
    )
