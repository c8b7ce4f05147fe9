"""What readings of energy are worth: no figure, an informative one, or a measured one."""

from __future__ import annotations

from typing import NamedTuple

from hpcai500.formats import EnergyLabel, EnergySource

# Sources that stand between the wall and the whole node; the others count what chips say of themselves.
WALL_SOURCES = frozenset({"ipmi", "meter"})
MEASURED_SPACING_S = 1.0  # one reading a second: MLCommons' power_measurement.adoc of MLPerf Training and HPC
SPACING_ROOM = 1.02  # [ours] clocks of meters run apart from those of nodes, and a reading a second drifts
MEASURED_GAP_S = 1.5  # [ours] the next reading may be late, but one that is missing shows
MEASURED_ACCURACY = 0.05  # 5 %: the same rules of MLPerf
POWER_GAP_S = 60.0  # [ours] beyond it nothing is known of the power between two readings
# Linux powercap's counters wrap around at max_energy_range_uj, mostly 65.5 or 262 kJ: after a minute at 1 kW.
RAPL_GAP_S = 60.0


class Readings(NamedTuple):
    """How the readings of one source were taken, on the node on which that went worst.

    Attributes:
        source: where they come from.
        is_power: readings are of power, not of a counter.
        mean_spacing_s: mean time between two.
        longest_gap_s: the longest.
        accuracy: stated largest error as a part of the reading; None where nobody stated one.
    """

    source: EnergySource
    is_power: bool
    mean_spacing_s: float
    longest_gap_s: float
    accuracy: float | None


def largest_gap_s(source: EnergySource, *, is_power: bool) -> float:
    """The longest time in s between two readings that leaves a figure at all; of counters that never wrap any."""
    if source == "rapl":
        return RAPL_GAP_S
    return POWER_GAP_S if is_power else float("inf")


def label_of(readings: Readings) -> EnergyLabel:
    """The label that readings earn which cover the whole clock on all nodes.

    "measured", as in MLPerf's rules for power (power_measurement.adoc: at the power supplies of all nodes, at least one
    sample a second, an instrument good to 5 %), if all of these hold:

    - the source stands at the wall: IPMI's DCMI reading of the power supplies, or the file of a meter;
    - one reading a second in the mean, and no two further apart than MEASURED_GAP_S;
    - its accuracy is stated, and at most 5 %.

    Everything else is "informative": RAPL and NVML are what chips estimate or sense of themselves, without memory,
    fans, network and losses, and Slurm does not tell how often its plugin reads. The power of switches and storage is
    in neither, where MLPerf asks for the network's share.
    """
    is_dense = readings.mean_spacing_s <= SPACING_ROOM * MEASURED_SPACING_S and readings.longest_gap_s <= MEASURED_GAP_S
    is_accurate = readings.accuracy is not None and readings.accuracy <= MEASURED_ACCURACY
    return "measured" if readings.source in WALL_SOURCES and is_dense and is_accurate else "informative"
