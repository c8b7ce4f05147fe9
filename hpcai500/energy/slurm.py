"""Energy of all nodes of a job step as Slurm's accounting has it: ``sstat``, where the site gathers energy.

Rank 0 asks for all nodes together, so Slurm is asked seldom, however many nodes there are. ``scontrol show node`` tells
the watts of a node but not when they were read, and ``sacct`` the energy of the whole step with its start-up, so
neither can be cut at the clock; both are left alone. Which plugin reads is noted: rapl and gpu read chips, ipmi, xcc
and pm_counters nodes.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping

from hpcai500.comm.launchers import expand_nodes
from hpcai500.energy.recorder import Source, own_reading
from hpcai500.errors import BackendUnavailableError

TIMEOUT_S = 30.0
MAX_J = 2**53  # Slurm 22.05 subtracts without a sign: what it says after a failed reading of a node is near 2**64
PLUGIN = re.compile(r"^AcctGatherEnergyType\s*=\s*(?:acct_gather_energy/)?(\S+)\s*$", re.MULTILINE)


class SlurmSource(Source):
    """All nodes of the step that this process is of."""

    name = "slurm"
    period_s = 30.0

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Take the first reading.

        Raises:
            BackendUnavailableError: this is no step of Slurm, or the site gathers no energy.
        """
        job, step = environ.get("SLURM_JOB_ID"), environ.get("SLURM_STEP_ID")
        if not job or not step:
            raise BackendUnavailableError("this process is in no step of Slurm")
        words = ["sstat", "--noheader", "--parsable2", "--format=ConsumedEnergyRaw,Nodelist", "--jobs", f"{job}.{step}"]
        self._words, self._nodes = words, ""
        try:
            found = PLUGIN.search(_answer(["scontrol", "show", "config"]))
            if found is None or found[1] in ("none", "(null)"):
                raise BackendUnavailableError("this site's Slurm gathers no energy (AcctGatherEnergyType is none)")
            self.plugin = found[1]
            self.read()
        except (OSError, ValueError) as error:
            raise BackendUnavailableError(f"Slurm tells no energy of step {job}.{step} ({error})") from error
        self.num_devices = len(expand_nodes(self._nodes))

    def read(self) -> tuple[int, float]:
        """Energy in J of the step up to now; sstat has all nodes read it afresh."""
        with own_reading() as reading:
            answer = _answer(self._words).strip()
        energy, _, nodes = answer.partition("|")
        if not energy.isdecimal() or int(energy) >= MAX_J or not nodes:
            raise ValueError(f"sstat says {answer[:100]!r}")
        self._nodes = nodes
        return reading.time_ns, float(energy)


def _answer(words: list[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{words[0]} did not answer within {TIMEOUT_S:g} s") from error
    if done.returncode != 0 or not done.stdout.strip():
        raise OSError(done.stderr.strip()[:200] or f"{words[0]} says nothing")
    return done.stdout
