"""One rank alone: every collective call is the identity."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from hpcai500.comm.communicator import Communicator, Compression, GradientExchange, ReduceOp, exit_now
from hpcai500.comm.launchers import Place, find_place
from hpcai500.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torch.optim import Optimizer

T = TypeVar("T")


class SerialExchange(GradientExchange):
    """Nothing to exchange: the gradients of one rank are the mean."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def finish(self) -> None:
        """Return at once."""


class SerialCommunicator(Communicator):
    """The group of one."""

    name = "serial"

    def __init__(self, *, device: str = "cpu", timeout_s: float = 0.0) -> None:
        place = find_place()
        if place.size > 1:
            raise UsageError(
                f"communicator 'serial' is for one rank, but {place.size} were started; "
                "choose torchdist, mpi or horovod, or start one process"
            )
        super().__init__(Place(rank=0, size=1, local_rank=0, local_size=1), device)

    def allreduce(self, values: np.ndarray, op: ReduceOp = "sum") -> np.ndarray:
        return values.copy()

    def allgather(self, obj: T) -> list[T]:
        return [obj]

    def gather(self, obj: T, root: int = 0) -> list[T] | None:
        return [obj]

    def gather_array(self, values: np.ndarray) -> np.ndarray | None:
        return values[None].copy()

    def broadcast(self, obj: T, root: int = 0) -> T:
        return obj

    def barrier(self) -> None:
        pass

    def exchange(
        self, module: nn.Module, optimizer: Optimizer, *, compression: Compression = "none"
    ) -> GradientExchange:
        return SerialExchange(module)

    def abort(self, exit_code: int) -> None:
        exit_now(exit_code)

    def close(self) -> None:
        pass

    def _broadcast_flat(self, flat: Tensor) -> None:
        pass

    def _sum_flat(self, flat: Tensor) -> None:
        pass
