"""The learning rate of every step as the settings declare it: what the run half trains with and the verifier expects.

Linear warm-up to a peak that grows with the global batch, then half a cosine to zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class Peak(NamedTuple):
    """How a workload states its peak learning rate.

    Attributes:
        setting: the name of the setting that has it.
        reference_batch: samples a step for which it is stated; it is linear in the global batch (Goyal et al. 2017,
            arXiv 1706.02677, section 2.1).
    """

    setting: str
    reference_batch: int


PEAKS = {
    "resnet50": Peak("learning_rate_per_256", 256),  # pictures: Goyal et al. 2017, section 2.1
    "fasterrcnn": Peak("learning_rate_per_16", 16),  # fields: Lin et al., CVPR 2017 (arXiv 1612.03144), section 5.1
}


def learning_rate(
    workload: str,
    settings: Mapping[str, Any],
    step: int,
    *,
    global_batch: int,
    steps_per_epoch: int,
    num_epochs: int,
) -> float:
    """Learning rate of a step of a run.

    Args:
        workload: a key of PEAKS.
        settings: of the run.
        step: counted from 0 over all epochs.
        global_batch: samples of all ranks in a step.
        steps_per_epoch: of the run.
        num_epochs: of the run.
    """
    return warmed_up_cosine(
        step,
        peak=peak_learning_rate(workload, settings, global_batch=global_batch),
        warmup_steps=settings["warmup_epochs"] * steps_per_epoch,
        num_steps=num_epochs * steps_per_epoch,
    )


def peak_learning_rate(workload: str, settings: Mapping[str, Any], *, global_batch: int) -> float:
    """The learning rate at the end of the warm-up."""
    peak = PEAKS[workload]
    return float(settings[peak.setting] * global_batch / peak.reference_batch)


def warmed_up_cosine(step: int, *, peak: float, warmup_steps: float, num_steps: int) -> float:
    """Linear warm-up, then half a cosine to zero (Loshchilov and Hutter, ICLR 2017, equation 5, one period).

    Args:
        step: of the run, from 0.
        peak: learning rate at the end of the warm-up.
        warmup_steps: may be a fraction.
        num_steps: of the whole run.
    """
    if step < warmup_steps:
        return float(peak * (step + 1) / warmup_steps)
    progress = (step - warmup_steps) / max(1.0, num_steps - warmup_steps)
    return float(0.5 * peak * (1.0 + math.cos(math.pi * progress)))
