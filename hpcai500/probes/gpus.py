"""Health of the GPUs of a node, as nvidia-smi tells it."""

from __future__ import annotations

import shutil
from typing import Any

from hpcai500.errors import BackendUnavailableError
from hpcai500.nvidia_smi import query_gpus

BASIC = ("index", "name", "pci.bus_id", "driver_version", "memory.total", "temperature.gpu")
# Every driver since 2017 knows these; newer ones also call them clocks_event_reasons.*. A power cap in software is how
# a GPU runs under full load and no sign of illness.
HEALTH = {
    "ecc.errors.uncorrected.volatile.total": "uncorrected ECC errors since boot",
    "retired_pages.pending": "memory pages wait to be retired",
    "clocks_throttle_reasons.hw_slowdown": "slowed down by hardware",
    "clocks_throttle_reasons.hw_thermal_slowdown": "slowed down by heat",
    "clocks_throttle_reasons.hw_power_brake_slowdown": "slowed down by the power supply",
    "clocks_throttle_reasons.sw_thermal_slowdown": "slowed down by the driver because of heat",
}
MAX_TEMPERATURE_C = 90  # our choice: data centre GPUs slow down at 85 to 95 degrees
HEALTHY = ("0", "no", "not active", "[n/a]", "n/a", "[not supported]")


def read_gpus() -> list[dict[str, Any]]:
    """Each GPU of this node: index, name, bus_id, driver, memory_mib, temperature_c and a list of problems.

    A node without nvidia-smi has none.

    Raises:
        BackendUnavailableError: nvidia-smi is there and fails or hangs: the driver or a GPU is broken.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        rows = query_gpus((*BASIC, *HEALTH))
        known = True
    except BackendUnavailableError:
        rows, known = query_gpus(BASIC), False  # a driver that knows these fields no longer, or not yet
    return [_describe(row, known=known) for row in rows]


def _describe(row: dict[str, str], *, known: bool) -> dict[str, Any]:
    temperature_c = _number(row["temperature.gpu"])
    problems = [
        f"{text} ({row[field]})" if row[field].isdigit() else text
        for field, text in HEALTH.items()
        if known and row[field].lower() not in HEALTHY
    ]
    if temperature_c is not None and temperature_c > MAX_TEMPERATURE_C:
        problems.append(f"{temperature_c} degrees Celsius, over {MAX_TEMPERATURE_C}")
    return {
        "index": _number(row["index"]),
        "name": row["name"],
        "bus_id": row["pci.bus_id"],
        "driver": row["driver_version"],
        "memory_mib": _number(row["memory.total"]),
        "temperature_c": temperature_c,
        "health_known": known,
        "problems": problems,
    }


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
