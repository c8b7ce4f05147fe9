"""Ranks talking through Horovod (0.28.1), over MPI: `make horovod` builds it, mpiexec or srun starts the ranks.

Gradients travel in the buckets of ``buckets.py``, one Horovod tensor each, rather than one tensor per parameter as
Horovod's own DistributedOptimizer sends them: Horovod refuses tensors that are not contiguous (the gradients of
channels_last convolutions), it agrees on every tensor by messages in a cycle of its background thread, and it has no
answer for a parameter that one rank did not use. Horovod starts its reduction as soon as all ranks have handed a
bucket over, while backward goes on.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from hpcai500.comm.buckets import Bucket, BucketExchange
from hpcai500.comm.calls import Calls, collective
from hpcai500.comm.communicator import (
    LIBRARY_GRACE_S,
    Communicator,
    Compression,
    GradientExchange,
    ReduceOp,
    exit_now,
    own_gpu,
)
from hpcai500.comm.exchange_thread import CompressedExchange
from hpcai500.comm.launchers import Place, find_launcher, find_place
from hpcai500.comm.mpi_start import initialize_mpi, is_initialized
from hpcai500.errors import BackendUnavailableError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

T = TypeVar("T")

# Milliseconds between looks of Horovod's background thread for new tensors. Its default, 1, takes a third of the
# speed where ranks use every core (benchmarks/communicators.rst); GPUs leave cores free, so there the default stays.
CPU_CYCLE_TIME_MS = "20"
POLL_INTERVAL_S = 0.0005  # how often a compressed exchange looks whether a call has ended
HOW_TO_GET = (
    "get it with `make horovod` in the source folder of hpcai500 (plain `pip install horovod` fails: its last release "
    "does not compile with torch 2.1 or later)"
)


def import_horovod() -> Any:
    """The module horovod.torch.

    Raises:
        BackendUnavailableError: Horovod is missing, has no part for torch, or was built for another torch or MPI.
    """
    try:
        return importlib.import_module("horovod.torch")
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(f"communicator 'horovod' needs Horovod with torch; {HOW_TO_GET}") from error


def start_mpi_of_horovod() -> ctypes.CDLL | None:
    """Start the MPI that Horovod is linked with, under srun, where MPI must not be left to it; else None.

    Horovod sends as soon as MPI has started on its own rank, which is too early; see mpi_start.py.
    """
    library = ctypes.CDLL(importlib.import_module("horovod.torch.mpi_lib_v2").__file__)
    if find_launcher(os.environ) != "Slurm" or not hasattr(library, "MPI_Init_thread") or is_initialized(library):
        return None
    initialize_mpi(library)
    return library


class HorovodExchange(BucketExchange):
    """Buckets handed to Horovod's background thread."""

    def __init__(self, module: nn.Module, calls: Calls, hvd: Any, index: int) -> None:
        super().__init__(module, calls, num_ranks=hvd.size())
        self._hvd, self._index = hvd, index
        self._handles: dict[int, int] = {}

    def _start(self, bucket: Bucket) -> None:
        name = f"hpcai500.exchange{self._index}.bucket{bucket.index}"
        self._handles[bucket.index] = self._hvd.allreduce_async_(bucket.flat, name=name, op=self._hvd.Sum)

    def _wait(self, bucket: Bucket) -> None:
        self._hvd.synchronize(self._handles.pop(bucket.index))


class CompressedHorovodExchange(CompressedExchange):
    """Buckets moved as bfloat16, whose bytes Horovod takes as integers of 16 bits."""

    def __init__(self, module: nn.Module, calls: Calls, hvd: Any, index: int, *, device: str) -> None:
        self._hvd, self._name = hvd, f"hpcai500.compressed{index}"
        super().__init__(module, calls, rank=hvd.rank(), num_ranks=hvd.size(), device=device)

    def _all_to_all(self, received: Tensor, sent: Tensor) -> None:
        handle = self._hvd.alltoall_async(sent.view(torch.int16), name=f"{self._name}.alltoall")
        received.copy_(self._result(handle)[0].view(torch.bfloat16))

    def _all_gather(self, received: Tensor, own: Tensor) -> None:
        handle = self._hvd.allgather_async(own.view(torch.int16), name=f"{self._name}.allgather")
        received.copy_(self._result(handle).view(torch.bfloat16))

    def _result(self, handle: int) -> Any:
        while not self._hvd.poll(handle):  # its own wait does not promise to give Python's lock to backward
            time.sleep(POLL_INTERVAL_S)
        return self._hvd.synchronize(handle)


class HorovodCommunicator(Communicator):
    """All ranks of the launch, in Horovod's global process set."""

    name = "horovod"

    def __init__(self, *, device: str = "cpu", timeout_s: float) -> None:
        self._hvd = hvd = import_horovod()
        if device.startswith("cuda"):
            if not hvd.nccl_built():
                raise BackendUnavailableError(
                    "this Horovod was built without NCCL and cannot reduce on GPUs; "
                    "build it again with HOROVOD_GPU_OPERATIONS=NCCL make horovod"
                )
            torch.cuda.set_device(own_gpu(find_place().local_rank) if device == "cuda" else device)
        else:
            os.environ.setdefault("HOROVOD_CYCLE_TIME", CPU_CYCLE_TIME_MS)
        # Which buckets Horovod fuses depends on timing, and with it the order in which it adds three or more ranks.
        os.environ.setdefault("HOROVOD_FUSION_THRESHOLD", "0")
        os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(int(timeout_s + LIBRARY_GRACE_S)))
        self._mpi = start_mpi_of_horovod()
        hvd.init()
        super().__init__(Place(hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size()), device, timeout_s)
        self._num_exchanges = 0
        self._threads: list[CompressedHorovodExchange] = []

    @collective("allreduce")
    def allreduce(self, values: np.ndarray, op: ReduceOp = "sum") -> np.ndarray:
        ops = {"sum": self._hvd.Sum, "min": self._hvd.Min, "max": self._hvd.Max}
        tensor = torch.from_numpy(np.array(values, ndmin=1))
        result: np.ndarray = self._hvd.allreduce(tensor, op=ops[op], name="hpcai500.allreduce").numpy()
        return result.reshape(np.shape(values))

    @collective("allgather")
    def allgather(self, obj: T) -> list[T]:
        return self._hvd.allgather_object(obj, name="hpcai500.allgather")  # type: ignore[no-any-return]

    @collective("gather")
    def gather(self, obj: T, root: int = 0) -> list[T] | None:
        objects = self.allgather(obj)  # Horovod knows no other
        return objects if self.rank == root else None

    @collective("gather")
    def gather_array(self, values: np.ndarray) -> np.ndarray | None:
        return self.start_gather(values)()

    def start_gather(self, values: np.ndarray) -> Callable[[], np.ndarray | None]:
        own = torch.from_numpy(np.array(values, order="C"))
        handle = self._hvd.allgather_async(own[None], name="hpcai500.gather_array")  # Horovod knows no other
        return partial(self._end_gather, handle)

    @collective("gather")
    def _end_gather(self, handle: int) -> np.ndarray | None:
        gathered = self._hvd.synchronize(handle)
        return gathered.numpy() if self.rank == 0 else None

    @collective("broadcast")
    def broadcast(self, obj: T, root: int = 0) -> T:
        return self._hvd.broadcast_object(obj, root_rank=root, name="hpcai500.broadcast")  # type: ignore[no-any-return]

    @collective("barrier")
    def barrier(self) -> None:
        self._hvd.barrier()

    def exchange(
        self, module: nn.Module, optimizer: Optimizer, *, compression: Compression = "none"
    ) -> GradientExchange:
        self._num_exchanges += 1
        if compression == "none":
            return HorovodExchange(module, self.calls, self._hvd, self._num_exchanges)
        exchange = CompressedHorovodExchange(module, self.calls, self._hvd, self._num_exchanges, device=self.device)
        self._threads.append(exchange)
        return exchange

    def abort(self, exit_code: int) -> None:
        exit_now(exit_code)  # MPI is not finalized then, so mpiexec ends the others

    def close(self) -> None:
        if self._hvd.is_initialized():
            for exchange in self._threads:
                exchange.close()
            self.barrier()  # a shutdown on one rank fails the calls that others still wait for
            self._hvd.shutdown()
            if self._mpi is not None:
                self._mpi.MPI_Finalize()  # who starts MPI ends it

    def _broadcast_flat(self, flat: Tensor) -> None:
        self._hvd.broadcast_(flat, root_rank=0, name="hpcai500.broadcast_flat")

    def _sum_flat(self, flat: Tensor) -> None:
        self._hvd.allreduce_(flat, op=self._hvd.Sum, name="hpcai500.sum_flat")
