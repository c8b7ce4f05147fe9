"""What the exchange of gradients costs: a training step of ResNet-50 with each communicator and without any.

    python benchmarks/communicators.py [--ranks 2] [--batch 16] [--image-size 64] [--rounds 8] [--json FILE]

Each communicator gets a launch of its own, in which steps with and without exchange alternate, so that both see the
same machine; launches are repeated in turn. Reported are medians over all rounds of the slowest rank, in float32.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from hpcai500.comm.communicator import end_process, open_communicator
from hpcai500.launch.local import run_ranks

COMMUNICATORS = ("torchdist", "mpi", "horovod")


def measure(comm_name: str, batch: int, image_size: int, rounds: int, result: Path) -> None:
    """Run by every rank; rank 0 writes one line per round: seconds of the slowest rank."""
    import numpy as np
    import torch

    from hpcai500.models.resnet import ResNet50

    comm = open_communicator(comm_name)
    torch.manual_seed(0)
    bare = ResNet50().to(memory_format=torch.channels_last)
    model = copy.deepcopy(bare)
    images = torch.randn(batch, 3, image_size, image_size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,))
    exchange = None

    def step(module: torch.nn.Module, optimizer: torch.optim.Optimizer, exchanging: bool) -> tuple[float, float]:
        optimizer.zero_grad()
        comm.barrier()
        start = time.perf_counter()
        torch.nn.functional.cross_entropy(module(images), labels).backward()
        exposed = 0.0
        if exchanging:
            before = time.perf_counter()
            exchange.finish()
            exposed = time.perf_counter() - before + exchange.exposed_in_backward_ns / 1e9
        optimizer.step()
        return time.perf_counter() - start, exposed

    optimizers = [torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9) for module in (bare, model)]
    exchange = comm.exchange(model, optimizers[1])
    lines = []
    for number in range(rounds + 1):
        without, _ = step(bare, optimizers[0], exchanging=False)
        with_exchange, exposed = step(exchange.module, optimizers[1], exchanging=True)
        slowest = comm.allreduce(np.array([without, with_exchange, exposed]), "max")
        if number > 0:  # the first round allocates
            lines.append(slowest.tolist())
    if comm.rank == 0:
        result.write_text(json.dumps(lines), encoding="utf-8")
    comm.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16, help="samples per rank")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=8, help="pairs of steps in each launch")
    parser.add_argument("--launches", type=int, default=2, help="launches of each communicator")
    parser.add_argument("--comm", action="append", choices=COMMUNICATORS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of:
        measure(args.rank_of, args.batch, args.image_size, args.rounds, args.result)
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
    print(f"{'communicator':<14}{'without ms':>12}{'with ms':>10}{'exposed ms':>12}{'with / without':>24}")
    for name in names:
        without, with_exchange, exposed = zip(*rounds[name], strict=True)
        ratios = sorted(b / a for a, b in zip(without, with_exchange, strict=True))
        lower, upper = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        medians = [1000 * statistics.median(values) for values in (without, with_exchange, exposed)]
        print(
            f"{name:<14}{medians[0]:>12.0f}{medians[1]:>10.0f}{medians[2]:>12.1f}"
            f"{statistics.median(ratios):>12.3f} ({lower:.3f}..{upper:.3f})"
        )


if __name__ == "__main__":
    main()
    end_process()
