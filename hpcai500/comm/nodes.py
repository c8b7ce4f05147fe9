"""Which node of a run a rank is on, told by the ranks themselves: launchers number nodes as they like, or not."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from hpcai500.comm.communicator import Communicator


class NodePlace(NamedTuple):
    """A node: its number, counted by the lowest rank of each, and that rank."""

    number: int
    first_rank: int


def find_node(comm: Communicator, host: str) -> NodePlace:
    """The node of this rank; collective, one sum of 8 bytes a rank.

    Args:
        comm: all ranks.
        host: the name of this rank's machine, which no other machine has.
    """
    names = np.zeros(comm.size, dtype=np.int64)
    names[comm.rank] = int.from_bytes(hashlib.sha256(host.encode()).digest()[:8], signed=True)
    names = comm.allreduce(names)
    _, first_ranks = np.unique(names, return_index=True)
    first_rank = int(np.flatnonzero(names == names[comm.rank])[0])
    return NodePlace(int((first_ranks < first_rank).sum()), first_rank)
