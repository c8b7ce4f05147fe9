"""What each source tells of a run's energy, node by node: from the ledgers, and from the file of a meter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import get_args

from hpcai500.energy.integrate import NS_PER_S, Integrator
from hpcai500.energy.label import Readings, largest_gap_s
from hpcai500.energy.meter_file import MAX_METERS, METER_NAME, MeterHeader, read_meter
from hpcai500.errors import RecordError
from hpcai500.events import ClockStart, ClockStop, Energy, LedgerEnergySource
from hpcai500.formats import EnergySource
from hpcai500.record import RankLedger, RunRecord, Segment

CLOCK_SLACK_S = 1.0  # [ours] ranks start within a barrier of each other, and clocks of nodes are apart
CLOCK_ROOM = 1.02  # [ours] readings that enclose much more than the clock tell another mean power


@dataclass(frozen=True)
class Stretch:
    """The ranked clock in one segment of a run; what lies between two segments is nobody's.

    Attributes:
        segment: its number.
        clocks: of each host, Unix time in ns from its first clock_start to its last clock_stop or, where the segment
            was cut short, its last line.
    """

    segment: int
    clocks: dict[str, tuple[int, int]]

    @property
    def begin_ns(self) -> int:
        """When the first host began."""
        return min(begin_ns for begin_ns, _ in self.clocks.values())

    @property
    def end_ns(self) -> int:
        """When the last host ended."""
        return max(end_ns for _, end_ns in self.clocks.values())

    @property
    def duration_s(self) -> float:
        """From the first begin to the last end."""
        return (self.end_ns - self.begin_ns) / NS_PER_S


@dataclass
class Told:
    """What one source tells of a run.

    Attributes:
        source: where from.
        energy_j: by host, or by hosts that are behind one meter; of all stretches together.
        num_nodes: that it tells all of.
        num_devices: of those, in the stretch with the fewest.
        readings: how they were taken, where that went worst; None if nothing is told.
        num_readings: the fewest of a host.
        plugins: what read.
        lacks: which host lacks what.
    """

    source: EnergySource
    energy_j: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    num_nodes: int = 0
    num_devices: int = 0
    readings: Readings | None = None
    num_readings: int = 0
    plugins: set[str] = field(default_factory=set)
    lacks: list[str] = field(default_factory=list)

    def take(self, hosts: str, energy_j: float, readings: Readings, num_readings: int) -> None:
        """Add what it tells of a host in a stretch, or say that its readings are too far apart."""
        limit_s = largest_gap_s(self.source, is_power=readings.is_power)
        if readings.longest_gap_s > limit_s:
            self.lacks.append(
                f"{hosts}: no reading for {readings.longest_gap_s:.4g} s, and at most {limit_s:g} s leave a figure"
            )
        self.energy_j[hosts] += energy_j
        self.num_readings = min(self.num_readings or num_readings, num_readings)
        before = self.readings
        if before is None:
            self.readings = readings
            return
        self.readings = Readings(
            self.source,
            before.is_power,
            max(before.mean_spacing_s, readings.mean_spacing_s),
            max(before.longest_gap_s, readings.longest_gap_s),
            None if before.accuracy is None or readings.accuracy is None else max(before.accuracy, readings.accuracy),
        )


def stretches_of(run: RunRecord) -> list[Stretch]:
    """The ranked clock of a run, segment by segment; segments that ended before it started are left out."""
    stretches = []
    for segment in run.segments:
        clocks: dict[str, tuple[int, int]] = {}
        for ledger in segment.ledgers:
            begin_ns, end_ns = ledger.time_ns(ClockStart), ledger.time_ns(ClockStop)
            if ledger.opened is None or begin_ns is None:
                continue
            end_ns = ledger.entries[-1].time_ns if end_ns is None else end_ns
            before = clocks.get(ledger.opened.host, (begin_ns, end_ns))
            clocks[ledger.opened.host] = (min(before[0], begin_ns), max(before[1], end_ns))
        if clocks:
            stretches.append(Stretch(segment.number, clocks))
    return [stretch for stretch in stretches if stretch.end_ns > stretch.begin_ns]


def told_of(run: RunRecord) -> list[Told]:
    """What each source tells that any host of a run has; in the order ipmi, nvml, rapl, slurm, meter."""
    stretches = stretches_of(run)
    if not stretches:
        return []
    told = [one for source in sorted(get_args(LedgerEnergySource)) if (one := _told_by_ledgers(source, run, stretches))]
    if (run.folder / METER_NAME).exists():
        told.append(_told_by_meter(run, stretches))
    return told


def _told_by_ledgers(source: LedgerEnergySource, run: RunRecord, stretches: Sequence[Stretch]) -> Told | None:
    told, of_any = Told(source), False
    segments = {segment.number: segment for segment in run.segments}
    fewest: list[tuple[int, int]] = []
    for stretch in stretches:
        events = {host: event for host, event in _events(segments[stretch.segment]) if event.source == source}
        of_any = of_any or bool(events)
        wholes = [host for host in stretch.clocks if host in events]
        for host in wholes:
            _take_event(told, stretch, host, events[host])
        num_nodes = len(wholes)
        if source == "slurm":  # one event for all hosts
            num_nodes = sum(events[host].num_devices for host in wholes)
            if wholes and num_nodes != len(stretch.clocks):
                told.lacks.append(f"its step has {num_nodes} nodes, and the run {len(stretch.clocks)}")
        if source != "slurm" or not wholes:
            where = f" in segment {stretch.segment}" if len(run.segments) > 1 else ""
            told.lacks += [f"{host}: none read all the time{where}" for host in stretch.clocks if host not in events]
        fewest.append((num_nodes, sum(events[host].num_devices for host in wholes)))
    told.num_nodes, told.num_devices = min(fewest)
    return told if of_any else None


def _events(segment: Segment) -> Iterator[tuple[str, Energy]]:
    for ledger in segment.ledgers:
        for event in ledger.values(Energy):
            yield _host(ledger), event


def _host(ledger: RankLedger) -> str:
    return ledger.opened.host if ledger.opened else ""


def _take_event(told: Told, stretch: Stretch, host: str, event: Energy) -> None:
    """The share of an event's energy that falls within the clock of its host: it begins and ends moments outside."""
    begin_ns, end_ns = stretch.clocks[host]
    clock_s, duration_s = (end_ns - begin_ns) / NS_PER_S, event.duration_ns / NS_PER_S
    early_s = (begin_ns - event.wall_ns) / NS_PER_S
    late_s = (event.wall_ns + event.duration_ns - end_ns) / NS_PER_S
    if min(early_s, late_s) < -CLOCK_SLACK_S or duration_s > CLOCK_ROOM * clock_s + 2 * CLOCK_SLACK_S or not duration_s:
        told.lacks.append(f"{host}: read for {duration_s:.4g} s, which are not the {clock_s:.4g} s of its clock")
        return
    if event.plugin is not None:
        told.plugins.add(event.plugin)
    readings = Readings(
        told.source,
        is_power=told.source == "ipmi",
        mean_spacing_s=duration_s / (event.num_readings - 1),
        longest_gap_s=event.longest_gap_ns / NS_PER_S,
        accuracy=event.accuracy,
    )
    hosts = "all nodes" if told.source == "slurm" else host
    told.take(hosts, event.energy_j * (clock_s / duration_s), readings, event.num_readings)


def short_name(host: str) -> str:
    """A host's name without its domain: meters and schedulers mostly name nodes so."""
    return host.partition(".")[0]


def _told_by_meter(run: RunRecord, stretches: Sequence[Stretch]) -> Told:
    told = Told("meter")
    try:
        header, integrators = integrate_meter(run, stretches)
    except RecordError as error:
        told.lacks.append(str(error.args[0]).replace(str(run.folder / METER_NAME), METER_NAME)[:500])
        return told
    fewest = []
    for number, stretch in enumerate(stretches):
        covered: dict[str, str] = {}
        num_meters, names = 0, {short_name(host) for host in stretch.clocks}
        for (nodes, meter), of_stretches in integrators.items():
            hosts, integrator = nodes.split(), of_stretches[number]
            if not names.intersection(hosts):
                continue  # a meter of nodes that this segment did not use
            num_meters += 1
            name = f"{nodes}{f' ({meter})' if meter else ''}"
            if set(hosts) - names:
                told.lacks.append(f"{name}: behind the meter are nodes that were not the run's")
            if any(covered.setdefault(host, nodes) != nodes for host in hosts):
                told.lacks.append(f"{name}: a node is behind this meter and behind another with other nodes")
            _take_integrator(told, name, nodes, integrator, header)
        told.lacks += [f"{name}: no reading" for name in sorted(names - set(covered))]
        fewest.append((len(names & set(covered)), num_meters))
    told.num_nodes, told.num_devices = min(fewest)
    return told


def _take_integrator(told: Told, name: str, nodes: str, integrator: Integrator, header: MeterHeader) -> None:
    if not integrator.is_covered or integrator.end_ns is None:
        told.lacks.append(f"{name}: its readings do not enclose the clock")
        return
    readings = Readings(
        "meter",
        is_power=header.quantity == "power_w",
        mean_spacing_s=(integrator.end_ns - integrator.begin_ns) / NS_PER_S / (integrator.num_readings - 1),
        longest_gap_s=integrator.longest_gap_ns / NS_PER_S,
        accuracy=header.accuracy,
    )
    told.take(nodes, integrator.energy_j, readings, integrator.num_readings)


def integrate_meter(
    run: RunRecord, stretches: Sequence[Stretch]
) -> tuple[MeterHeader, dict[tuple[str, str], list[Integrator]]]:
    """Energy of each stretch by nodes and meter, from a run's meter.csv.

    Raises:
        RecordError: the file cannot be read, or a line is wrong.
    """
    path = run.folder / METER_NAME
    header, readings = read_meter(path)
    alone = alone_host(stretches)
    integrators: dict[tuple[str, str], list[Integrator]] = {}
    for reading in readings:
        nodes = " ".join(sorted(map(short_name, reading.nodes.split()))) or alone
        key = (nodes, reading.meter)
        if key not in integrators:
            if len(integrators) >= MAX_METERS:
                raise RecordError(f"{str(path)!r} has more than {MAX_METERS} meters")
            integrators[key] = [Integrator(one.begin_ns, one.end_ns, header.quantity) for one in stretches]
        for integrator in integrators[key]:
            try:
                integrator.add(reading.time_ns, reading.value)
            except ValueError as error:
                raise RecordError(f"{str(path)!r} is no file of a meter: {error}, of {nodes} {reading.meter}") from None
    if not header.has_nodes and not alone:
        raise RecordError(f"{str(path)!r} has no column node, and the run was on several; say whose each reading is")
    return header, integrators


def alone_host(stretches: Sequence[Stretch]) -> str:
    """The short name of the only host of a run; "" where there are several."""
    hosts = {short_name(host) for stretch in stretches for host in stretch.clocks}
    return hosts.pop() if len(hosts) == 1 else ""
