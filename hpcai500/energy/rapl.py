"""Packages of processors by RAPL, as the kernel's powercap shows it; AMD's are called so too.

Readable by root alone on most machines since CVE-2020-8694. The counters know nothing of memory, network and fans.
"""

from __future__ import annotations

from pathlib import Path

from hpcai500.energy.recorder import Source, own_reading
from hpcai500.errors import BackendUnavailableError

POWERCAP = Path("/sys/class/powercap")


class RaplSource(Source):
    """Zones ``intel-rapl:N`` beneath a folder, added up."""

    name = "rapl"
    period_s = 10.0  # counters of 65 kJ wrap around after a minute at 1 kW

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
            self._last_uj = self._read_uj()
        except (OSError, ValueError) as error:
            raise BackendUnavailableError(f"the energy counters beneath {str(folder)!r} cannot be read") from error
        if not self._zones:
            raise BackendUnavailableError(f"there are no energy counters of processors beneath {str(folder)!r}")
        # A package of several dies has a zone for each: package-0-die-0, package-0-die-1.
        self.num_devices = len({names[zone].partition("-die-")[0] for zone in self._zones})
        self._total_uj = 0

    def _read_uj(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]

    def read(self) -> tuple[int, float]:
        """Energy in J since the source was opened; a counter that has fallen has wrapped around, once."""
        with own_reading() as reading:
            now_uj = self._read_uj()
        for now, last, wraps_at in zip(now_uj, self._last_uj, self._ranges_uj, strict=True):
            self._total_uj += now - last if now >= last else now - last + wraps_at
        self._last_uj = now_uj
        return reading.time_ns, self._total_uj * 1e-6
