"""Starts the MPI library, which mpi4py or Horovod is linked with, so that no message comes too early.

Open MPI 5 crashes if a rank gets a message while it is still in MPI_Init, between the fence at its end and the entry of
MPI_COMM_WORLD in its tables (open-mpi/ompi, issue 12495, open in 5.0.11): "Segmentation fault ... in
mca_pml_ob1_recv_frag_callback_match". Under srun, whose fence releases the nodes one after the other, 6 of 80 starts of
6 ranks on 3 nodes crashed. So there the ranks meet once without MPI before the first one sends.
"""

from __future__ import annotations

import ctypes
import datetime
import os

from torch._C._distributed_c10d import TCPStore

from hpcai500.comm.launchers import find_launcher, find_place, meeting_point

THREAD_MULTIPLE = 3  # MPI_THREAD_MULTIPLE of Open MPI and MPICH
TIMEOUT_S = 300.0
_stores: list[TCPStore] = []  # held: rank 0 serves it, and others may ask late


def is_initialized(library: ctypes.CDLL) -> bool:
    """Whether MPI was started in this process."""
    flag = ctypes.c_int()
    library.MPI_Initialized(ctypes.byref(flag))
    return bool(flag.value)


def initialize_mpi(library: ctypes.CDLL) -> None:
    """Call MPI_Init_thread without holding Python's lock, and return when it has returned on all ranks.

    It takes seconds and waits for all ranks: meanwhile other threads can stage data, and end a rank that waits in vain.

    Args:
        library: what is linked with MPI; symbols are looked up in what it is linked with, too.
    """
    library.MPI_Init_thread(None, None, ctypes.c_int(THREAD_MULTIPLE), ctypes.byref(ctypes.c_int()))
    place, meeting = find_place(), meeting_point(os.environ, "after MPI_Init")
    if find_launcher(os.environ) == "Slurm" and place.size > 1 and meeting is not None:
        timeout = datetime.timedelta(seconds=TIMEOUT_S)
        _stores.append(TCPStore(*meeting, place.size, place.rank == 0, timeout, wait_for_workers=True))
