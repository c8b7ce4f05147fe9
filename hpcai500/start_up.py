"""Measures where the time goes before a rank's clock starts; the parts are those of the ledger's start_up event."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

JOB_START_VARIABLE = "HPCAI500_JOB_START_NS"  # Unix time at which the job started; the job's driver sets both
LAUNCH_VARIABLE = "HPCAI500_LAUNCH_NS"  # ... and at which it started the ranks
PARTS = ("import", "rendezvous", "data_open", "model", "wait")


class StartUpTimer:
    """Splits the time since this process was started; each lap gives the time since the last one to a part."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        env = os.environ if environ is None else environ
        self._part_ns = dict.fromkeys(PARTS, 0)
        self._last_ns = process_start_ns()
        launched_ns = _number(env.get(LAUNCH_VARIABLE)) or self._last_ns
        job_ns = _number(env.get(JOB_START_VARIABLE)) or launched_ns
        self._allocation_ns = max(0, launched_ns - job_ns)
        self._launch_ns = max(0, self._last_ns - launched_ns)

    def lap(self, part: str) -> None:
        """Give the time since the last lap to ``part``, one of PARTS."""
        now_ns = time.time_ns()
        self._part_ns[part] += max(0, now_ns - self._last_ns)
        self._last_ns = now_ns

    def event(self) -> dict[str, int]:
        """The value of the ledger's start_up event, in ns."""
        parts = {f"{part}_ns": amount_ns for part, amount_ns in self._part_ns.items()}
        return {"allocation_ns": self._allocation_ns, "launch_ns": self._launch_ns, **parts}


def process_start_ns() -> int:
    """Unix time at which this process was started, to the kernel's tick of 10 ms (proc(5), field 22 of stat)."""
    fields = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    since_boot_ns = int(fields[19]) * 10**9 // os.sysconf("SC_CLK_TCK")
    return time.time_ns() - (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - since_boot_ns)


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0
