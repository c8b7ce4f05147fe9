"""What the workloads' training policies have in common: precision and optimizer."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.preserve_format}


def autocast(settings: dict[str, Any], device: str) -> AbstractContextManager[None]:
    """The context in which a model runs in the precision of the settings."""
    dtype = AUTOCAST_DTYPES[settings["precision"]]
    return torch.autocast("cuda" if device.startswith("cuda") else "cpu", dtype, enabled=dtype is not None)


def placed(model: nn.Module, settings: dict[str, Any], device: str) -> nn.Module:
    """The model on the device, in the memory format of the settings."""
    moved: nn.Module = model.to(device=device, memory_format=MEMORY_FORMATS[settings["memory_format"]])  # type: ignore[call-overload]
    return moved


def sgd(model: nn.Module, settings: dict[str, Any]) -> Optimizer:
    """SGD with momentum; weight decay on matrices and kernels only.

    Normalisation parameters and biases, all of one dimension, are not decayed (He et al., "Bag of Tricks", CVPR 2019,
    section 3.1) unless the setting asks for it. The learning rate is set at each step.
    """
    decay_all = settings["weight_decay_on_norm_and_bias"]
    decayed = [p for p in model.parameters() if p.ndim > 1 or decay_all]
    others = [p for p in model.parameters() if p.ndim <= 1 and not decay_all]
    groups = [{"params": decayed, "weight_decay": settings["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    optimizer = SGD([group for group in groups if group["params"]], lr=0.0, momentum=settings["momentum"])
    fuse_where_possible(optimizer)
    return optimizer


def fuse_where_possible(optimizer: SGD) -> None:
    """Have the optimizer update each parameter in one pass over memory, if the first gradients allow it.

    torch's fused kernels give the same numbers, but for the rounding of the last few of a parameter that fill no vector
    register. They want gradients in the very layout of their parameters, which autograd promises only up to dimensions
    of length 1 (pytorch/pytorch, issue 106951); without it they raise. Not asked for when the optimizer is made, since
    a gradient scaler would then leave the scaling to it for good.
    """

    def choose(optimizer: Optimizer, *_: object) -> None:
        first_step.remove()
        with_gradient = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        fits = all(p.is_floating_point() and p.grad.stride() == p.stride() for p in with_gradient)
        for group in optimizer.param_groups:
            group["fused"] = fits

    first_step = optimizer.register_step_pre_hook(choose)
