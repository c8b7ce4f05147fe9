"""How long ranks go on after one was killed: from SIGKILL until the last of the others ends, with each communicator.

    python benchmarks/dead_rank.py [--ranks 3] [--launches 5] [--comm mpi]

The ranks train a small network; the last one kills itself between two steps, so that the others wait for it in their
exchange of gradients. All are on one machine, whose monotonic clock they share. The ranks ignore SIGTERM, by which
mpiexec would end them.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from report import figure

from hpcai500.comm.communicator import open_communicator
from hpcai500.command import LOST_RANK_EXIT_CODE
from hpcai500.launch.local import run_ranks

COMMUNICATORS = ("torchdist", "mpi", "horovod")


def rank(name: str, folder: Path) -> None:
    """Train until the last rank is dead."""
    import torch

    from hpcai500.comm.lifeline import Lifeline

    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def on_lost(_: str) -> None:
        (folder / f"end-{comm.rank}").write_text(str(time.monotonic_ns()), encoding="ascii")
        os._exit(LOST_RANK_EXIT_CODE)

    with open_communicator(name) as comm, Lifeline(comm, on_lost):
        module = torch.nn.Linear(1000, 100)
        exchange = comm.exchange(module, torch.optim.SGD(module.parameters(), lr=0.1))
        for step in range(1000):
            if step == 20 and comm.rank == comm.size - 1:
                (folder / "kill").write_text(str(time.monotonic_ns()), encoding="ascii")
                os.kill(os.getpid(), signal.SIGKILL)
            exchange.module(torch.ones(8, 1000)).sum().backward()
            exchange.finish()
            module.zero_grad()


def measure(name: str, num_ranks: int) -> float:
    """Seconds of one launch."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        run_ranks(name, num_ranks, [sys.executable, __file__, "--rank-of", name, "--folder", text])
        ends = [int(path.read_text(encoding="ascii")) for path in folder.glob("end-*")]
        if len(ends) != num_ranks - 1:
            sys.exit(f"{name}: only {len(ends)} of {num_ranks - 1} ranks were told")
        return (max(ends) - int((folder / "kill").read_text(encoding="ascii"))) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--launches", type=int, default=5, help="launches of each communicator, in turn")
    parser.add_argument("--comm", action="append", choices=COMMUNICATORS)
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of:
        rank(args.rank_of, args.folder)
        return
    seconds: dict[str, list[float]] = {name: [] for name in args.comm or COMMUNICATORS}
    for _ in range(args.launches):
        for name, values in seconds.items():
            values.append(measure(name, args.ranks))
    print(f"{'communicator':<14}{'median ms':>12}{'lowest':>10}{'highest':>10}")
    for name, values in seconds.items():
        figures = [1000 * value for value in (statistics.median(values), min(values), max(values))]
        print(f"{name:<14}{figures[0]:>12.1f}{figures[1]:>10.1f}{figures[2]:>10.1f}")
        figure(f"{name}: from a rank's death to the end of all", values, "s")


if __name__ == "__main__":
    main()
