"""Energy: no device or node drew more or less than it can, and readings are as many as their time and gaps need.

Only completed runs are looked at. Whether what was read is a figure, and its label, is recomputed with all other
figures (rule figures.result); what does not enclose the clock or misses a node is none, which is no offence. Not
covered: a forger who invents a likely power.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hpcai500.checks.case import Case, RunCase
from hpcai500.checks.hosts import HostPart
from hpcai500.checks.limits import known_devices
from hpcai500.devices import Device, Processors
from hpcai500.energy.integrate import NS_PER_S
from hpcai500.energy.told import short_name, stretches_of, told_of
from hpcai500.events import Energy
from hpcai500.finding import Finding
from hpcai500.formats import Node
from hpcai500.ledger_reader import Entry
from hpcai500.record import RankLedger

RULE = "physics.energy"
COUNTER_SLACK_S = 1.0  # [ours] counters of energy are some tenths of a second late
POWER_ROOM = 1.1  # [ours] GPUs pass their limit for moments, and their sensors are good to 5 %
# [ours] Memory, fans, network and losses: a DGX H100 is set to 10.2 kW (its data sheet), and its chips to 6.3 kW.
NODE_ROOM, NODE_REST_W = 2.0, 1000.0
Bounds = tuple[float, float]


def check_energy(case: Case) -> list[Finding]:
    """Energy is of the host's devices, within what they can draw in that time, with enough readings for their gaps."""
    findings: list[Finding] = []
    for part in case.hosts:
        for ledger in part.ledgers:
            for entry in ledger.entries_of(Energy):
                findings += _check_event(case, part, ledger, entry)
    for run in case.completed:
        findings += _check_meter(case, run)
    return findings


def _check_event(case: Case, part: HostPart, ledger: RankLedger, entry: Entry) -> Iterator[Finding]:
    energy = entry.value
    assert isinstance(energy, Energy)
    place = f"{ledger.place}:{entry.line}"
    if (energy.num_readings - 1) * energy.longest_gap_ns < energy.duration_ns:
        least_s = energy.duration_ns / NS_PER_S / (energy.num_readings - 1)
        expected = f"at least {least_s:.4g} s between two of {energy.num_readings} readings"
        found = f"at most {energy.longest_gap_ns / NS_PER_S:.4g} s"
        yield Finding(RULE, f"{place}:longest_gap_ns", expected, found)
    strangers = _other_devices(part, energy)
    if strangers is not None:
        yield Finding(RULE, f"{place}:num_devices", *strangers)
        return
    bounds = _power_bounds(case, part, energy)
    if bounds is not None:
        what = "nodes" if energy.source in ("ipmi", "slurm") else "devices"
        seconds = energy.duration_ns / NS_PER_S
        yield from _beyond(f"{place}:energy_j", energy.energy_j, seconds, bounds, f"{energy.num_devices} {what}")


def _beyond(place: str, energy_j: float, seconds: float, bounds: Bounds, what: str) -> Iterator[Finding]:
    """A finding if it is not between the bounds in W for so long."""
    least = bounds[0] * max(0.0, seconds - COUNTER_SLACK_S)
    most = POWER_ROOM * bounds[1] * (seconds + COUNTER_SLACK_S)
    if not least <= energy_j <= most:
        yield Finding(RULE, place, f"{least:.4g} to {most:.4g} J of {what} in {seconds:.4g} s", f"{energy_j:.4g} J")


def _other_devices(part: HostPart, energy: Energy) -> tuple[str, str] | None:
    """What is expected and found if the devices are not those that the host is described with.

    NVML may see accelerators that the job does not use, and a step have nodes on which no rank ran.
    """
    found = f"{energy.num_devices} by {energy.source}"
    if energy.source == "ipmi" and energy.num_devices != 1:
        return "1, the host", found
    sockets = {node.num_sockets for node in part.nodes}
    if energy.source == "rapl" and sockets and energy.num_devices not in sockets:
        return f"{' or '.join(map(str, sorted(sockets)))}, the processors of the host", found
    accelerators = {len(node.accelerators) for node in part.nodes}
    if energy.source == "nvml" and accelerators == {0}:
        return "processors alone, as the host has no accelerator", found
    if energy.source == "nvml" and accelerators and energy.num_devices < min(accelerators):
        return f"at least {min(accelerators)}, the accelerators of the host", found
    return None


def _power_bounds(case: Case, part: HostPart, energy: Energy) -> Bounds | None:
    """Least and most W of the devices whose energy it is; None where they are unknown."""
    if energy.source in ("ipmi", "slurm"):
        whole = part.nodes if energy.source == "ipmi" else _nodes_of(part.run)
        bounds = _node_bounds(case, whole)
        return bounds and (energy.num_devices * bounds[0], energy.num_devices * bounds[1])
    kinds: list[Processors] | list[Device] = [case.edition.processors]
    if energy.source == "nvml":
        pairs = [known_devices(node, case.edition) for node in part.nodes]
        kinds = [device for devices, strangers in pairs if not strangers for device in devices]
    if not kinds:
        return None
    least, most = min(kind.idle_w for kind in kinds), max(kind.power_limit_w for kind in kinds)
    return energy.num_devices * least, energy.num_devices * most


def _nodes_of(run: RunCase) -> list[Node]:
    """What all descriptions of a run say of its nodes."""
    return [node for system in (run.system, *run.later_systems) if system is not None for node in system.nodes]


def _node_bounds(case: Case, nodes: Sequence[Node]) -> Bounds | None:
    """Least and most W of any of some nodes; None where there are none, or an accelerator is unknown."""
    processors, most_w = case.edition.processors, []
    for node in nodes:
        devices, strangers = known_devices(node, case.edition)
        if strangers:
            return None
        chips_w = node.num_sockets * processors.power_limit_w + sum(device.power_limit_w for device in devices)
        most_w.append(NODE_ROOM * chips_w + NODE_REST_W)
    # Slurm's plugin may read GPUs alone, so the least is that of one chip.
    return (processors.idle_w, max(most_w)) if most_w else None


def _check_meter(case: Case, run: RunCase) -> Iterator[Finding]:
    """Each meter of meter.csv reads what the nodes behind it can draw while the clock runs."""
    meter = next((told for told in told_of(run.record) if told.source == "meter"), None)
    nodes = _nodes_of(run)
    bounds = _node_bounds(case, nodes)
    if meter is None or bounds is None:
        return
    stretches = stretches_of(run.record)
    for names, energy_j in meter.energy_j.items():
        behind = set(names.split())
        seconds = sum(one.duration_s for one in stretches if behind <= set(map(short_name, one.clocks)))
        scaled = (len(behind) * bounds[0], len(behind) * bounds[1])
        yield from _beyond(f"{run.place}/meter.csv:{names}"[:500], energy_j, seconds, scaled, f"{len(behind)} nodes")
