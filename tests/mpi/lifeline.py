"""What becomes of ranks when one is lost: python lifeline.py COMMUNICATOR FOLDER kill|late|stop|end.

The last rank is the one that is lost, while the others train or wait. Each rank writes what its lifeline says to
FOLDER/lost-N and ends as a rank of a run does.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import torch

from hpcai500.comm.communicator import Communicator, end_process, open_communicator
from hpcai500.comm.lifeline import Lifeline
from hpcai500.comm.lifeline_ends import Limits
from hpcai500.command import LOST_RANK_EXIT_CODE
from hpcai500.failure import report_failure

COMMUNICATOR, FOLDER, HOW = sys.argv[1], Path(sys.argv[2]), sys.argv[3]


def train(comm: Communicator, num_steps: int) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(200, 200), torch.nn.Linear(200, 2))
    exchange = comm.exchange(module, torch.optim.SGD(module.parameters(), lr=0.1))
    for step in range(num_steps):
        loss = exchange.module(torch.ones(4, 200)).sum()
        if step == 3 and comm.rank == comm.size - 1:
            if HOW == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if HOW == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
        loss.backward()
        exchange.finish()
        module.zero_grad()


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher must not end them before the lifeline does
    comm = open_communicator(COMMUNICATOR, timeout_s=3.0 if HOW == "late" else 60.0)

    def on_lost(message: str) -> None:
        exit_code = report_failure(
            FOLDER, 0, rank=comm.rank, host=socket.gethostname(), reason=message, exit_code=LOST_RANK_EXIT_CODE
        )
        (FOLDER / f"telling-{comm.rank}").write_text(f"{exit_code} {message}", encoding="utf-8")
        (FOLDER / f"telling-{comm.rank}").replace(FOLDER / f"lost-{comm.rank}")
        # The launcher kills the others soon after the first has ended, on a busy machine before they have told.
        patience_s = time.monotonic() + (5 if HOW == "stop" else 0)
        while len(list(FOLDER.glob("lost-*"))) < comm.size - 1 and time.monotonic() < patience_s:
            time.sleep(0.05)
        os._exit(exit_code)

    with comm, Lifeline(comm, on_lost, limits=Limits(heartbeat_s=0.5, silence_s=4.0)):
        comm.barrier()
        train(comm, num_steps=6)
        if HOW == "late" and comm.rank == comm.size - 1:
            time.sleep(50)
        comm.allgather(comm.rank)


if __name__ == "__main__":
    main()
    end_process()
