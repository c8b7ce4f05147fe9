"""Energy between two times from readings of power or of a counter of energy, taken one after the other.

Between two readings power is taken to change linearly (trapezoidal rule), a counter to have counted evenly; at the two
times themselves that line is cut. Nothing is ever extrapolated: time that no two readings enclose has no energy.
"""

from __future__ import annotations

from typing import Literal

NS_PER_S = 10**9
Quantity = Literal["power_w", "energy_j"]


class Integrator:
    """Adds up energy from ``begin_ns`` to ``end_ns`` while readings come, and keeps the last one only.

    Attributes:
        begin_ns, end_ns: Unix time; while the end is not known yet it is None.
        energy_j: what readings tell of the time between.
        num_readings: that lie there or enclose it; 0 until two do.
        longest_gap_ns: between two of them.
        first_ns, last_ns: of all readings; None before the first.
    """

    def __init__(self, begin_ns: int, end_ns: int | None, quantity: Quantity) -> None:
        self.begin_ns, self.end_ns, self.quantity = begin_ns, end_ns, quantity
        self.energy_j, self.num_readings, self.longest_gap_ns = 0.0, 0, 0
        self.first_ns: int | None = None
        self.last_ns: int | None = None
        self._last_value = 0.0

    @property
    def is_covered(self) -> bool:
        """Whether readings enclose the whole time."""
        if self.first_ns is None or self.last_ns is None or self.end_ns is None:
            return False
        return self.first_ns <= self.begin_ns and self.last_ns >= self.end_ns and self.num_readings > 1

    def add(self, time_ns: int, value: float) -> None:
        """Take in a reading.

        Args:
            time_ns: Unix time, later than that of the reading before.
            value: power in W, or what a counter shows in J.

        Raises:
            ValueError: it is not later, or a counter went back or power is below 0; nothing is taken in.
        """
        before_ns, before = self.last_ns, self._last_value
        if before_ns is None:
            _check_not_negative(value)
            self.first_ns, self.last_ns, self._last_value = time_ns, time_ns, value
            return
        if time_ns <= before_ns:
            raise ValueError("a reading is not later than the one before")
        _check_not_negative(value)
        if self.quantity == "energy_j" and value < before:
            raise ValueError(f"the counter went back from {before:.9g} J to {value:.9g} J")
        self.last_ns, self._last_value = time_ns, value
        left_ns = max(before_ns, self.begin_ns)
        right_ns = time_ns if self.end_ns is None else min(time_ns, self.end_ns)
        if right_ns <= left_ns:
            return
        gap_ns = time_ns - before_ns
        left, right = (left_ns - before_ns) / gap_ns, (right_ns - before_ns) / gap_ns
        if self.quantity == "energy_j":
            self.energy_j += (value - before) * (right - left)
        else:
            mean_w = before + (value - before) * (left + right) / 2
            self.energy_j += mean_w * (right_ns - left_ns) / NS_PER_S
        self.num_readings += 1 if self.num_readings else 2
        self.longest_gap_ns = max(self.longest_gap_ns, gap_ns)


def _check_not_negative(value: float) -> None:
    if not 0 <= value < float("inf"):  # not a number is refused too
        raise ValueError(f"a reading of {value:g} is none")
