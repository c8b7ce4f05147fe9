"""Ranks started by mpiexec or srun, talking through MPI (mpi4py).

Importing mpi4py.MPI starts MPI, so it happens only when this communicator is opened; closing ends MPI, and a process
cannot start it twice. A rank that dies without closing has not finalized MPI, so mpiexec ends the others.

Gradients travel in a thread of their own (MPI_THREAD_MULTIPLE): Open MPI makes progress only inside its calls, so a
non-blocking all-reduce started from a hook would move nothing while backward computes.
"""

from __future__ import annotations

import ctypes
import time
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from hpcai500.comm.buckets import Bucket
from hpcai500.comm.calls import Calls, collective
from hpcai500.comm.communicator import Communicator, Compression, GradientExchange, ReduceOp
from hpcai500.comm.exchange_thread import CompressedExchange, ExchangeThread
from hpcai500.comm.launchers import Place
from hpcai500.comm.mpi_start import initialize_mpi
from hpcai500.errors import BackendUnavailableError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

T = TypeVar("T")
POLL_INTERVAL_S = 0.0005  # how often a rank that is early looks for the others; see MpiExchange


def start_mpi() -> Any:
    """Start MPI so that threads may call it, and return the module mpi4py.MPI.

    Raises:
        BackendUnavailableError: mpi4py or an MPI library is missing, or MPI does not allow several threads.
        UsageError: MPI has already ended in this process.
    """
    try:
        import mpi4py

        # At exit mpi4py would wait for all ranks, also when this one fails: then all would hang. We finalize in close.
        mpi4py.rc.finalize = False
        mpi4py.rc.initialize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise BackendUnavailableError(
            "communicator 'mpi' needs mpi4py and an MPI library; get both with pip install 'hpcai500[mpi]'"
        ) from error
    if MPI.Is_finalized():
        raise UsageError(
            "MPI was closed in this process and cannot start again; open the communicator once per process"
        )
    if not MPI.Is_initialized():
        initialize_mpi(ctypes.CDLL(MPI.__file__))
        for comm in (MPI.COMM_WORLD, MPI.COMM_SELF):  # as mpi4py does: errors raise exceptions, they do not abort
            comm.Set_errhandler(MPI.ERRORS_RETURN)
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise BackendUnavailableError(
            f"this MPI ({MPI.Get_library_version().splitlines()[0]}) allows one thread only; "
            "choose communicator torchdist, or an MPI with MPI_THREAD_MULTIPLE"
        )
    return MPI


def wait_for_all(comm: Any) -> None:
    """Return when all ranks have called this. A blocking call of MPI spins instead, and may hold a late rank's core."""
    everyone_here = comm.Ibarrier()
    while not everyone_here.Test():
        time.sleep(POLL_INTERVAL_S)


class MpiExchange(ExchangeThread):
    """All-reduces full buckets in a thread while backward goes on.

    A blocking all-reduce spins until the slowest rank arrives and takes the core from this rank's own backward pass.
    So the thread first waits for all ranks with a barrier that it polls between short sleeps; the all-reduce itself
    then runs at full speed.
    """

    def __init__(self, module: nn.Module, calls: Calls, comm: Any, mpi: Any, *, device: str) -> None:
        self._comm, self._mpi = comm, mpi
        super().__init__(module, calls, num_ranks=comm.Get_size(), device=device, stages_on_host=True)

    def _sum(self, bucket: Bucket) -> None:
        staged = bucket.host is not bucket.flat
        if staged:
            bucket.host.copy_(bucket.flat)
        wait_for_all(self._comm)
        self._comm.Allreduce(self._mpi.IN_PLACE, bucket.host.numpy(), self._mpi.SUM)
        if staged:
            bucket.flat.copy_(bucket.host, non_blocking=True)


class CompressedMpiExchange(CompressedExchange):
    """Buckets moved as bfloat16, whose bytes MPI takes as integers of 16 bits."""

    def __init__(self, module: nn.Module, calls: Calls, comm: Any, *, device: str) -> None:
        self._comm = comm
        rank, num_ranks = comm.Get_rank(), comm.Get_size()
        super().__init__(module, calls, rank=rank, num_ranks=num_ranks, device=device, stages_on_host=True)

    def _all_to_all(self, received: Tensor, sent: Tensor) -> None:
        wait_for_all(self._comm)
        self._comm.Alltoall(sent.view(torch.int16).numpy(), received.view(torch.int16).numpy())

    def _all_gather(self, received: Tensor, own: Tensor) -> None:
        wait_for_all(self._comm)
        self._comm.Allgather(own.view(torch.int16).numpy(), received.view(torch.int16).numpy())


class MpiCommunicator(Communicator):
    """The ranks of MPI_COMM_WORLD."""

    name = "mpi"

    def __init__(self, *, device: str = "cpu", timeout_s: float) -> None:
        self._mpi = start_mpi()
        # Own copies: messages of the user or of h5py, which use COMM_WORLD, cannot be mistaken for ours.
        self._comm = self._mpi.COMM_WORLD.Dup()
        local = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        super().__init__(
            Place(self._comm.Get_rank(), self._comm.Get_size(), local.Get_rank(), local.Get_size()), device, timeout_s
        )
        local.Free()
        self._exchanges: list[tuple[ExchangeThread, Any]] = []
        self._closed = False

    @collective("allreduce")
    def allreduce(self, values: np.ndarray, op: ReduceOp = "sum") -> np.ndarray:
        wait_for_all(self._comm)
        values = np.asarray(values, order="C")
        result = np.empty_like(values)
        self._comm.Allreduce(values, result, getattr(self._mpi, op.upper()))
        return result

    @collective("allgather")
    def allgather(self, obj: T) -> list[T]:
        wait_for_all(self._comm)
        return self._comm.allgather(obj)  # type: ignore[no-any-return]

    @collective("gather")
    def gather(self, obj: T, root: int = 0) -> list[T] | None:
        wait_for_all(self._comm)
        return self._comm.gather(obj, root=root)  # type: ignore[no-any-return]

    @collective("gather")
    def gather_array(self, values: np.ndarray) -> np.ndarray | None:
        wait_for_all(self._comm)
        values = np.asarray(values, order="C")
        gathered = np.empty((self.size, *values.shape), values.dtype) if self.rank == 0 else None
        self._comm.Gather(values, gathered)
        return gathered

    @collective("broadcast")
    def broadcast(self, obj: T, root: int = 0) -> T:
        wait_for_all(self._comm)
        return self._comm.bcast(obj, root=root)  # type: ignore[no-any-return]

    @collective("barrier")
    def barrier(self) -> None:
        wait_for_all(self._comm)

    def exchange(
        self, module: nn.Module, optimizer: Optimizer, *, compression: Compression = "none"
    ) -> GradientExchange:
        comm = self._comm.Dup()  # the thread's own, so that the main thread's calls cannot mix with it
        exchange: ExchangeThread
        if compression == "none":
            exchange = MpiExchange(module, self.calls, comm, self._mpi, device=self.device)
        else:
            exchange = CompressedMpiExchange(module, self.calls, comm, device=self.device)
        self._exchanges.append((exchange, comm))
        return exchange

    def abort(self, exit_code: int) -> None:
        assert exit_code != 0, "an abort must not look like success"
        self._mpi.COMM_WORLD.Abort(exit_code)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for exchange, comm in self._exchanges:
            exchange.close()
            comm.Free()
        self._comm.Free()
        self._mpi.Finalize()

    def _broadcast_flat(self, flat: Tensor) -> None:
        wait_for_all(self._comm)
        # As bytes: any data type, also those MPI has no name for.
        self._comm.Bcast(flat.view(torch.uint8).numpy(), root=0)

    def _sum_flat(self, flat: Tensor) -> None:
        wait_for_all(self._comm)
        self._comm.Allreduce(self._mpi.IN_PLACE, flat.numpy(), self._mpi.SUM)
