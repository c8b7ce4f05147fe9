"""How far the clocks of ranks are apart, by round trips, as NTP does it (RFC 5905, section 8).

Rank 0 reads its clock, broadcasts, waits for all in a barrier and reads it again; the others read theirs in between.
A clock that agrees lies in the middle of the round trip, give or take half of it, whatever way the messages took. Of
several round trips the shortest counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hpcai500.comm.communicator import Communicator

NUM_ROUNDS = 20


def measure_clock(comm: Communicator, clock_ns: Callable[[], int] = time.time_ns) -> tuple[float, float]:
    """Nanoseconds by which this rank's clock is ahead of rank 0's, and by how many that may be wrong; collective.

    Args:
        comm: all ranks.
        clock_ns: reads this rank's wall clock.
    """
    mine, begin, end = [], [], []
    for _ in range(NUM_ROUNDS):
        comm.barrier()
        begin.append(clock_ns())
        comm.broadcast(None)
        mine.append(clock_ns())
        comm.barrier()
        end.append(clock_ns())
    begin, end = comm.broadcast((begin, end))
    if comm.rank == 0:
        return 0.0, 0.0
    trip, first, now = min((last - first, first, now) for first, now, last in zip(begin, mine, end, strict=True))
    return now - first - trip / 2, trip / 2
