"""What to say when a step does not fit into memory: which batch would."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# What torch says on a processor: its allocator's words, oneDNN's, and C++'s. A primitive descriptor that cannot be made
# is of something oneDNN does not know; a primitive that cannot be has found no memory for its code.
CPU_WORDS = re.compile(
    "can't allocate memory|not enough memory|could not create a memory|could not create a primitive(?! descriptor)"
    "|bad_alloc|bad allocation"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a CUDA device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and CPU_WORDS.search(str(error)) is not None


def largest_batch(loss_of: Callable[[Any], Tensor], parameters: Sequence[Tensor], batch: Any) -> int:
    """Find by trying how many samples of a batch fit: forward and backward of its first ones.

    Gradients are computed and thrown away, and no hook on a parameter is called, so that ranks which wait for each
    other's gradients are not disturbed.

    Args:
        loss_of: loss of a batch.
        parameters: of the model.
        batch: that did not fit; a named tuple, all parts of which have the samples as first axis.

    Returns:
        0 if not even one sample fits.
    """
    fits, too_many = 0, len(batch.ids)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if _fits(loss_of, parameters, type(batch)(*(part[:middle] for part in batch))):
            fits = middle
        else:
            too_many = middle
    return fits


def _fits(loss_of: Callable[[Any], Tensor], parameters: Sequence[Tensor], batch: Any) -> bool:
    try:
        torch.autograd.grad(loss_of(batch), parameters, allow_unused=True)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    else:
        fits = True
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    return fits
