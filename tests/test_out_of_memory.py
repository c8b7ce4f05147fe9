"""A step that does not fit into memory ends the run and says which batch fits."""

from __future__ import annotations

import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcai500.out_of_memory import is_out_of_memory, largest_batch


class Samples(NamedTuple):
    images: Tensor
    ids: NDArray[np.int64]


@pytest.mark.parametrize("limit", range(8))
def test_the_largest_batch_is_found_by_trying(limit: int) -> None:
    weight = torch.ones(3, requires_grad=True)
    tried: list[int] = []

    def loss_of(batch: Samples) -> Tensor:
        tried.append(len(batch.ids))
        if len(batch.ids) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return (batch.images @ weight).sum()

    assert largest_batch(loss_of, [weight], Samples(torch.ones(8, 3), np.arange(8))) == limit
    assert len(tried) <= 3
    assert weight.grad is None


def test_other_errors_are_not_taken_for_it() -> None:
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    assert is_out_of_memory(MemoryError())

    def loss_of(batch: Samples) -> Tensor:
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        largest_batch(loss_of, [torch.ones(1)], Samples(torch.ones(8, 3), np.arange(8)))


PROGRAM = """
import resource, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np, torch
from torch import nn
from test_out_of_memory import Samples
from hpcai500.engine import Engine, Schedule
from hpcai500.comm.communicator import open_communicator
from hpcai500.errors import RunError

torch.set_num_threads(1)
model = nn.Sequential(nn.Conv2d(4, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 3, padding=1))
workload = SimpleNamespace(
    settings={"precision": "fp32", "gradient_compression": "none"}, device="cpu", build_model=lambda: model,
    build_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    loss=lambda model, batch: model(batch.images).square().mean(),
)
schedule = Schedule(num_epochs=1, evaluation_period_epochs=1, report_steps=1, seed=1, quality="top-1")
with open_communicator("serial", device="cpu") as comm:
    engine = Engine(schedule, workload=workload, pipeline=None, comm=comm, ledger=None, recorder=None,
                    checkpoints=SimpleNamespace(every_s=0))
    engine._forward_backward(Samples(torch.ones(2, 4, 128, 128), np.arange(2)))
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit_bytes = used_bytes + 200 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    try:
        engine._forward_backward(Samples(torch.ones(128, 4, 128, 128), np.arange(128)))
    except RunError as error:
        print(error)
"""


def test_a_real_step_that_does_not_fit_says_which_batch_does() -> None:
    """In a process whose memory is limited; a sample takes about 10 MB, so that a dozen or two fit into 200 MB."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=120, cwd="tests"
    )
    assert "rank 0 runs out of memory with batch_size_per_rank = 128" in done.stdout, done.stderr
    fits = int(done.stdout.partition("use --set batch_size_per_rank=")[2])
    assert 4 < fits < 64


def test_what_onednn_cannot_do_is_told_from_what_does_not_fit() -> None:
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for a convolution"))
