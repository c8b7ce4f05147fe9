"""Figures of energy: of a run, and of all runs together from the source that is worth most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hpcai500.energy.label import label_of
from hpcai500.energy.told import Told, stretches_of, told_of
from hpcai500.formats import EnergyLabel, EnergyResult, EnergySource, RunResult
from hpcai500.metrics import median
from hpcai500.record import RunRecord

MAX_LACKS = 10  # that a result lists; of more it says how many
NAMES: dict[EnergySource, str] = {
    "meter": "power meters",
    "ipmi": "power supplies (IPMI)",
    "nvml": "GPUs (NVML)",
    "rapl": "processor packages (RAPL)",
    "slurm": "nodes as Slurm counts them",
}
# Which sources together give the figure of a submission, the best first: whole nodes, then chips. A run on GPUs whose
# GPUs are not told has no figure from its processors alone.
CHOICES: tuple[tuple[EnergySource, ...], ...] = (("meter",), ("ipmi",), ("nvml", "rapl"), ("nvml",), ("slurm",))
CHOICES_OF_PROCESSORS: tuple[tuple[EnergySource, ...], ...] = (("meter",), ("ipmi",), ("rapl",), ("slurm",))


class Headline(NamedTuple):
    """The energy of a submission: medians over its completed runs.

    Attributes:
        label: the worst of the runs.
        sources: that were added up.
        energy_j: of a run.
        power_w: mean over its clock.
    """

    label: EnergyLabel
    sources: tuple[EnergySource, ...]
    energy_j: float
    power_w: float

    @property
    def scope(self) -> str:
        """Of what it is, in words."""
        return " and ".join(NAMES[source] for source in self.sources)


def energy_results(run: RunRecord, *, samples: int, vflops: float | None) -> list[EnergyResult]:
    """What each source tells of a run's energy.

    Args:
        run: with the ledgers of all ranks.
        samples: training samples processed.
        vflops: of the run; None where it has none.
    """
    duration_s = sum(stretch.duration_s for stretch in stretches_of(run))
    return [_result(told, duration_s, samples, vflops) for told in told_of(run)]


def _result(told: Told, duration_s: float, samples: int, vflops: float | None) -> EnergyResult:
    readings = told.readings
    is_whole = readings is not None and not told.lacks
    energy_j = sum(told.energy_j.values()) if is_whole else None
    power_w = energy_j / duration_s if energy_j is not None else None
    each = sorted(told.energy_j.values())
    tells_nodes_apart = is_whole and told.source != "slurm" and len(each) == told.num_nodes
    more = len(told.lacks) - MAX_LACKS
    return EnergyResult(
        source=told.source,
        plugin=" ".join(sorted(told.plugins)) or None,
        label=label_of(readings) if readings is not None and is_whole else None,
        energy_j=energy_j,
        power_w=power_w,
        joules_per_sample=energy_j / samples if energy_j is not None and samples else None,
        vflops_per_w=vflops / power_w if vflops is not None and power_w else None,
        num_nodes=told.num_nodes,
        num_devices=told.num_devices,
        node_j=(each[0], median(each), each[-1]) if tells_nodes_apart else None,
        num_readings=told.num_readings,
        longest_gap_s=readings.longest_gap_s if readings is not None else 0.0,
        accuracy=readings.accuracy if readings is not None else None,
        lacks=[*told.lacks[:MAX_LACKS], *([f"and {more} more"] if more > 0 else [])],
    )


def headline_of(results: Sequence[RunResult], *, on_accelerators: bool) -> Headline | None:
    """The energy of completed runs, from the first choice that all of them tell; measured before informative.

    Args:
        results: of all completed runs.
        on_accelerators: they were trained on GPUs.
    """
    tables = [{one.source: one for one in result.energy or ()} for result in results]
    choices = CHOICES if on_accelerators else CHOICES_OF_PROCESSORS
    found = [headline for sources in choices if (headline := _headline(tables, sources))]
    return min(found, key=lambda one: one.label != "measured", default=None)


def _headline(tables: Sequence[dict[EnergySource, EnergyResult]], sources: tuple[EnergySource, ...]) -> Headline | None:
    energies, powers, labels = [], [], []
    for table in tables:
        told = [table.get(source) for source in sources]
        figures = [(one.energy_j, one.power_w, one.label) for one in told if one is not None]
        sums_j = [energy_j for energy_j, _, label in figures if energy_j is not None and label is not None]
        sums_w = [power_w for _, power_w, label in figures if power_w is not None and label is not None]
        if len(sums_j) < len(sources) or not sum(sums_j):
            return None
        energies.append(sum(sums_j))
        powers.append(sum(sums_w))
        labels += [label for _, _, label in figures]
    if not energies:
        return None
    label: EnergyLabel = "measured" if set(labels) == {"measured"} else "informative"
    return Headline(label, sources, median(energies), median(powers))
