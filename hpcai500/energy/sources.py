"""Which sources of energy a rank reads: those of its node on the node's first rank, those of all nodes on rank 0."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from hpcai500.energy.ipmi import IpmiSource
from hpcai500.energy.nvml import NvmlSource
from hpcai500.energy.rapl import RaplSource
from hpcai500.energy.recorder import Source
from hpcai500.energy.slurm import SlurmSource
from hpcai500.errors import BackendUnavailableError


def open_sources(*, local_rank: int, rank: int, on_cuda: bool, ipmi_accuracy: float | None = None) -> list[Source]:
    """The sources that this rank is to read and can.

    Args:
        local_rank: of the ranks of its node.
        rank: of all.
        on_cuda: the run trains on NVIDIA GPUs.
        ipmi_accuracy: stated error of the nodes' BMCs as a part of the reading; None leaves them alone.
    """
    wanted: list[Callable[[], Source]] = []
    if local_rank == 0:
        wanted.append(RaplSource)
        if on_cuda:
            wanted.append(NvmlSource)
        if ipmi_accuracy is not None:
            wanted.append(lambda: IpmiSource(ipmi_accuracy))
    if rank == 0:
        wanted.append(SlurmSource)
    sources: list[Source] = []
    for opened in wanted:
        with suppress(BackendUnavailableError):
            sources.append(opened())
    return sources
