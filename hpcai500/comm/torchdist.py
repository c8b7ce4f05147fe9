"""Ranks talking through torch.distributed: Gloo on processors, NCCL on GPUs.

Works under every launcher of ``launchers.py``, which also says where the ranks meet.
"""

from __future__ import annotations

import datetime
import os
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from hpcai500.comm.buckets import Bucket, BucketExchange
from hpcai500.comm.calls import Calls, collective
from hpcai500.comm.communicator import (
    LIBRARY_GRACE_S,
    Communicator,
    Compression,
    GradientExchange,
    ReduceOp,
    exit_now,
)
from hpcai500.comm.exchange_thread import CompressedExchange
from hpcai500.comm.launchers import Place, find_place, other_node, rendezvous
from hpcai500.comm.network import interface_towards
from hpcai500.errors import BackendUnavailableError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

T = TypeVar("T")


class TorchDistExchange(BucketExchange):
    """Buckets all-reduced by the library while backward goes on: by Gloo's threads, or on NCCL's own stream.

    Not DistributedDataParallel, which packs its buckets anew after the first step. A run that goes on from a checkpoint
    would then add the gradients of three or more ranks in another order than one that never stopped.
    """

    dtypes = None  # Gloo and NCCL sum any of them

    def __init__(self, module: nn.Module, calls: Calls) -> None:
        super().__init__(module, calls, num_ranks=dist.get_world_size())
        self._works: dict[int, dist.Work] = {}

    def _start(self, bucket: Bucket) -> None:
        work = dist.all_reduce(bucket.flat, async_op=True)
        assert work is not None
        self._works[bucket.index] = work

    def _wait(self, bucket: Bucket) -> None:
        self._works.pop(bucket.index).wait()


class CompressedTorchDistExchange(CompressedExchange):
    """Buckets moved as bfloat16 within a process group of the exchange's own thread."""

    dtypes = None

    def __init__(self, module: nn.Module, calls: Calls, group: dist.ProcessGroup, *, device: str) -> None:
        super().__init__(module, calls, rank=dist.get_rank(), num_ranks=dist.get_world_size(), device=device)
        self._group = group

    def _all_to_all(self, received: Tensor, sent: Tensor) -> None:
        dist.all_to_all_single(received, sent, group=self._group)

    def _all_gather(self, received: Tensor, own: Tensor) -> None:
        dist.all_gather(list(received.chunk(self._num_ranks)), own, group=self._group)


def gloo_interface(place: Place) -> str | None:
    """Where Gloo shall listen: loopback if all ranks are here, so that no name need resolve; else towards the others.

    None leaves the choice to Gloo, which takes the address to which this host's own name resolves.
    """
    if place.local_size == place.size:
        return "lo"
    other = other_node(os.environ) or os.environ.get("MASTER_ADDR")
    return interface_towards(other) if other else None


class TorchDistCommunicator(Communicator):
    """The default process group of torch.distributed."""

    name = "torchdist"

    def __init__(self, *, device: str = "cpu", timeout_s: float) -> None:
        place = find_place()
        super().__init__(place, device, timeout_s)
        self._timeout = datetime.timedelta(seconds=timeout_s + LIBRARY_GRACE_S)
        self._threads: list[CompressedTorchDistExchange] = []
        cuda = self.device.startswith("cuda")
        if cuda and not dist.is_nccl_available():
            raise BackendUnavailableError("this torch was built without NCCL; install a CUDA build of torch for Linux")
        interface = gloo_interface(place)
        if interface is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        if place.size == 1:
            options: dict[str, Any] = {"store": HashStore()}
        else:
            options = {"init_method": rendezvous(place, os.environ)}
        if cuda:
            torch.cuda.set_device(self.device)
            options["device_id"] = torch.device(self.device)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            rank=place.rank,
            world_size=place.size,
            timeout=self._timeout,
            **options,
        )

    @collective("allreduce")
    def allreduce(self, values: np.ndarray, op: ReduceOp = "sum") -> np.ndarray:
        result = torch.from_numpy(np.array(values, ndmin=1))
        dist.all_reduce(result, getattr(dist.ReduceOp, op.upper()))
        return result.numpy().reshape(values.shape)

    @collective("allgather")
    def allgather(self, obj: T) -> list[T]:
        objects: list[Any] = [None] * self.size
        dist.all_gather_object(objects, obj)
        return objects

    @collective("gather")
    def gather(self, obj: T, root: int = 0) -> list[T] | None:
        objects: list[Any] | None = [None] * self.size if self.rank == root else None
        dist.gather_object(obj, objects, dst=root)
        return objects

    @collective("gather")
    def gather_array(self, values: np.ndarray) -> np.ndarray | None:
        own = torch.from_numpy(np.array(values, order="C"))
        gathered = torch.empty((self.size, *own.shape), dtype=own.dtype) if self.rank == 0 else None
        dist.gather(own, None if gathered is None else list(gathered.unbind()))
        return None if gathered is None else gathered.numpy()

    @collective("broadcast")
    def broadcast(self, obj: T, root: int = 0) -> T:
        objects: list[Any] = [obj]
        dist.broadcast_object_list(objects, src=root)
        return objects[0]  # type: ignore[no-any-return]

    @collective("barrier")
    def barrier(self) -> None:
        self.allreduce(np.zeros(1))  # dist.barrier would use NCCL and its device on GPUs; this one is Gloo's

    def exchange(
        self, module: nn.Module, optimizer: Optimizer, *, compression: Compression = "none"
    ) -> GradientExchange:
        if compression == "none":
            return TorchDistExchange(module, self.calls)
        group = dist.new_group(timeout=self._timeout)
        assert isinstance(group, dist.ProcessGroup)
        exchange = CompressedTorchDistExchange(module, self.calls, group, device=self.device)
        self._threads.append(exchange)
        return exchange

    def abort(self, exit_code: int) -> None:
        exit_now(exit_code)  # the launcher ends the others; without one their next collective call fails

    def close(self) -> None:
        if dist.is_initialized():
            for exchange in self._threads:
                exchange.close()
            self.barrier()  # the rank that serves the store must not leave before the others
            dist.destroy_process_group()

    def _broadcast_flat(self, flat: Tensor) -> None:
        dist.broadcast(flat, src=0)

    def _sum_flat(self, flat: Tensor) -> None:
        dist.all_reduce(flat)
