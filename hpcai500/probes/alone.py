"""What each rank measures by itself, each part so that its failure or hanging is a finding and not the end."""

from __future__ import annotations

import platform
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hpcai500.errors import HpcAi500Error
from hpcai500.system import describe_software

T = TypeVar("T")
LIMIT_S = 60.0  # of one part; a hanging network file system or driver must not hold all nodes
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass
class RankReport:
    """What one rank found; everything can be pickled.

    Attributes:
        rank, local_rank: its place.
        host: the machine's name.
        boot_id: the same on two "nodes" that are one machine.
        versions: name to version of what must be equal on all nodes.
        figures: rates this rank measured, by name (verdict.FIGURES), each with the device it belongs to.
        devices: name of each GPU this rank measured, by device.
        gpus: health of each GPU of the node (first rank of a node only).
        data: what reading each data file gave (first rank of a node only).
        errors: what went wrong, by the part that did.
        clock: nanoseconds this clock is ahead of rank 0's, and how far off that may be.
        seconds: how long each part took.
    """

    rank: int
    local_rank: int
    host: str
    boot_id: str
    versions: dict[str, str] = field(default_factory=dict)
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    gpus: list[dict[str, Any]] = field(default_factory=list)
    data: list[dict[str, Any]] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    clock: tuple[float, float] | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def add_rate(self, figure: str, device: str, value: float) -> None:
        """Note a rate of a device."""
        self.figures.setdefault(figure, {})[device] = value

    def attempt(self, part: str, work: Callable[[], T], *, limit_s: float = LIMIT_S) -> T | None:
        """What ``work`` returns; None if it fails or gives no answer in time, which is then noted in ``errors``.

        Args:
            part: its name in ``errors`` and ``seconds``.
            work: what to do; runs in a thread, since a read from a dead file server cannot be interrupted.
            limit_s: how long it may take.
        """
        results: list[T] = []
        begin_s = time.monotonic()

        def run() -> None:
            try:
                results.append(work())
            except HpcAi500Error as error:
                self.errors[part] = str(error)
            except Exception as error:
                self.errors[part] = f"{type(error).__name__}: {error}"

        thread = threading.Thread(target=run, name=f"hpcai500-{part}", daemon=True)
        thread.start()
        thread.join(limit_s)
        self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - begin_s
        if thread.is_alive():
            self.errors[part] = f"no answer in {limit_s:g} s"
            return None
        return results[0] if results else None


def new_report(rank: int, local_rank: int) -> RankReport:
    """A report with nothing in it but who makes it."""
    boot_id = BOOT_ID.read_text(encoding="ascii").strip() if BOOT_ID.exists() else ""
    return RankReport(rank=rank, local_rank=local_rank, host=socket.gethostname(), boot_id=boot_id)


def read_versions(communicator: str) -> dict[str, str]:
    """Versions that must be equal on all ranks: of Python, libraries, the C library and the MPI library."""
    software = describe_software()
    versions = {"python": software["python"], **software["libraries"], "libc": " ".join(platform.libc_ver())}
    if communicator == "mpi":
        from mpi4py import MPI

        versions["mpi library"] = MPI.Get_library_version().splitlines()[0].strip(" \0")
    return versions
