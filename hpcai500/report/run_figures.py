"""What a report shows of one run, from its ledgers: curves, rates, time parts, ranks, energy; as plain numbers.

The ledgers of a large run take 130 MB in memory and are let go again; what stays is little, whatever the number of
ranks: curves of all ranks together, and percentiles over the ranks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from hpcai500.edition import Size
from hpcai500.energy.told import stretches_of, told_of
from hpcai500.events import Evaluation, RunClose, StartUp, Window
from hpcai500.formats import EnergySource, RunConfig, RunResult, System, TimeParts
from hpcai500.metrics import STRAGGLER_RATIO
from hpcai500.record import RankLedger, RunRecord
from hpcai500.submission import NS_PER_S, compute_result, earliest_start_ns, time_parts

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
MAX_POINTS = 160  # of a curve
MAX_NAMED = 10  # stragglers of a run that are named
MAX_NODES = 100  # whose energy is told one by one
MAX_DOTS = 32  # ranks of a run that have a dot each
Item = TypeVar("Item")
START_UP_PARTS = ("allocation", "launch", "import", "rendezvous", "data_open", "model", "wait")


@dataclass(frozen=True)
class Evaluated:
    """An evaluation: its time on the ranked clock, the epochs done, quality and loss."""

    time_s: float
    epoch: int
    quality: float
    loss: float | None


@dataclass(frozen=True)
class Stretch:
    """Some consecutive windows of all ranks: when they ended, mean loss, and samples/s of all ranks together."""

    time_s: float
    loss: float
    samples_per_s: float


@dataclass(frozen=True)
class Straggler:
    """A rank that is slow by itself: its host, and its own time of a step over the median of all ranks."""

    rank: int
    host: str
    own_s: float
    ratio: float


@dataclass(frozen=True)
class RankSpread:
    """Step times over the ranks: PERCENTILES of each rank's median, of the whole step and without communication.

    Attributes:
        own_s: without communication, which is where a slow rank shows: the others wait for it in theirs.
        dots_s: own time of each rank, where there are few.
        stragglers: the slowest, MAX_NAMED at most, of ``num_stragglers``.
    """

    num_ranks: int
    step_s: tuple[float, ...]
    own_s: tuple[float, ...]
    dots_s: tuple[float, ...]
    stragglers: tuple[Straggler, ...]
    num_stragglers: int


@dataclass(frozen=True)
class NodeEnergy:
    """What a source tells of a node, or of nodes behind one meter: energy of the run, and mean power over its clock."""

    source: EnergySource
    hosts: str
    energy_j: float
    power_w: float


@dataclass(frozen=True)
class RunFigures:
    """All that a report shows of a run.

    Attributes:
        name: its folder's.
        result: the figures that the verifier computes too.
        reason: what ended it, in its own words; empty if nothing did yet.
        is_open: it has not ended, as far as its ledgers say.
        damage: why its ledgers give no figures; empty if they do.
        elapsed_s: of the ranked clock, up to the last line where it did not stop.
        parts: where that went.
        start_up_s: before the clock, mean over ranks.
        energy: of each node by each source; what they come to is in the result.
        sheet: the pictures of what a detector found, as data: URI; empty without.
        sheet_note: why there is none.
    """

    name: str
    config: RunConfig
    result: RunResult
    reason: str = ""
    is_open: bool = False
    damage: str = ""
    elapsed_s: float | None = None
    parts: TimeParts | None = None
    start_up_s: dict[str, float] = field(default_factory=dict)
    curve: tuple[Evaluated, ...] = ()
    stretches: tuple[Stretch, ...] = ()
    ranks: RankSpread | None = None
    energy: tuple[NodeEnergy, ...] = ()
    system: System | None = None
    sheet: str = ""
    sheet_note: str = ""

    @property
    def label(self) -> str:
        """How plots name it: short, since announced seeds are long."""
        seed = str(self.config.seed)
        return f"seed {seed}" if len(seed) <= 6 else f"seed {seed[:5]}…"

    @property
    def is_complete(self) -> bool:
        """Whether it completed and has a score."""
        return self.result.status == "completed" and self.result.vflops is not None


def figures_of(run: RunRecord, size: Size, *, name: str, system: System | None) -> RunFigures:
    """Work out what a report shows of a run.

    Args:
        run: its configuration and ledgers.
        size: of its workload.
        name: how the report names it.
        system: what it ran on, if that is known.
    """
    damage = _damage(run)
    if damage:
        nothing = RunRecord(run.folder, run.config, of_all_ranks=run.status)
        return RunFigures(name, run.config, compute_result(nothing, size), damage=damage, system=system)
    result = compute_result(run, size)
    start_ns = earliest_start_ns(run.ledgers)
    elapsed_s = result.wall_s or _elapsed_s(run, start_ns)
    closes = [close for ledger in run.roots[-1:] if (close := ledger.value(RunClose)) is not None]
    return RunFigures(
        name,
        run.config,
        result,
        reason=closes[0].reason if closes else "",
        is_open=bool(run.segments) and not closes,
        elapsed_s=elapsed_s,
        parts=result.parts or (time_parts(run, elapsed_s) if elapsed_s else None),
        start_up_s=_start_up_s(run),
        curve=tuple(_curve(run, start_ns)),
        stretches=tuple(_stretches(run, start_ns)),
        ranks=_rank_spread(run),
        energy=tuple(_energy(run)),
        system=system,
    )


def _damage(run: RunRecord) -> str:
    """The first thing that is wrong with the form of the ledgers, but for what a crash leaves."""
    findings = (finding for segment in run.segments for finding in segment.findings)
    return next((str(finding) for finding in findings if finding.rule not in ("ledger.torn", "ledger.empty")), "")


def _elapsed_s(run: RunRecord, start_ns: int | None) -> float | None:
    """How far the clock has come where it did not stop: to the last line that any rank wrote."""
    last_ns = max((ledger.entries[-1].time_ns for ledger in run.ledgers if ledger.entries), default=0)
    return None if start_ns is None or last_ns <= start_ns else (last_ns - start_ns) / NS_PER_S


def _start_up_s(run: RunRecord) -> dict[str, float]:
    """Mean over the ranks of the first segment that got as far; the start-ups of later ones are the restart's."""
    for segment in run.segments:
        values = [value for ledger in segment.ledgers if (value := ledger.value(StartUp)) is not None]
        if values:
            return {
                part: statistics.fmean(getattr(value, f"{part}_ns") for value in values) / NS_PER_S
                for part in START_UP_PARTS
            }
    return {}


def _curve(run: RunRecord, start_ns: int | None) -> Iterable[Evaluated]:
    entries = [entry for root in run.roots for entry in root.entries_of(Evaluation)]
    if start_ns is None:
        return
    for entry in thinned(entries):
        if isinstance(entry.value, Evaluation):
            value, time_s = entry.value, (entry.time_ns - start_ns) / NS_PER_S
            yield Evaluated(time_s, value.epoch, value.quality, value.loss)


def thinned(items: Sequence[Item], limit: int = MAX_POINTS) -> list[Item]:
    """At most so many of some items, evenly spread, the last one always among them."""
    if len(items) <= limit:
        return list(items)
    return [items[math.ceil((number + 1) * len(items) / limit) - 1] for number in range(limit)]


@dataclass
class _Sum:
    """A window of all ranks, added up."""

    time_ns: int = 0
    loss: float = 0.0
    steps: int = 0
    samples: int = 0
    duration_ns: int = 0
    num_ranks: int = 0

    def add(self, window: Window, time_ns: int) -> None:
        self.time_ns = max(self.time_ns, time_ns)
        self.loss += window.loss_sum
        self.steps += window.num_steps
        self.samples += window.samples
        self.duration_ns += window.duration_ns
        self.num_ranks += 1


def _stretches(run: RunRecord, start_ns: int | None) -> Iterable[Stretch]:
    """The windows that count, all ranks together; several are joined where there are many."""
    if start_ns is None:
        return
    table: dict[tuple[int, int, int], _Sum] = {}
    for ledger in run.ledgers:
        for entry in ledger.entries_of(Window):
            if isinstance(entry.value, Window):
                key = (ledger.segment, entry.value.epoch, entry.value.first_step)
                table.setdefault(key, _Sum()).add(entry.value, entry.time_ns)
    sums = sorted(table.values(), key=lambda one: one.time_ns)
    width = math.ceil(len(sums) / MAX_POINTS) or 1
    for first in range(0, len(sums), width):
        part = sums[first : first + width]
        passed_s = sum(one.duration_ns / one.num_ranks for one in part) / NS_PER_S  # mean over the ranks of each
        yield Stretch(
            time_s=(part[-1].time_ns - start_ns) / NS_PER_S,
            loss=sum(one.loss for one in part) / sum(one.steps for one in part),
            samples_per_s=sum(one.samples for one in part) / passed_s if passed_s else 0.0,
        )


def _rank_spread(run: RunRecord) -> RankSpread | None:
    """Each rank's median over its windows of a step's time, as hpcai500.collector has it over steps."""
    steps: dict[int, list[float]] = {}
    owns: dict[int, list[float]] = {}
    hosts: dict[int, str] = {}
    for ledger in run.ledgers:
        _add_times(ledger, steps.setdefault(ledger.rank, []), owns.setdefault(ledger.rank, []))
        if ledger.opened is not None:
            hosts[ledger.rank] = ledger.opened.host
    step_s = {rank: statistics.median(values) for rank, values in steps.items() if values}
    own_s = {rank: statistics.median(values) for rank, values in owns.items() if values}
    if not own_s:
        return None
    middle = statistics.median(own_s.values())
    slow = sorted(
        (rank for rank, own in own_s.items() if own > STRAGGLER_RATIO * middle), key=lambda rank: -own_s[rank]
    )
    named = [
        Straggler(rank, hosts.get(rank, "unknown"), own_s[rank], own_s[rank] / middle if middle else math.inf)
        for rank in slow[:MAX_NAMED]
    ]
    return RankSpread(
        num_ranks=len(own_s),
        step_s=percentiles(list(step_s.values())),
        own_s=percentiles(list(own_s.values())),
        dots_s=tuple(own_s.values()) if len(own_s) <= MAX_DOTS else (),
        stragglers=tuple(named),
        num_stragglers=len(slow),
    )


def _add_times(ledger: RankLedger, steps: list[float], owns: list[float]) -> None:
    for window in ledger.values(Window):
        scale = window.num_steps * NS_PER_S
        steps.append(window.duration_ns / scale)
        owns.append(max(0, window.duration_ns - window.communication_ns) / scale)


def percentiles(values: Sequence[float]) -> tuple[float, ...]:
    """PERCENTILES of some values, linear between neighbours (Hyndman and Fan 1996, definition 7)."""
    ordered = sorted(values)
    found = []
    for percent in PERCENTILES:
        position = percent / 100 * (len(ordered) - 1)
        below = math.floor(position)
        above = min(below + 1, len(ordered) - 1)
        found.append(ordered[below] + (ordered[above] - ordered[below]) * (position - below))
    return tuple(found)


def _energy(run: RunRecord) -> Iterable[NodeEnergy]:
    """Of every node, also where a source lacks others; the first MAX_NODES of each source."""
    duration_s = sum(stretch.duration_s for stretch in stretches_of(run))
    for told in told_of(run):
        for hosts, energy_j in sorted(told.energy_j.items())[:MAX_NODES]:
            yield NodeEnergy(told.source, hosts, energy_j, energy_j / duration_s)
