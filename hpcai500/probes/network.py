"""How fast messages travel between neighbouring nodes, and how fast all ranks sum one array.

Neighbours exchange messages in both directions at once. Nodes stand in a ring; the pairs of a phase have no node in
common, so each phase loads the network without loading a node twice. Everything goes through the library the run
itself will use; Horovod knows no message to one other rank, so there an all-to-all stands in, with its cycle time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from hpcai500.comm.communicator import Communicator
from hpcai500.probes.alone import RankReport

SMALL_BYTES = 8


@dataclass(frozen=True)
class NetworkSizes:
    """Bytes and repeats of the messages.

    Attributes:
        message_bytes: of a large message.
        num_small: exchanges of 8 bytes.
        num_large: exchanges of a large message.
        sum_bytes: of the array that all ranks sum (ResNet-50's gradients in fp32 are 102 MB).
        num_sums: how often they do.
    """

    message_bytes: int
    num_small: int
    num_large: int
    sum_bytes: int
    num_sums: int


QUICK = NetworkSizes(message_bytes=2**22, num_small=20, num_large=3, sum_bytes=2**24, num_sums=3)
LONG = NetworkSizes(message_bytes=2**25, num_small=200, num_large=10, sum_bytes=102_228_128, num_sums=5)


class Fabric(Protocol):
    """The messages this module measures, in one library."""

    def exchange(self, partner: int | None, sent: torch.Tensor, received: torch.Tensor) -> None:
        """Send to the partner and receive from it; ranks without a partner call it too."""

    def sum_over_ranks(self, array: torch.Tensor) -> None:
        """Overwrite the array with its sum over all ranks."""


class _TorchDist:
    def exchange(self, partner: int | None, sent: torch.Tensor, received: torch.Tensor) -> None:
        import torch.distributed as dist

        if partner is None:
            return
        operations = [dist.P2POp(dist.isend, sent, partner), dist.P2POp(dist.irecv, received, partner)]
        for request in dist.batch_isend_irecv(operations):
            request.wait()

    def sum_over_ranks(self, array: torch.Tensor) -> None:
        torch.distributed.all_reduce(array)


class _Mpi:
    """From and to host memory, as hpcai500.comm.mpi has it."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self._mpi, self._world = MPI, MPI.COMM_WORLD

    def exchange(self, partner: int | None, sent: torch.Tensor, received: torch.Tensor) -> None:
        if partner is not None:
            self._world.Sendrecv(sent.numpy(), dest=partner, recvbuf=received.numpy(), source=partner)

    def sum_over_ranks(self, array: torch.Tensor) -> None:
        self._world.Allreduce(self._mpi.IN_PLACE, array.numpy(), self._mpi.SUM)


class _Horovod:
    def __init__(self) -> None:
        import horovod.torch

        self._horovod: Any = horovod.torch

    def exchange(self, partner: int | None, sent: torch.Tensor, received: torch.Tensor) -> None:
        splits = torch.zeros(self._horovod.size(), dtype=torch.int32)
        if partner is not None:
            splits[partner] = sent.numel()
        self._horovod.alltoall(sent if partner is not None else sent[:0], splits=splits, name="selfcheck.exchange")

    def sum_over_ranks(self, array: torch.Tensor) -> None:
        self._horovod.allreduce_(array, op=self._horovod.Sum, name="selfcheck.sum")


FABRICS: dict[str, Callable[[], Fabric]] = {"torchdist": _TorchDist, "mpi": _Mpi, "horovod": _Horovod}


def pair_phases(num_places: int) -> list[list[tuple[int, int]]]:
    """Neighbours in a ring of places, in phases of pairs that have no place in common; the fewest phases there are."""
    if num_places < 3:
        return [[(0, 1)]] if num_places == 2 else []
    links = [(place, (place + 1) % num_places) for place in range(num_places)]
    last = num_places - num_places % 2
    phases = [links[0:last:2], links[1:last:2], links[last:]]
    return [phase for phase in phases if phase]


def measure_network(report: RankReport, comm: Communicator, places: Sequence[int], sizes: NetworkSizes) -> None:
    """Measure links and the sum; collective. Failures are not caught: the others would wait for this rank.

    Args:
        report: gets "link_latency" and "link_bandwidth" by the partner's rank, and "sum_bandwidth".
        comm: all ranks.
        places: the ranks that are neighbours: the first of each node, or all ranks of a single node.
        sizes: how much.
    """
    if comm.size == 1:
        return
    fabric = FABRICS[comm.name]()
    device = "cpu" if comm.name == "mpi" else comm.device
    own_place = places.index(comm.rank) if comm.rank in places else None
    for phase in pair_phases(len(places)):
        partner = None
        for pair in phase:
            if own_place in pair:
                partner = places[pair[0] + pair[1] - own_place]
        latency_s = _best_exchange_s(
            fabric, comm, partner, num_bytes=SMALL_BYTES, num_repeats=sizes.num_small, device=device
        )
        large_s = _best_exchange_s(
            fabric, comm, partner, num_bytes=sizes.message_bytes, num_repeats=sizes.num_large, device=device
        )
        if partner is not None:
            report.add_rate("link_latency", str(partner), latency_s)
            report.add_rate("link_bandwidth", str(partner), sizes.message_bytes / large_s)
    report.add_rate("sum_bandwidth", "all", _sum_bandwidth(fabric, comm, sizes, device))


def _best_exchange_s(
    fabric: Fabric, comm: Communicator, partner: int | None, *, num_bytes: int, num_repeats: int, device: str
) -> float:
    """Seconds of the fastest exchange of so many bytes, after one that warms up."""
    sent, received = (torch.zeros(num_bytes // 4, dtype=torch.float32, device=device) for _ in range(2))
    comm.barrier()
    times = []
    for _ in range(num_repeats + 1):
        begin_s = time.perf_counter()
        fabric.exchange(partner, sent, received)
        _wait_for_device(device)
        times.append(time.perf_counter() - begin_s)
    return min(times[1:])


def _sum_bandwidth(fabric: Fabric, comm: Communicator, sizes: NetworkSizes, device: str) -> float:
    """Bus bandwidth of an all-reduce in bytes/s: algorithm's bandwidth times 2 (n - 1) / n, as nccl-tests define it."""
    array = torch.ones(sizes.sum_bytes // 4, dtype=torch.float32, device=device)
    times = []
    for _ in range(sizes.num_sums + 1):
        array.fill_(1.0)
        comm.barrier()
        begin_s = time.perf_counter()
        fabric.sum_over_ranks(array)
        _wait_for_device(device)
        times.append(time.perf_counter() - begin_s)
    if float(array.min()) != comm.size or float(array.max()) != comm.size:
        raise ArithmeticError(f"the sum of {comm.size} ones over ranks is not {comm.size}")
    slowest_s = comm.allreduce(np.array(times[1:]), "max").min()
    return float(array.numel() * 4 / slowest_s * 2 * (comm.size - 1) / comm.size)


def _wait_for_device(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
