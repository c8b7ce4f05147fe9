"""Entry point of ``python -m hpcai500.micro``, which ranks are started with."""

from __future__ import annotations

from hpcai500.comm.communicator import run_rank
from hpcai500.micro.command import main

if __name__ == "__main__":
    run_rank(main)
