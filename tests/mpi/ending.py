"""The last rank ends badly while the others wait for it: python ending.py COMMUNICATOR abort|kill|raise FOLDER."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from hpcai500.comm.communicator import open_communicator, run_rank

FOLDER = Path(sys.argv[3])


def main() -> int:
    with open_communicator(sys.argv[1], timeout_s=60) as comm:
        (FOLDER / f"pid-{comm.rank}").write_text(str(os.getpid()))
        comm.barrier()
        if comm.rank == comm.size - 1:
            if sys.argv[2] == "abort":
                comm.abort(3)
            if sys.argv[2] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("this rank has a bug")
        comm.allgather("waiting for the rank that never comes")
    (FOLDER / "went-on").touch()
    return 0


if __name__ == "__main__":
    run_rank(main)
