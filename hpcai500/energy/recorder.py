"""Reads sources of energy while a run is trained, each at its own rate, and says what they told of the time between."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from hpcai500.energy.integrate import Integrator, Quantity
from hpcai500.formats import EnergySource

PATIENCE_S = 10.0  # a driver or a BMC that hangs must not hold the end of a run


class Source(ABC):
    """Something that tells what devices of a node, or of all nodes, draw.

    Attributes:
        name: the word that stands in the ledger.
        period_s: from one reading to the next.
        quantity: what readings are.
        num_devices: devices that it tells of.
        accuracy: stated largest error as a part of the reading; None where nobody stated one.
        plugin: what reads for it; None where it reads itself.
    """

    name: ClassVar[EnergySource]
    period_s: float
    quantity: ClassVar[Quantity] = "energy_j"
    num_devices: int
    accuracy: float | None = None
    plugin: str | None = None

    @abstractmethod
    def read(self) -> tuple[int, float]:
        """Unix time in ns, and power in W or energy in J since the source was opened.

        Raises:
            OSError: it cannot be read now.
            ValueError: what it says is no reading.
        """


@dataclass
class OwnReading:
    """A reading that is being taken."""

    time_ns: int


@contextmanager
def own_reading() -> Iterator[OwnReading]:
    """Takes the time of a reading: the middle of the time that it took."""
    reading = OwnReading(time.time_ns())
    yield reading
    reading.time_ns += (time.time_ns() - reading.time_ns) // 2


class _Follower(threading.Thread):
    """Reads one source until it is stopped; a reading that fails is left out, and so makes a gap."""

    def __init__(self, source: Source) -> None:
        super().__init__(name=f"hpcai500-energy-{source.name}", daemon=True)
        self._source, self._stopped = source, threading.Event()
        self._first: tuple[int, float] | None = None
        self.integrator: Integrator | None = None
        with suppress(OSError, ValueError):
            self._first = source.read()

    def begin(self, begin_ns: int) -> None:
        """From here on energy counts."""
        self.integrator = Integrator(begin_ns, None, self._source.quantity)
        if self._first is not None:
            self.integrator.add(*self._first)
        self.start()

    def run(self) -> None:
        assert self.integrator is not None
        next_s = time.monotonic() + self._source.period_s
        while not self._stopped.wait(max(0.0, next_s - time.monotonic())):
            self._read()
            next_s = max(next_s + self._source.period_s, time.monotonic())
        self._read()

    def _read(self) -> None:
        assert self.integrator is not None
        with suppress(OSError, ValueError):
            self.integrator.add(*self._source.read())

    def stop(self, end_ns: int) -> None:
        """Take the last reading."""
        assert self.integrator is not None
        self.integrator.end_ns = end_ns
        self._stopped.set()

    def event(self, within_s: float) -> dict[str, Any] | None:
        """The event ``energy``; None if readings do not enclose all of the time."""
        self.join(within_s)
        integrator, source = self.integrator, self._source
        if self.is_alive() or integrator is None or integrator.end_ns is None or not integrator.is_covered:
            return None
        return {
            "source": source.name,
            "plugin": source.plugin,
            "num_devices": source.num_devices,
            "energy_j": integrator.energy_j,
            "wall_ns": integrator.begin_ns,
            "duration_ns": integrator.end_ns - integrator.begin_ns,
            "num_readings": integrator.num_readings,
            "longest_gap_ns": integrator.longest_gap_ns,
            "accuracy": source.accuracy,
        }


class EnergyMeter:
    """Reads sources once when it is made, then from ``begin`` until ``stop``.

    ::

        meter = EnergyMeter(sources)
        meter.begin()
        ...
        for value in meter.stop():
            ledger.write("energy", value)
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._followers = [_Follower(source) for source in sources]

    def begin(self) -> None:
        """From now on energy counts."""
        begin_ns = time.time_ns()
        for follower in self._followers:
            follower.begin(begin_ns)

    def stop(self) -> list[dict[str, Any]]:
        """The ledger events ``energy``: one for each source whose readings enclose the time."""
        end_ns, until_s = time.time_ns(), time.monotonic() + PATIENCE_S
        for follower in self._followers:
            follower.stop(end_ns)
        told = [follower.event(max(0.0, until_s - time.monotonic())) for follower in self._followers]
        return [event for event in told if event is not None]
