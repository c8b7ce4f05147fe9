"""Which cores, NUMA nodes and GPUs lie next to each other, as the kernel's sysfs tells it.

``sysfs`` is a parameter everywhere, because machines with several sockets are rarer than tests of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

NVIDIA_VENDOR = "0x10de"  # pci.ids
# PCI classes of GPUs: VGA controller and 3D controller (pci.ids); audio and USB functions of the same card have others.
GPU_CLASSES = ("0x0300", "0x0302")


@dataclass(frozen=True)
class Core:
    """One physical core: its hardware threads (numbers of logical CPUs) and its NUMA node, 0 if there is but one."""

    cpus: tuple[int, ...]
    numa_node: int


def parse_cpu_list(text: str) -> set[int]:
    """The numbers of the kernel's short form: ``0-3,8`` gives 0, 1, 2, 3, 8."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def format_cpu_list(cpus: Iterable[int]) -> str:
    """The kernel's short form of these numbers."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def read_cores(allowed: Collection[int], sysfs: Path) -> list[Core]:
    """The physical cores of the allowed CPUs, each with its allowed threads only, in the order of NUMA nodes."""
    node_of = {}
    for folder in (sysfs / "devices/system/node").glob("node[0-9]*"):
        for cpu in parse_cpu_list(_read(folder / "cpulist")):
            node_of[cpu] = int(folder.name.removeprefix("node"))
    cores = set()
    for cpu in allowed:
        topology = sysfs / f"devices/system/cpu/cpu{cpu}/topology"
        siblings = _read(topology / "core_cpus_list") or _read(topology / "thread_siblings_list")
        threads = (parse_cpu_list(siblings) & set(allowed)) | {cpu}
        cores.add(Core(tuple(sorted(threads)), node_of.get(cpu, 0)))
    return sorted(cores, key=lambda core: (core.numa_node, core.cpus))


def gpu_numa_node(bus_id: str, sysfs: Path) -> int | None:
    """The NUMA node a GPU is attached to; None where the firmware does not say (the kernel then tells -1)."""
    text = _read(_device(bus_id, sysfs) / "numa_node")
    return int(text) if text and int(text) >= 0 else None


def gpu_cpus(bus_id: str, sysfs: Path) -> set[int]:
    """The CPUs next to a GPU; empty where the kernel does not know the device."""
    return parse_cpu_list(_read(_device(bus_id, sysfs) / "local_cpulist"))


def find_gpus(sysfs: Path) -> list[str]:
    """Bus ids of all NVIDIA GPUs of the machine, also of those a scheduler hides from this process, in order."""
    found = []
    for device in (sysfs / "bus/pci/devices").glob("*"):
        if _read(device / "vendor") == NVIDIA_VENDOR and _read(device / "class").startswith(GPU_CLASSES):
            found.append(device.name)
    return sorted(found)


def _device(bus_id: str, sysfs: Path) -> Path:
    """nvidia-smi writes 00000000:1B:00.0 and sysfs 0000:1b:00.0."""
    domain, _, rest = bus_id.lower().partition(":")
    return sysfs / "bus/pci/devices" / f"{domain[-4:]}:{rest}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
