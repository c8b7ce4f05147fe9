"""What the devices of a node draw while the clock runs: counters of energy, read at its start, at its end and between.

Two sources, each where it can be read: the packages of processors by RAPL, as the kernel's powercap shows it (readable
by root alone on most machines since CVE-2020-8694), and NVIDIA GPUs by NVML, which comes with the driver. Neither knows
of memory, network, fans and losses of the power supply, so the sum is never the energy of a node.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from hpcai500.errors import BackendUnavailableError

POWERCAP = Path("/sys/class/powercap")
NVML_LIBRARY = "libnvidia-ml.so.1"
PERIOD_S = 30.0  # RAPL counters of 65 kJ wrap around after two minutes at 500 W

PATIENCE_S = 10.0


class Counter(Protocol):
    """A counter of some devices of a node."""

    source: str
    num_devices: int

    def read_j(self) -> float:
        """Energy in J that all of them drew since the counter was opened.

        Raises:
            OSError: it cannot be read any more.
        """


class RaplCounter:
    """Packages of processors, as ``intel-rapl:N`` beneath ``folder``; AMD's are called so too."""

    source = "rapl"

    def __init__(self, folder: Path = POWERCAP) -> None:
        """Take the first reading.

        Raises:
            BackendUnavailableError: there is no package whose counter can be read.
        """
        zones = [path for path in sorted(folder.glob("intel-rapl:*")) if path.name.count(":") == 1]
        try:
            names = {zone: (zone / "name").read_text().strip() for zone in zones}
            self._zones = [zone for zone, name in names.items() if name.startswith("package")]
            self._ranges_uj = [int((zone / "max_energy_range_uj").read_text()) for zone in self._zones]
            self._last_uj = self._read()
        except (OSError, ValueError) as error:
            raise BackendUnavailableError(f"the energy counters beneath {str(folder)!r} cannot be read") from error
        if not self._zones:
            raise BackendUnavailableError(f"there are no energy counters of processors beneath {str(folder)!r}")
        # A package of several dies has a zone for each: package-0-die-0, package-0-die-1.
        self.num_devices = len({names[zone].partition("-die-")[0] for zone in self._zones})
        self._total_uj = 0

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]

    def read_j(self) -> float:
        """A counter that has fallen has wrapped around, once."""
        now_uj = self._read()
        for now, last, wraps_at in zip(now_uj, self._last_uj, self._ranges_uj, strict=True):
            self._total_uj += now - last if now >= last else now - last + wraps_at
        self._last_uj = now_uj
        return self._total_uj * 1e-6


class NvmlCounter:
    """All NVIDIA GPUs that this process can see; those since Volta count (``nvmlDeviceGetTotalEnergyConsumption``)."""

    source = "nvml"

    def __init__(self, library: str = NVML_LIBRARY) -> None:
        """Take the first reading.

        Raises:
            BackendUnavailableError: there is no driver, no GPU, or one that does not count.
        """
        try:
            self._nvml = ctypes.CDLL(library)
            self._call("nvmlInit_v2")
            count = ctypes.c_uint()
            self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
            self._handles = [ctypes.c_void_p() for _ in range(count.value)]
            for index, handle in enumerate(self._handles):
                self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
            self._first_mj = self._read()
        except (OSError, AttributeError) as error:
            raise BackendUnavailableError(f"NVML ({library}) tells no energy on this machine") from error
        if not self._handles:
            raise BackendUnavailableError("NVML sees no GPU on this machine")
        self.num_devices = len(self._handles)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._nvml, name)(*arguments)
        if status != 0:
            raise OSError(f"{name} returned {status}")

    def _read(self) -> int:
        total, energy_mj = 0, ctypes.c_ulonglong()
        for handle in self._handles:
            self._call("nvmlDeviceGetTotalEnergyConsumption", handle, ctypes.byref(energy_mj))
            total += energy_mj.value
        return total

    def read_j(self) -> float:
        """Since the counter was opened."""
        return (self._read() - self._first_mj) * 1e-3


def open_counters(*, on_cuda: bool) -> list[Counter]:
    """The counters that can be read here."""
    counters: list[Counter] = []
    with suppress(BackendUnavailableError):
        counters.append(RaplCounter())
    if on_cuda:
        with suppress(BackendUnavailableError):
            counters.append(NvmlCounter())
    return counters


class EnergyMeter:
    """Reads counters from now until it is stopped, often enough that none wraps around unseen.

    ::

        meter = EnergyMeter(open_counters(on_cuda=True))
        ...
        for value in meter.stop():
            ledger.write("energy", value)
    """

    def __init__(self, counters: Sequence[Counter], period_s: float = PERIOD_S) -> None:
        self._counters, self._period_s = list(counters), period_s
        self._first_j = self._read()
        self._num_readings = 1
        self._begin_ns = time.perf_counter_ns()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hpcai500-energy", daemon=True)
        if self._counters:
            self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(self._period_s):
            self._read()
            self._num_readings += 1

    def _read(self) -> dict[str, float]:
        """What each counter says; one that cannot be read any more is given up."""
        readings = {}
        for counter in list(self._counters):
            try:
                readings[counter.source] = counter.read_j()
            except (OSError, ValueError):
                self._counters.remove(counter)
        return readings

    def stop(self) -> list[dict[str, Any]]:
        """The ledger events ``energy``: one for each counter that could be read all the time."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(PATIENCE_S)
            if self._thread.is_alive():  # a driver that hangs must not hold the end of a run
                return []
        last_j = self._read()
        duration_ns = time.perf_counter_ns() - self._begin_ns
        return [
            {
                "source": counter.source,
                "num_devices": counter.num_devices,
                "energy_j": max(0.0, last_j[counter.source] - self._first_j[counter.source]),
                "duration_ns": duration_ns,
                "num_readings": self._num_readings + 1,
            }
            for counter in self._counters
        ]
