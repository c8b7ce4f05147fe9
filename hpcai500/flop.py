"""Counts the FLOP of a model, without running it on data.

Convention, stated wherever a figure appears: 2 FLOP per multiply-add; convolutions and matrix products only; forward
and backward as executed, so the first convolution has no input gradient. This is the convention of
``torch.utils.flop_counter``, which does the counting. fvcore, ptflops and torchtnt count a multiply-add as 1 and so
give half of it.

Does not count: normalisation, activations, pooling, loss, optimizer, communication, data preparation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

TINY = 3 * 64 * 64  # numbers in one sample
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
        build_model: makes the model; for all but tiny samples it is called on the meta device, so that nothing is
            computed or allocated.
        input_shape: shape of one sample without the batch axis, for example (3, 224, 224).

    Returns:
        The counts for one sample. They do not depend on the precision, the memory format or the device.
    """
    # For tiny samples computing is quicker: the meta device makes torch import sympy, which takes longer than torch.
    device = "cpu" if math.prod(input_shape) <= TINY else "meta"
    with (
        torch.random.fork_rng(devices=[]),
        torch.device(device),
    ):  # the model that is trained begins as without this one
        model = build_model()
        samples = torch.zeros((BATCH, *input_shape))
    with FlopCounterMode(display=False) as counter:
        output: Tensor = model(samples)
        forward = counter.get_total_flops()
        torch.autograd.backward(output.sum())
    return FlopCount(forward=forward // BATCH, training=counter.get_total_flops() // BATCH)
