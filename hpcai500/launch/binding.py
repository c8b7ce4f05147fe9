"""Binds a rank to the cores next to its GPU, or to its even share of the cores.

Called first thing in a rank, before torch is imported: threads and worker processes inherit the affinity of the thread
that starts them. Memory needs no call of its own: Linux places a page on the NUMA node of the core that touches it
first, so a rank that stays on its node keeps its memory there.

A rank that cannot be bound runs unbound: binding makes a run faster, never possible. ``Binding.reason`` says what
was done and why. What a launcher has bound already (Slurm's task/affinity, ``mpirun --bind-to core``) is kept.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hpcai500.errors import BackendUnavailableError
from hpcai500.launch.topology import (
    Core,
    find_gpus,
    format_cpu_list,
    gpu_cpus,
    gpu_numa_node,
    read_cores,
)
from hpcai500.nvidia_smi import query_gpus

T = TypeVar("T")
THREADS_VARIABLE = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Binding:
    """Where a rank runs.

    Attributes:
        cores: numbers of the logical CPUs it may use.
        numa_node: the one they all belong to; None if they belong to several.
        gpu: PCI bus id of its GPU; None for a rank on processors, or where it could not be found out.
        num_threads: threads that fit: OMP_NUM_THREADS from now on.
        bound: whether this changed the affinity.
        reason: what was done and why, in words.
    """

    cores: tuple[int, ...]
    numa_node: int | None
    gpu: str | None
    num_threads: int
    bound: bool
    reason: str


def bind_rank(local_rank: int, local_size: int, device: str, sysfs: Path = Path("/sys")) -> Binding:
    """Bind this process and set OMP_NUM_THREADS to what fits; never fails.

    Args:
        local_rank: this rank's number among those of its machine.
        local_size: how many they are.
        device: "cpu", or "cuda" or "cuda:N" for a rank that computes on a GPU.
        sysfs: where the kernel describes the machine.
    """
    allowed = os.sched_getaffinity(0)
    masks = _slurm_masks(os.environ)
    gpus, problem = visible_gpus(os.environ) if device.startswith("cuda") else ([], "")
    binding = plan_binding(
        local_rank,
        local_size,
        allowed=allowed,
        available=_num_available(allowed, masks, os.environ),
        bound_apart=len(set(masks)) > 1,
        gpus=gpus,
        sysfs=sysfs,
    )
    if problem:
        binding = _with(binding, reason=f"{binding.reason}; its GPU is unknown: {problem}")
    if binding.bound:
        try:
            os.sched_setaffinity(0, binding.cores)
        except OSError as error:
            binding = _with(
                binding,
                cores=tuple(sorted(allowed)),
                numa_node=None,
                bound=False,
                reason=f"not bound: {error.strerror}",
            )
    told = os.environ.get(THREADS_VARIABLE, "").split(",")[0]  # nested levels follow behind commas
    if not told.isdigit() or int(told) > len(binding.cores):
        os.environ[THREADS_VARIABLE] = str(binding.num_threads)
    else:
        binding = _with(binding, num_threads=int(told))
    return binding


def plan_binding(
    local_rank: int,
    local_size: int,
    *,
    allowed: Collection[int],
    available: int,
    bound_apart: bool = False,
    gpus: Sequence[str] = (),
    sysfs: Path,
) -> Binding:
    """Decide where a rank shall run, without doing it.

    Args:
        local_rank: as in ``bind_rank``.
        local_size: as in ``bind_rank``.
        allowed: logical CPUs this process may use now.
        available: how many its launcher has for all ranks of this machine; 0 if that is unknown.
        bound_apart: the launcher says that it gave the ranks of this machine different CPUs.
        gpus: bus ids of the GPUs this process sees; empty for a rank on processors.
        sysfs: where the kernel describes the machine.
    """
    cores = read_cores(allowed, sysfs)
    gpu = gpus[device_index(local_rank, len(gpus))] if gpus else None
    near = gpu_cpus(gpu, sysfs) if gpu else set()
    if gpu and not near and (node := gpu_numa_node(gpu, sysfs)) is not None:
        near = {cpu for core in cores if core.numa_node == node for cpu in core.cpus}
    left = _left_as_it_is(cores, local_size, available, near, bound_apart=bound_apart)
    if left:
        reason, num_threads = left
        return _result(cores, gpu, bound=False, num_threads=num_threads, reason=reason)
    next_to_gpu = [core for core in cores if near.intersection(core.cpus)]
    if gpu and next_to_gpu and len(next_to_gpu) < len(cores):
        position, sharing = _among_neighbours(local_rank, local_size, gpus, gpu, sysfs)
        if len(next_to_gpu) >= sharing:
            return _result(_part(next_to_gpu, position, sharing), gpu, reason=f"cores next to GPU {gpu}")
    why = f"; cores next to GPU {gpu} are not known or not ours" if gpu and not next_to_gpu else ""
    if local_size == 1:
        return _result(cores, gpu, bound=False, reason=f"the only rank of its machine uses all cores it may{why}")
    share = _split_by_numa_node(cores, local_rank, local_size)
    return _result(share, gpu, reason=f"an even share of {len(cores)} cores{why}")


def _left_as_it_is(
    cores: Sequence[Core], local_size: int, available: int, near: Collection[int], *, bound_apart: bool
) -> tuple[str, int] | None:
    """Why the affinity must stay as it is, and how many threads then fit; None if it need not."""
    cpus = {cpu for core in cores for cpu in core.cpus}
    if bound_apart or len(cpus) < available:
        hint = ", to none next to its GPU; let the launcher bind by GPU" if near and not cpus.intersection(near) else ""
        return f"the launcher bound this rank{hint}", max(1, min(len(cores), available // local_size))
    if 0 < available < len(cores):
        reason = f"not bound: the job has {available} of {len(cores)} cores and nobody says which"
        return reason, max(1, available // local_size)
    if len(cores) < local_size:
        return f"not bound: {local_size} ranks share {len(cores)} cores", 1
    return None


def device_index(local_rank: int, num_visible: int) -> int:
    """Which of the GPUs a process sees is a rank's own: under Slurm each task may see but its own one, as number 0."""
    return local_rank % num_visible if num_visible else local_rank


def visible_gpus(environ: Mapping[str, str]) -> tuple[list[str], str]:
    """Bus ids of the GPUs that CUDA shows this process, in CUDA's order, and why there are none.

    Numbers in CUDA_VISIBLE_DEVICES count in the order of PCI, which is CUDA's own order where all GPUs are of one kind.
    """
    try:
        known = query_gpus(("index", "uuid", "pci.bus_id"))
    except BackendUnavailableError as error:
        return [], str(error)
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return [gpu["pci.bus_id"] for gpu in known], "" if known else "nvidia-smi shows none"
    gpus = []
    for word in filter(None, (part.strip() for part in chosen.split(","))):
        match = [gpu for gpu in known if gpu["index"] == word or (len(word) > 4 and gpu["uuid"].startswith(word))]
        if len(match) != 1:
            break  # CUDA too stops at the first entry it does not know
        gpus.append(match[0]["pci.bus_id"])
    return (
        gpus,
        "" if gpus else f"CUDA_VISIBLE_DEVICES={chosen!r} names none of the {len(known)} GPUs that nvidia-smi shows",
    )


def _among_neighbours(local_rank: int, local_size: int, gpus: Sequence[str], gpu: str, sysfs: Path) -> tuple[int, int]:
    """The number of this rank among the ranks whose GPUs are next to the same cores, and how many they are."""
    near = gpu_cpus(gpu, sysfs)
    if len(gpus) >= local_size:
        neighbours = [rank for rank in range(local_size) if gpu_cpus(gpus[rank], sysfs) == near]
        return neighbours.index(local_rank), len(neighbours)
    # Each task sees only its own GPU: if the ranks use all GPUs, those of the machine tell the same.
    beside = [device for device in find_gpus(sysfs) if gpu_cpus(device, sysfs) == near]
    own = gpu.lower()[-len("0000:00:00.0") :]
    if own in beside and len(beside) <= local_size:
        return beside.index(own), len(beside)
    return local_rank, local_size


def _split_by_numa_node(cores: list[Core], local_rank: int, local_size: int) -> list[Core]:
    """An even share of the cores that does not reach over NUMA nodes where it need not."""
    nodes = sorted({core.numa_node for core in cores})
    if local_size <= len(nodes):
        mine = _part(nodes, local_rank, local_size)
        return [core for core in cores if core.numa_node in mine]
    # Ranks are dealt to nodes in proportion to the cores there: rank r to where core r * cores // ranks is.
    homes = [cores[rank * len(cores) // local_size].numa_node for rank in range(local_size)]
    home = homes[local_rank]
    at_home = [core for core in cores if core.numa_node == home]
    mates = [rank for rank, node in enumerate(homes) if node == home]
    return _part(at_home, mates.index(local_rank), len(mates))


def _part(values: Sequence[T], index: int, num_parts: int) -> list[T]:
    return list(values[index * len(values) // num_parts : (index + 1) * len(values) // num_parts])


def _result(
    cores: Sequence[Core], gpu: str | None, *, bound: bool = True, num_threads: int | None = None, reason: str
) -> Binding:
    nodes = {core.numa_node for core in cores}
    cpus = tuple(sorted(cpu for core in cores for cpu in core.cpus))
    return Binding(
        cores=cpus,
        numa_node=nodes.pop() if len(nodes) == 1 else None,
        gpu=gpu,
        num_threads=num_threads or len(cores),
        bound=bound,
        reason=f"{reason}: CPU {format_cpu_list(cpus)}",
    )


def _num_available(allowed: Collection[int], masks: Sequence[str], environ: Mapping[str, str]) -> int:
    """How many logical CPUs the launcher has here: as Slurm says, else as many as our parent process may use.

    Slurm counts cores where a node's CPUs are cores, its masks always count hardware threads.
    """
    if masks:
        return max(int(masks[0], 16).bit_count(), len(allowed))
    told = environ.get("SLURM_CPUS_ON_NODE", "")
    if told.isdigit():
        return int(told)
    try:
        return max(len(os.sched_getaffinity(os.getppid())), len(allowed))
    except OSError:
        return 0


def _slurm_masks(environ: Mapping[str, str]) -> list[str]:
    """The masks (0x...) of the tasks on this node where srun has bound them; empty otherwise."""
    if not environ.get("SLURM_CPU_BIND_TYPE", "").startswith("mask_cpu"):
        return []
    return [mask for mask in environ.get("SLURM_CPU_BIND_LIST", "").split(",") if mask.startswith("0x")]


def _with(binding: Binding, **changes: object) -> Binding:
    return Binding(**{**vars(binding), **changes})
