"""What accelerators and processors cannot do better than, as rules/devices.toml says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

PositiveNumber = Annotated[float, msgspec.Meta(gt=0)]


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an accelerator cannot do better than (rules/devices.toml says what each figure is, and whence).

    Attributes:
        pattern: shell wildcards for its name.
        peak_flops: dense peak in flop/s by number format.
        fabric_bytes_per_s: of a network of its own between nodes; 0 where there is none.
    """

    pattern: str
    peak_flops: dict[str, PositiveNumber]
    memory_bytes_per_s: PositiveNumber
    bus_bytes_per_s: PositiveNumber
    power_limit_w: PositiveNumber
    idle_w: PositiveNumber
    source: str
    fabric_bytes_per_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0

    def flops_bound(self, precision: str) -> float:
        """What no run of that precision passes, in flop/s: fp32 products may be tf32 at every level.

        A number format that the device has not is computed in one that it has.
        """
        formats = ("fp32", "tf32") if precision == "fp32" else (precision,)
        peaks = [self.peak_flops[name] for name in formats if name in self.peak_flops]
        return max(peaks or self.peak_flops.values())


class Processors(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What no processor does better than (rules/devices.toml).

    Attributes:
        max_clock_hz: of any core.
        flop_per_cycle: of a core, by instruction set and number format.
        memory_bytes_per_s, power_limit_w, idle_w: of a socket.
    """

    max_clock_hz: PositiveNumber
    flop_per_cycle: dict[str, dict[str, PositiveNumber]]
    memory_bytes_per_s: PositiveNumber
    power_limit_w: PositiveNumber
    idle_w: PositiveNumber

    def flops_bound(self, instruction_sets: Sequence[str], precision: str) -> float:
        """What a core passes in no precision, in flop/s.

        A number format that the processor has not is computed in fp32. One that tells no instruction set that is known
        here may have any.
        """
        known = [self.flop_per_cycle[name] for name in instruction_sets if name in self.flop_per_cycle]
        rates = [rate for rates in known for name, rate in rates.items() if name in ("fp32", precision)]
        anything = [rate for rates in self.flop_per_cycle.values() for rate in rates.values()]
        return self.max_clock_hz * max(rates or anything)
