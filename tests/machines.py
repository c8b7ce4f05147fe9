"""Pretended machines: a sysfs tree with sockets, hardware threads and GPUs, and an nvidia-smi that shows GPUs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def make_sysfs(root: Path, *, nodes: Sequence[int], threads: int = 2, gpus: Sequence[int] = ()) -> Path:
    """Build a machine in ``root``.

    CPUs are numbered as on most servers: first one thread of every core, then the other thread of every core.

    Args:
        root: the tree's root.
        nodes: number of cores of each NUMA node.
        threads: hardware threads a core.
        gpus: NUMA node of each GPU; -1 where the firmware does not say.
    """
    num_cores = sum(nodes)
    first = 0
    for node, size in enumerate(nodes):
        cpus = [first + core + thread * num_cores for thread in range(threads) for core in range(size)]
        _write(root / f"devices/system/node/node{node}/cpulist", ",".join(map(str, cpus)))
        for core in range(first, first + size):
            siblings = [core + thread * num_cores for thread in range(threads)]
            for cpu in siblings:
                _write(
                    root / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", ",".join(map(str, siblings))
                )
        first += size
    for number, node in enumerate(gpus):
        device = root / "bus/pci/devices" / bus_id(number)
        _write(device / "vendor", "0x10de")
        _write(device / "class", "0x030200")
        _write(device / "numa_node", str(node))
        everywhere = f"0-{num_cores * threads - 1}"
        near = (root / f"devices/system/node/node{node}/cpulist").read_text() if node >= 0 else everywhere
        _write(device / "local_cpulist", near)
    return root


def bus_id(number: int) -> str:
    """As sysfs writes it; GPUs of one switch have neighbouring buses."""
    return f"0000:{0x1B + number:02x}:00.0"


def make_nvidia_smi(folder: Path, rows: Sequence[dict[str, str]], *, exit_code: int = 0) -> Path:
    """A program ``nvidia-smi`` in ``folder`` (to be put first on PATH) that answers queries from these rows."""
    program = folder / "nvidia-smi"
    folder.mkdir(parents=True, exist_ok=True)
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        f"rows, exit_code = {list(rows)!r}, {exit_code}\n"
        "if exit_code:\n"
        "    print('NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.')\n"
        "    sys.exit(exit_code)\n"
        "query = next(word for word in sys.argv if word.startswith('--query-gpu=')).partition('=')[2]\n"
        "for row in rows:\n"
        "    print(', '.join(row.get(field, '[N/A]') for field in query.split(',')))\n"
    )
    program.chmod(0o755)
    return program


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
