"""Ranks talking through torch.distributed: Gloo on processors, NCCL on GPUs, gradients by DistributedDataParallel.

Works under every launcher of ``communicator.LAUNCHER_VARIABLES``. Where the ranks meet, nobody has to type:

1. MASTER_ADDR and MASTER_PORT, if set (torchrun sets them);
2. HPCAI500_RENDEZVOUS, an init method of torch.distributed such as file:///shared/path (launch/local.py sets it);
3. under srun, the first node of the step and a port made from the numbers of job and step;
4. all ranks on one machine under mpiexec: a file in the folder that mpiexec makes for the job.
"""

from __future__ import annotations

import datetime
import inspect
import os
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket, HashStore
from torch.nn.parallel import DistributedDataParallel

from hpcai500.comm.communicator import Communicator, GradientExchange, Place, ReduceOp, exit_now, find_place
from hpcai500.errors import BackendUnavailableError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

T = TypeVar("T")
RENDEZVOUS_VARIABLE = "HPCAI500_RENDEZVOUS"
# average_buffers does it once per evaluation, not in every step. The option's name changed in torch 2.13.
_NO_BUFFER_SYNC: dict[str, Any] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}
)


def rendezvous(place: Place, environ: Mapping[str, str]) -> str:
    """The init method of torch.distributed on which all ranks of this launch agree without talking.

    Raises:
        UsageError: nothing in the environment tells where ranks on several machines could meet.
    """
    if "MASTER_ADDR" in environ and "MASTER_PORT" in environ:
        return f"tcp://{environ['MASTER_ADDR']}:{environ['MASTER_PORT']}"
    if RENDEZVOUS_VARIABLE in environ:
        return environ[RENDEZVOUS_VARIABLE]
    nodes = environ.get("SLURM_STEP_NODELIST")
    if nodes and "SLURM_STEP_NUM_TASKS" in environ and "PMIX_SERVER_TMPDIR" not in environ:
        # Below Linux' ephemeral ports (32768 on), so that no outgoing connection holds it by chance.
        number = int(environ["SLURM_JOB_ID"]) * 31 + int(environ.get("SLURM_STEP_ID", "0"))
        return f"tcp://{first_node(nodes)}:{15000 + number % 17000}"
    folder = environ.get("PMIX_SERVER_TMPDIR")  # Open MPI makes it for each job and removes it at the end
    if place.local_size == place.size and folder:
        return f"file://{folder}/hpcai500-rendezvous-{environ.get('PMIX_NAMESPACE', '')}"
    raise UsageError(
        f"the {place.size} ranks of torchdist do not know where to meet; start them with hpcai500, srun or torchrun, "
        f"or set {RENDEZVOUS_VARIABLE}=file:///PATH to a new file that all of them can reach"
    )


def first_node(nodes: str) -> str:
    """The first name of Slurm's short form: ``gpu[07-09,12],login`` gives gpu07."""
    match = re.match(r"([^,\[]+)(?:\[([^,\-\]]+)[^\]]*\])?", nodes)
    assert match is not None, f"Slurm gave a list of nodes without a node: {nodes!r}"
    return match[1] + (match[2] or "")


class DdpExchange(GradientExchange):
    """DistributedDataParallel, which all-reduces buckets inside backward and waits for them there.

    ``exposed_in_backward_ns`` is measured by a communication hook: it notes when the last bucket is handed over, which
    happens when the last gradient exists, so nothing is left to compute; a callback of autograd that is queued behind
    DDP's own notes when backward ends. The time between is spent waiting. On GPUs the host does not wait (NCCL's
    streams do), so there it tells only the host's part, about 0.
    """

    def __init__(self, module: nn.Module, *, device: str, unused_parameters: bool) -> None:
        self.module = DistributedDataParallel(
            module,
            device_ids=[torch.device(device).index or 0] if device.startswith("cuda") else None,
            **_NO_BUFFER_SYNC,
            gradient_as_bucket_view=True,
            find_unused_parameters=unused_parameters,
        )
        self._size = dist.get_world_size()
        self._last_bucket_ns = 0
        self.module.register_comm_hook(None, lambda _, bucket: self._all_reduce(bucket))

    def _all_reduce(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        if bucket.is_last():
            self._last_bucket_ns = time.monotonic_ns()
            # DDP queues its own callback, which waits, after this hook returns; ours must run after that one, so
            # it is queued by a callback.
            engine = torch.autograd.Variable._execution_engine
            engine.queue_callback(lambda: engine.queue_callback(self._backward_ended))
        work = dist.all_reduce(bucket.buffer().div_(self._size), async_op=True)
        assert work is not None
        averaged: torch.futures.Future[Tensor] = work.get_future().then(lambda future: future.value()[0])
        return averaged

    def _backward_ended(self) -> None:
        self.exposed_in_backward_ns = time.monotonic_ns() - self._last_bucket_ns

    def finish(self) -> None:
        """Return at once: DDP has waited inside backward."""


class TorchDistCommunicator(Communicator):
    """The default process group of torch.distributed."""

    name = "torchdist"

    def __init__(self, *, device: str = "cpu", timeout_s: float) -> None:
        place = find_place()
        super().__init__(place, device)
        cuda = self.device.startswith("cuda")
        if cuda and not dist.is_nccl_available():
            raise BackendUnavailableError("this torch was built without NCCL; install a CUDA build of torch for Linux")
        if place.local_size == place.size and not cuda:
            # Loopback: the host's name need not resolve, and no network is asked.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
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
            timeout=datetime.timedelta(seconds=timeout_s),
            **options,
        )

    def allreduce(self, values: np.ndarray, op: ReduceOp = "sum") -> np.ndarray:
        result = torch.from_numpy(np.array(values, ndmin=1))
        dist.all_reduce(result, getattr(dist.ReduceOp, op.upper()))
        return result.numpy().reshape(values.shape)

    def allgather(self, obj: T) -> list[T]:
        objects: list[Any] = [None] * self.size
        dist.all_gather_object(objects, obj)
        return objects

    def gather(self, obj: T, root: int = 0) -> list[T] | None:
        objects: list[Any] | None = [None] * self.size if self.rank == root else None
        dist.gather_object(obj, objects, dst=root)
        return objects

    def broadcast(self, obj: T, root: int = 0) -> T:
        objects: list[Any] = [obj]
        dist.broadcast_object_list(objects, src=root)
        return objects[0]  # type: ignore[no-any-return]

    def barrier(self) -> None:
        self.allreduce(np.zeros(1))  # dist.barrier would use NCCL and its device on GPUs; this one is Gloo's

    def exchange(self, module: nn.Module, optimizer: Optimizer, *, unused_parameters: bool = False) -> GradientExchange:
        return DdpExchange(module, device=self.device, unused_parameters=unused_parameters)

    def abort(self, exit_code: int) -> None:
        exit_now(exit_code)  # the launcher ends the others; without one their next collective call fails

    def close(self) -> None:
        if dist.is_initialized():
            self.barrier()  # the rank that serves the store must not leave before the others
            dist.destroy_process_group()

    def _broadcast_flat(self, flat: Tensor) -> None:
        dist.broadcast(flat, src=0)

    def _sum_flat(self, flat: Tensor) -> None:
        dist.all_reduce(flat)
