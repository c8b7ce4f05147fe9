"""NVIDIA GPUs by NVML, which comes with the driver: their own sensors, without the node around them."""

from __future__ import annotations

import ctypes
from typing import Any

from hpcai500.energy.recorder import Source, own_reading
from hpcai500.errors import BackendUnavailableError

NVML_LIBRARY = "libnvidia-ml.so.1"


class NvmlSource(Source):
    """All NVIDIA GPUs that this process can see; those since Volta count (``nvmlDeviceGetTotalEnergyConsumption``)."""

    name = "nvml"
    period_s = 10.0

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
            self._first_mj = self._read_mj()
        except (OSError, AttributeError) as error:
            raise BackendUnavailableError(f"NVML ({library}) tells no energy on this machine") from error
        if not self._handles:
            raise BackendUnavailableError("NVML sees no GPU on this machine")
        self.num_devices = len(self._handles)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._nvml, name)(*arguments)
        if status != 0:
            raise OSError(f"{name} returned {status}")

    def _read_mj(self) -> int:
        total, energy_mj = 0, ctypes.c_ulonglong()
        for handle in self._handles:
            self._call("nvmlDeviceGetTotalEnergyConsumption", handle, ctypes.byref(energy_mj))
            total += energy_mj.value
        return total

    def read(self) -> tuple[int, float]:
        """Energy in J since the source was opened."""
        with own_reading() as reading:
            energy_mj = self._read_mj()
        return reading.time_ns, (energy_mj - self._first_mj) * 1e-3
