"""What the exchange of gradients costs: a step of ResNet-50 with each communicator, without any, and with torch's own.

    python benchmarks/communicators.py [--ranks 2] [--batch 16] [--image-size 64] [--rounds 8] [--json FILE]

Each communicator gets launches of its own, in turn. Within a launch four steps alternate, so that all see the same
machine: without exchange, with the communicator's, with the communicator's and gradient_compression = bf16, and with
DistributedDataParallel over Gloo at its best (gradient_as_bucket_view, static_graph, no buffers, the built-in
all-reduce). float32; times are the slowest rank's.

Hidden is the share of the communication that backward hides: 1 - exposed / alone. Exposed is the time after the last
gradient exists until all means do, on the rank that comes last (on the others it is also waiting for that rank);
alone is the time of the same all-reduces with nothing computed meanwhile.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from report import figure

from hpcai500.comm.communicator import Communicator, end_process, open_communicator
from hpcai500.launch.local import run_ranks

COMMUNICATORS = ("torchdist", "mpi", "horovod")
COLUMNS = ("bare", "exchange", "bf16", "ddp", "exposed", "alone", "alone bf16")


def reference(model: Any, comm: Communicator) -> Any:
    """DistributedDataParallel at its best, over the default process group."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    if not dist.is_initialized():
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        meeting = f"{os.environ['HPCAI500_RENDEZVOUS']}-reference"
        dist.init_process_group("gloo", init_method=meeting, rank=comm.rank, world_size=comm.size)
    names = inspect.signature(DistributedDataParallel).parameters
    no_buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # until torch 2.12
    return DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True, **{no_buffers: False})


def communicate(exchange: Any) -> None:
    """The all-reduces of a step, with nothing computed meanwhile."""
    for bucket in exchange.buckets:
        exchange._start(bucket)
    for bucket in exchange.buckets:
        exchange._wait(bucket)


def measure(comm: Communicator, args: argparse.Namespace) -> list[list[float]]:
    """Run by every rank; returns for each round the seconds of COLUMNS."""
    import numpy as np
    import torch

    from hpcai500.models.resnet import ResNet50

    torch.manual_seed(0)
    bare = ResNet50().to(memory_format=torch.channels_last)
    own, rounded, other = (copy.deepcopy(bare) for _ in range(3))
    images = torch.randn(args.batch, 3, args.image_size, args.image_size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (args.batch,))
    modules = (bare, own, rounded, other)
    bare_sgd, own_sgd, rounded_sgd, ddp_sgd = (
        torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9) for module in modules
    )
    exchange = comm.exchange(own, own_sgd)
    compressed = comm.exchange(rounded, rounded_sgd, compression="bf16")
    ddp = reference(other, comm)

    def step(module: Any, optimizer: torch.optim.Optimizer, exchange: Any = None) -> tuple[float, float]:
        optimizer.zero_grad()
        comm.barrier()
        start = time.perf_counter()
        torch.nn.functional.cross_entropy(module(images), labels).backward()
        exposed = 0.0
        if exchange is not None:
            before = time.perf_counter()
            exchange.finish()
            exposed = time.perf_counter() - before
        optimizer.step()
        return time.perf_counter() - start, exposed

    def alone(exchange: Any) -> float:
        comm.barrier()
        start = time.perf_counter()
        communicate(exchange)
        return time.perf_counter() - start

    kinds: dict[str, Callable[[], tuple[float, float]]] = {
        "exchange": lambda: step(exchange.module, own_sgd, exchange),
        "bf16": lambda: step(compressed.module, rounded_sgd, compressed),
        "ddp": lambda: step(ddp, ddp_sgd),
    }
    rounds = []
    for number in range(args.rounds + 2):
        bare_s, _ = step(bare, bare_sgd)
        names = list(kinds)[number % len(kinds) :] + list(kinds)[: number % len(kinds)]  # each comes first in its turn
        steps = {name: kinds[name]() for name in names}
        times_s = [bare_s, *(steps[name][0] for name in kinds), alone(exchange), alone(compressed)]
        *most_s, alone_s, alone_bf16_s = comm.allreduce(np.array(times_s), "max").tolist()
        exposed_s = comm.allreduce(np.array([steps["exchange"][1]]), "min").item()
        if number > 1:  # the first rounds allocate, and DDP finds its buckets
            rounds.append([*most_s, exposed_s, alone_s, alone_bf16_s])
    return rounds


def quartiles(values: Sequence[float]) -> str:
    values = sorted(values)
    lower, upper = values[len(values) // 4], values[-1 - len(values) // 4]
    return f"{statistics.median(values):.3f} ({lower:.3f}..{upper:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16, help="samples per rank")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=8, help="rounds in each launch")
    parser.add_argument("--launches", type=int, default=2, help="launches of each communicator")
    parser.add_argument("--comm", action="append", choices=COMMUNICATORS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of:
        with open_communicator(args.rank_of) as comm:
            rounds_of_launch = measure(comm, args)
            if comm.rank == 0:
                args.result.write_text(json.dumps(rounds_of_launch), encoding="utf-8")
        return
    names = args.comm or list(COMMUNICATORS)
    rounds: dict[str, list[list[float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.launches):
            for name in names:
                result = Path(folder, "result.json")
                argv = [sys.executable, __file__, "--rank-of", name, "--result", str(result)]
                argv += [f"--{key}={getattr(args, key.replace('-', '_'))}" for key in ("batch", "image-size", "rounds")]
                if run_ranks(name, args.ranks, argv) != 0:
                    sys.exit(f"the ranks of {name} failed")
                rounds[name] += json.loads(result.read_text(encoding="utf-8"))
    if args.json:
        args.json.write_text(json.dumps(rounds), encoding="utf-8")
    print(f"{'medians, ms':<12}" + "".join(f"{name:>10}" for name in COLUMNS), end="")
    print("".join(f"{name:>26}" for name in ("exchange / ddp", "exchange / bare", "bf16 / exchange", "hidden")))
    for name in names:
        bare, own, rounded, ddp, exposed, alone, _ = columns = list(zip(*rounds[name], strict=True))
        print(f"{name:<12}" + "".join(f"{1000 * statistics.median(values):>10.1f}" for values in columns), end="")
        for what, better, ratios in (
            ("step / DistributedDataParallel", "less", [b / a for a, b in zip(ddp, own, strict=True)]),
            ("step / without exchange", "less", [b / a for a, b in zip(bare, own, strict=True)]),
            ("step with bf16 / fp32", "less", [b / a for a, b in zip(own, rounded, strict=True)]),
            ("hidden communication", "more", [1 - b / a for a, b in zip(alone, exposed, strict=True)]),
        ):
            print(f"{quartiles(ratios):>26}", end="")
            figure(f"{name}, {args.ranks} ranks: {what}", ratios, better=better)
        print()


if __name__ == "__main__":
    main()
    end_process()
