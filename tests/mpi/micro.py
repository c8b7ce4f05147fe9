"""``python -m hpcai500.micro`` with sizes so small that two ranks on one core are done in seconds."""

from __future__ import annotations

import sys

from hpcai500.comm.communicator import run_rank
from hpcai500.micro import command


def shrink() -> None:
    from hpcai500.micro import rates, steps

    steps.QUICK = steps.Repeats(rounds=1, steps=2, calls=1, budget_s=0.0)
    rates.QUICK = rates.RateSizes(2, {"cpu": 64}, {"cpu": 2**16}, 2**10, (2**10, 2**12), 8, 2)


if __name__ == "__main__":
    measure = command.measure

    def measure_little(*args: object) -> object:
        shrink()  # after the command has bound its ranks, since this imports torch
        return measure(*args)  # type: ignore[arg-type]

    command.measure = measure_little  # type: ignore[assignment]
    run_rank(lambda: command.main(sys.argv[1:]))
