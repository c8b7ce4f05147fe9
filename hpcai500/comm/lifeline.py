"""Every rank keeps a line to rank 0, so that all end within seconds, and say why, when one of them is gone.

Without it a rank that waits for a dead one waits as long as its library does: MPI for ever, torch.distributed for
minutes, and none says for whom. Three things end a run:

- A rank's connection closes without a goodbye: its process is gone. Noticed at once, since the kernel closes it.
  If its whole node is gone, the kernel of the other side notices after ``node_silence_s``.
- A rank is silent: its process is stopped or hangs. Heartbeats come from a thread that needs Python's lock, which a
  call may hold for long (loading a library, or reading a file with h5py, from a file system that stands still), so the
  limit is generous; in a dead process or node it plays no part.
- A rank waits longer than ``comm.timeout_s`` in a collective call: heartbeats tell where each rank is, so the ranks
  that have not entered the call can be named.

Rank 0 decides and tells all others, which then call ``on_lost``; each rank judges rank 0 for itself.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from hpcai500.comm.communicator import OPENING_TIMEOUT_S, Communicator, deadline
from hpcai500.comm.lifeline_ends import Hub, Limits, Spoke
from hpcai500.errors import CommunicationError, StoppedError

INTERRUPT_PATIENCE_S = 0.5  # a launcher that has lost a rank interrupts the others within milliseconds
ERROR_PATIENCE_S = 5.0  # a library may see a closed connection before the lifeline does
END_PATIENCE_S = 60.0  # for on_lost to close files on a slow file system


class Lifeline:
    """Watches all ranks while it is open. Opening and closing are collective.

    As a context manager it closes itself, and on an exception gives the others a word: see ``settle``.

    Args:
        comm: the ranks.
        on_lost: is called with one sentence, once in a process, in the lifeline's thread, when a rank is lost; it must
            end the process.
        limits: shorter ones in tests.

    Raises:
        CommunicationError: a rank cannot reach rank 0.
    """

    def __init__(self, comm: Communicator, on_lost: Callable[[str], None], *, limits: Limits | None = None) -> None:
        self._comm, self._on_lost = comm, on_lost
        self._lost = threading.Event()
        self._lock = threading.Lock()
        self._end: Hub | Spoke | None = None
        if comm.size == 1:
            return
        limits = limits or Limits()
        with deadline(OPENING_TIMEOUT_S, f"rank {comm.rank} waited in vain for the others to open their lifelines"):
            hosts = comm.allgather(socket.gethostname())
            problem = ""
            if comm.rank == 0:
                secret = secrets.token_bytes(32)
                hub = self._end = Hub(comm, hosts, self._lose, limits, secret=secret)
                comm.broadcast((secret, hub.addresses))
            else:
                offer: tuple[bytes, list[tuple[str, int]]] = (b"", [])
                secret, addresses = comm.broadcast(offer)
                try:
                    self._end = Spoke(comm, hosts, self._lose, limits, secret=secret, addresses=addresses)
                except ConnectionError as error:
                    problem = str(error)
            problems = [text for text in comm.allgather(problem) if text]
            if problems:
                if self._end is not None:
                    self._end.close()
                raise CommunicationError(problems[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Close; on an exception that ends this rank alone, settle with the others first."""
        if error is None or isinstance(error, StoppedError):
            self.close()
        else:
            self.settle(error)

    def settle(self, error: BaseException) -> None:
        """Call this when an exception ends this rank, before anything is said or written about it.

        A rank that fails because another is gone sees only an error of its library, or its launcher's interrupt. If
        such an error may be behind this one, wait a moment; if so, ``on_lost`` ends this process, and this call does
        not return. Otherwise tell the others that this rank leaves.
        """
        if self._end is None or isinstance(error, StoppedError):
            return
        patience_s = 0.0
        if isinstance(error, KeyboardInterrupt):
            self._end.leave("it was interrupted")
            patience_s = INTERRUPT_PATIENCE_S
        elif isinstance(error, RuntimeError | CommunicationError):
            patience_s = ERROR_PATIENCE_S
        if _wait(self._lost, patience_s):
            _wait(threading.Event(), END_PATIENCE_S)
        self._end.leave(str(error).partition("\n")[0] or type(error).__name__)

    def close(self) -> None:
        """Stop watching, when all ranks have come here; collective. A second call does nothing."""
        if self._end is None:
            return
        self._comm.barrier()
        self._end.close()
        self._end = None

    def _lose(self, message: str) -> None:
        with self._lock:
            if self._lost.is_set():
                return
            self._lost.set()
        self._on_lost(message)


def _wait(event: threading.Event, seconds: float) -> bool:
    """Wait for the event, even if a launcher interrupts this rank meanwhile."""
    end_s = time.monotonic() + seconds
    while not event.is_set() and (left_s := end_s - time.monotonic()) > 0:
        with suppress(KeyboardInterrupt):
            event.wait(left_s)
    return event.is_set()
