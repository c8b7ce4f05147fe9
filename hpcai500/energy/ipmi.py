"""Power of a whole node as its management controller (BMC) tells it: IPMI's DCMI power reading.

Asked with ``ipmitool`` or FreeIPMI's ``ipmi-dcmi``, whichever may do so, once in most of a second: a BMC makes a new
value about once a second. That costs the node a little, so it is done only where a site states how accurate its BMCs
are.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from typing import ClassVar

from hpcai500.energy.integrate import Quantity
from hpcai500.energy.recorder import Source, own_reading
from hpcai500.errors import BackendUnavailableError

COMMANDS = (
    ("ipmitool", "dcmi", "power", "reading"),
    ("ipmi-dcmi", "--get-system-power-statistics"),
)
# "Instantaneous power reading:    228 Watts" of ipmitool, "Current Power    : 164 Watts" of ipmi-dcmi
POWER = re.compile(r"^\s*(?:Instantaneous power reading|Current Power)\s*:\s*(\d+) Watts\s*$", re.MULTILINE)
# "Power reading state is:   activated", "Power Measurement    : Active"
STATE = re.compile(r"^\s*(?:Power reading state is|Power Measurement)\s*:\s*(\S+)\s*$", re.MULTILINE)
TIMEOUT_S = 5.0


def parse_power_w(text: str) -> float:
    """Power in W from what either command prints.

    Raises:
        ValueError: it has no power reading, or one of 0 W, or measuring is not active.
    """
    power, state = POWER.search(text), STATE.search(text)
    if power is None or int(power[1]) == 0:
        raise ValueError(f"the BMC gives no power reading: {text.strip()[:200]!r}")
    if state is not None and not state[1].lower().startswith("activ"):
        raise ValueError(f"the BMC does not measure power: it is {state[1]}")
    return float(power[1])


class IpmiSource(Source):
    """The power supplies of this node."""

    name = "ipmi"
    quantity: ClassVar[Quantity] = "power_w"
    period_s = 0.8  # so that no reading is more than a second after the last, though some take longer
    num_devices = 1

    def __init__(self, accuracy: float, commands: Sequence[Sequence[str]] = COMMANDS) -> None:
        """Find the command that works.

        Args:
            accuracy: largest error as a part of the reading, as the maker of the node states it.
            commands: to try, in order.

        Raises:
            BackendUnavailableError: none may read, or there is no BMC that measures power.
        """
        self.accuracy = accuracy
        problems = []
        for command in commands:
            self._command = command
            try:
                self.read()
            except (OSError, ValueError) as error:
                problems.append(f"{command[0]}: {error}")
            else:
                self.plugin = command[0]
                return
        raise BackendUnavailableError(f"no power reading by IPMI here ({'; '.join(problems)})")

    def read(self) -> tuple[int, float]:
        """Power in W now."""
        with own_reading() as reading:
            try:
                done = subprocess.run(self._command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
            except subprocess.TimeoutExpired as error:
                raise OSError(f"no answer within {TIMEOUT_S:g} s") from error
        if done.returncode != 0:
            raise OSError(done.stderr.strip()[:200] or f"exit code {done.returncode}")
        return reading.time_ns, parse_power_w(done.stdout)
