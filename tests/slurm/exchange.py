"""A small training in float64 whose losses must not depend on ranks, nodes, launchers or communicators.

    python exchange.py FOLDER COMMUNICATOR [COMMUNICATOR ...]

The communicators are opened one after the other, since importing torch takes longest. The model has no normalisation
and the batch of all ranks together is always the same, so their mean gradient is that of one rank with all samples.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import torch
from torch import nn

from hpcai500.comm.communicator import Communicator, end_process, open_communicator

NUM_SAMPLES, NUM_STEPS = 12, 6  # 12 can be shared equally by 1, 2, 3, 4 and 6 ranks


def losses(comm: Communicator) -> list[float]:
    """The mean loss over the samples of all ranks in each step."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(comm.rank)  # ranks begin differently, so the broadcast is needed
    module = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    comm.broadcast_module(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
    exchange = comm.exchange(module, optimizer)
    curve = []
    for _ in range(NUM_STEPS):
        inputs = torch.randn(NUM_SAMPLES, 6, generator=generator, dtype=torch.float64)
        labels = torch.randint(3, (NUM_SAMPLES,), generator=generator)
        mine = slice(comm.rank, None, comm.size)
        loss = nn.functional.cross_entropy(exchange.module(inputs[mine]), labels[mine])
        optimizer.zero_grad()
        loss.backward()
        exchange.finish()
        optimizer.step()
        curve.append(sum(comm.allgather(loss.item())) / comm.size)
    return curve


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    opened = {name: open_communicator(name, timeout_s=60) for name in names}
    for name, comm in opened.items():
        places = comm.allgather((socket.gethostname(), comm.local_rank, comm.local_size))
        curve = losses(comm)
        if comm.rank == 0:
            (folder / f"{name}.json").write_text(json.dumps({"losses": curve, "places": places}), encoding="utf-8")
    for comm in reversed(opened.values()):  # Horovod runs on the MPI that "mpi" started and ends
        comm.close()


if __name__ == "__main__":
    main()
    end_process()
