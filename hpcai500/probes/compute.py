"""How fast a device multiplies matrices and moves memory: the best of several repeats, so that noise only hides.

Sizes are fixed, so that all nodes do the same work. Bytes of the triad a = b + s c are counted as STREAM counts them:
two reads and a write, without what a cache reads before it writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from hpcai500.probes.alone import RankReport
from hpcai500.system import describe_node

CPU = torch.device("cpu")
MIN_REPEATS = 3
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
SCALE = 3.0


@dataclass(frozen=True)
class ComputeSizes:
    """How much a device is given to do.

    Attributes:
        matrix: rows and columns of the matrices.
        array_bytes: of each of the three arrays of the triad; well above the last cache.
        budget_s: how long each measurement is repeated, at least MIN_REPEATS times.
    """

    matrix: int
    array_bytes: int
    budget_s: float


QUICK = {"cpu": ComputeSizes(1024, 2**25, 0.3), "cuda": ComputeSizes(4096, 2**28, 0.2)}
LONG = {"cpu": ComputeSizes(4096, 2**28, 2.0), "cuda": ComputeSizes(8192, 2**30, 2.0)}


def measure_devices(report: RankReport, local_size: int, sizes: dict[str, ComputeSizes]) -> None:
    """Measure the devices that are this rank's share: its processors, and every local_size-th GPU that it sees."""
    report.attempt("memory", partial(_measure_memory, report, CPU, "memory", sizes["cpu"]))
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_gpus == 0:
        report.attempt("matrix product", partial(_measure_products, report, CPU, sizes["cpu"]))
    share = range(report.local_rank, num_gpus, local_size) if num_gpus >= local_size else range(num_gpus)
    for index in share:
        device = torch.device("cuda", index)
        report.devices[str(device)] = torch.cuda.get_device_name(device)
        report.attempt("matrix product", partial(_measure_products, report, device, sizes["cuda"]))
        report.attempt("GPU memory", partial(_measure_memory, report, device, "gpu_memory", sizes["cuda"]))


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware: Ampere or later (compute capability 8), or such instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return bool(set(BF16_INSTRUCTIONS).intersection(describe_node()["instruction_sets"]))


def product_flops(device: torch.device, dtype: torch.dtype, sizes: ComputeSizes) -> float:
    """Rate of a square matrix product in flop/s, 2 n^3 flop each."""
    n = sizes.matrix
    left, right = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    result = torch.empty(n, n, device=device, dtype=dtype)
    seconds = best_s(lambda: torch.mm(left, right, out=result), device, sizes.budget_s)
    if not bool(torch.isfinite(result).all()):
        raise ArithmeticError(f"the product of two finite matrices on {device} is not finite")
    return 2.0 * n**3 / seconds


def triad_bytes_per_s(device: torch.device, sizes: ComputeSizes) -> float:
    """Memory bandwidth of a = b + s c in bytes/s."""
    length = sizes.array_bytes // 8
    first, second, result = (torch.empty(length, dtype=torch.float64, device=device) for _ in range(3))
    first.fill_(1.0)  # by all threads, so that each page lies near the thread that will read it
    second.fill_(2.0)
    result.fill_(0.0)
    seconds = best_s(lambda: torch.add(first, second, alpha=SCALE, out=result), device, sizes.budget_s)
    if float(result.min()) != 7.0 or float(result.max()) != 7.0:
        raise ArithmeticError(f"1 + 3 * 2 is not 7 everywhere on {device}")
    return 3.0 * sizes.array_bytes / seconds


def best_s(work: Callable[[], object], device: torch.device, budget_s: float) -> float:
    """Seconds of the fastest repeat, after one that warms up."""
    fastest_s, begin_s, num_repeats = float("inf"), 0.0, -1
    while num_repeats < MIN_REPEATS or time.perf_counter() - begin_s < budget_s:
        if num_repeats == 0:
            begin_s = time.perf_counter()
        started_s = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if num_repeats >= 0:
            fastest_s = min(fastest_s, time.perf_counter() - started_s)
        num_repeats += 1
    return fastest_s


def _measure_products(report: RankReport, device: torch.device, sizes: ComputeSizes) -> None:
    report.add_rate("fp32", str(device), product_flops(device, torch.float32, sizes))
    if has_bf16(device):
        report.add_rate("bf16", str(device), product_flops(device, torch.bfloat16, sizes))


def _measure_memory(report: RankReport, device: torch.device, figure: str, sizes: ComputeSizes) -> None:
    report.add_rate(figure, str(device), triad_bytes_per_s(device, sizes))
