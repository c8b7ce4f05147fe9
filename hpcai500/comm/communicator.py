"""The interface through which ranks talk, and the table of those who implement it.

Words are MPI's: a rank is one process of a run, 0 <= rank < size; local_rank counts within one machine.
Every method but ``abort`` is collective: all ranks call it, in the same order.

::

    with open_communicator("mpi") as comm:
        comm.broadcast_module(model)
        exchange = comm.exchange(model, optimizer)
        for images, labels in batches:
            loss(exchange.module(images), labels).backward()   # gradients travel while this runs
            exchange.finish()                                  # .grad holds the mean over ranks
            optimizer.step()

Adding one: a subclass in a module of its own, one line in COMMUNICATORS, one word in tests/test_comm.py.
"""

from __future__ import annotations

import atexit
import importlib
import os
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TypeVar

from hpcai500.comm.calls import Calls, collective
from hpcai500.comm.launchers import Place, find_place
from hpcai500.comm.network import use_chosen_network
from hpcai500.command import LOST_RANK_EXIT_CODE
from hpcai500.errors import UnknownNameError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torch.optim import Optimizer

ReduceOp = Literal["sum", "min", "max"]
Compression = Literal["none", "bf16"]
T = TypeVar("T")

# Name on the command line -> module and class; imported only when chosen, since importing mpi4py.MPI starts MPI.
COMMUNICATORS = {
    "serial": ("hpcai500.comm.serial", "SerialCommunicator"),
    "torchdist": ("hpcai500.comm.torchdist", "TorchDistCommunicator"),
    "mpi": ("hpcai500.comm.mpi", "MpiCommunicator"),
    "horovod": ("hpcai500.comm.horovod", "HorovodCommunicator"),
}

DEFAULT_TIMEOUT_S = 600.0  # longer than the slowest checkpoint seen, which the other ranks wait for
OPENING_TIMEOUT_S = 300.0  # ranks that join late have imported torch from a slow file system
CLOSING_TIMEOUT_S = 120.0
# How much later than a lifeline the libraries give up by themselves: their messages do not name the missing rank.
LIBRARY_GRACE_S = 60.0


class GradientExchange(ABC):
    """Averages the gradients of one module over all ranks, while the backward pass still computes others.

    Attributes:
        module: call this one for the forward pass; it may be a wrapper of the module that was given.
    """

    module: nn.Module

    @abstractmethod
    def finish(self) -> None:
        """Return when every ``.grad`` holds the mean over ranks; call it after each backward pass.

        A parameter that some ranks used counts as 0 on the others; one that no rank used keeps None (or zeros).
        """


class Communicator(ABC):
    """A group of ranks. ``device`` is where the gradients are: "cpu" or "cuda:N"; "cuda" means the rank's own.

    Attributes:
        timeout_s: how long a collective call may wait for the others. A lifeline (hpcai500/comm/lifeline.py) holds all
            calls to it; without one torch.distributed and Horovod fail a minute later, and MPI waits for ever.
        calls: which call this rank is in.
    """

    name: str

    def __init__(self, place: Place, device: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self.calls = Calls(self.name, place.rank)
        self.rank, self.size = place.rank, place.size
        self.local_rank, self.local_size = place.local_rank, place.local_size
        self.device = own_gpu(place.local_rank) if device == "cuda" else device

    @abstractmethod
    def allreduce(self, values: np.ndarray, op: ReduceOp = "sum") -> np.ndarray:
        """Element-wise sum, minimum or maximum over ranks of a host array of int64 or float64, as a new array."""

    @abstractmethod
    def allgather(self, obj: T) -> list[T]:
        """The (picklable) objects of all ranks, in rank order, on all ranks."""

    @abstractmethod
    def gather(self, obj: T, root: int = 0) -> list[T] | None:
        """The objects of all ranks, in rank order, on ``root``; None on the others."""

    @abstractmethod
    def gather_array(self, values: np.ndarray) -> np.ndarray | None:
        """Host arrays of all ranks, of one shape and type (integers or floats), stacked on rank 0: ``(size, *shape)``.

        None on the others. Nothing is pickled, and what arrives are the arrays' bytes alone.
        """

    def start_gather(self, values: np.ndarray) -> Callable[[], np.ndarray | None]:
        """Begin ``gather_array``; returns what waits for its end and gives its result. Both calls are collective.

        Other calls may come between them. A library that can do nothing meanwhile gathers at once.
        """
        gathered = self.gather_array(values)
        return lambda: gathered

    @abstractmethod
    def broadcast(self, obj: T, root: int = 0) -> T:
        """The object of ``root`` on all ranks; what the others pass is ignored."""

    @abstractmethod
    def barrier(self) -> None:
        """Return when all ranks have called it."""

    @abstractmethod
    def exchange(
        self, module: nn.Module, optimizer: Optimizer, *, compression: Compression = "none"
    ) -> GradientExchange:
        """Prepare the exchange of gradients of a module that is the same on all ranks (see broadcast_module).

        Args:
            module: on ``device``; its parameters get hooks, so exchange a module only once.
            optimizer: steps after ``finish``; it may hold parameters of this module in any order.
            compression: what gradients travel as: as they are, or as bfloat16, which is added in float32.
        """

    @abstractmethod
    def abort(self, exit_code: int) -> None:
        """End all ranks now with this exit code (not 0); does not return. Not collective: one rank is enough."""

    @abstractmethod
    def close(self) -> None:
        """Leave the group in peace; collective. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        """Close, unless an exception ends the block: the other ranks are then elsewhere, and closing would hang.

        Let such a rank's process end with a code that is not 0; its launcher then ends the others.
        """
        if exception_type is None:
            with deadline(CLOSING_TIMEOUT_S, f"rank {self.rank} waited in vain for the others to end"):
                self.close()

    @abstractmethod
    def _broadcast_flat(self, flat: Tensor) -> None:
        """Overwrite a contiguous host tensor with that of rank 0."""

    @abstractmethod
    def _sum_flat(self, flat: Tensor) -> None:
        """Overwrite a contiguous host tensor of floats with its sum over ranks."""

    @collective("broadcast of the model")
    def broadcast_module(self, module: nn.Module) -> None:
        """Overwrite parameters and buffers with those of rank 0."""
        for tensors in _by_dtype([*module.parameters(), *module.buffers()]):
            flat = _flatten(tensors)
            self._broadcast_flat(flat)
            _unflatten(flat, tensors)

    @collective("average of the buffers")
    def average_buffers(self, module: nn.Module) -> None:
        """Overwrite floating-point buffers (running statistics of normalisation) with their mean over ranks.

        Each rank keeps statistics of its own samples while it trains; the mean is what an evaluation shall use.
        """
        for tensors in _by_dtype(buffer for buffer in module.buffers() if buffer.is_floating_point()):
            flat = _flatten(tensors)
            self._sum_flat(flat)
            _unflatten(flat.div_(self.size), tensors)


def _by_dtype(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())


def _flatten(tensors: list[Tensor]) -> Tensor:
    import torch

    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).cpu()


def _unflatten(flat: Tensor, tensors: list[Tensor]) -> None:
    import torch

    for part, tensor in zip(torch.split(flat, [tensor.numel() for tensor in tensors]), tensors, strict=True):
        tensor.detach().copy_(part.view_as(tensor))


def own_gpu(local_rank: int) -> str:
    """The GPU of a rank: of those it sees, the one with its number, or the only one where Slurm shows it no other."""
    import torch

    from hpcai500.launch.binding import device_index

    return f"cuda:{device_index(local_rank, torch.cuda.device_count())}"


def exit_now(exit_code: int) -> NoReturn:
    """End this process without closing anything, but with what it has printed."""
    assert exit_code != 0, "an abort must not look like success"
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def end_process(exit_code: int = 0) -> NoReturn:
    """End this rank when its work is done and its files are closed; does not return.

    Python's own exit functions run, the destructors of C++ libraries do not: threads of torch.distributed may still be
    running then, and a rank that has succeeded would be aborted ("terminate called without an active exception").
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def run_rank(main: Callable[[], int]) -> NoReturn:
    """Run what a rank is started for, and end its process with the exit code that ``main`` returns; does not return.

    An exception that nobody caught is printed as Python does, and the exit code is 1; left to Python's own exit,
    threads of torch.distributed that still run could make it that of an abort.
    """
    try:
        exit_code = main()
    except Exception:
        sys.excepthook(*sys.exc_info())
        exit_code = 1
    end_process(exit_code)


@contextmanager
def deadline(timeout_s: float, message: str) -> Iterator[None]:
    """End this process with LOST_RANK_EXIT_CODE if the block takes longer than ``timeout_s``.

    For blocks in a library that waits for other ranks where no lifeline is open.
    """

    def end() -> None:
        sys.stderr.write(f"hpcai500: {message} for {timeout_s:g} s on {socket.gethostname()}, so it ends\n")
        sys.stderr.flush()
        os._exit(LOST_RANK_EXIT_CODE)

    timer = threading.Timer(timeout_s, end)
    timer.name, timer.daemon = "hpcai500-deadline", True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def open_communicator(
    name: str,
    *,
    device: str = "cpu",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    opening_timeout_s: float = OPENING_TIMEOUT_S,
) -> Communicator:
    """Join the group of ranks that the launcher has started; collective.

    Args:
        name: a key of COMMUNICATORS.
        device: where the gradients are, "cpu", "cuda" (one for each local rank) or "cuda:N".
        timeout_s: how long a collective call may wait for the others; see Communicator.
        opening_timeout_s: how long to wait for the others to join; then this process ends with LOST_RANK_EXIT_CODE.

    Raises:
        UnknownNameError: there is no communicator of this name.
        BackendUnavailableError: its library is missing or cannot work here.
        UsageError: the launcher and the communicator do not fit together.
    """
    if name not in COMMUNICATORS:
        raise UnknownNameError("communicator", name, COMMUNICATORS)
    use_chosen_network(os.environ)
    module, cls = COMMUNICATORS[name]
    implementation = getattr(importlib.import_module(module), cls)
    with deadline(opening_timeout_s, f"rank {find_place().rank} waited in vain for the others to join"):
        communicator: Communicator = implementation(device=device, timeout_s=timeout_s)
    return communicator
