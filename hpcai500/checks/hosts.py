"""Hosts: what the ranks of each host did together, how fast, and what the host cannot do better than.

Ranks of a host share its devices, its memory and its network, so their work is added up. They train in step: a step
ends on all of them with the exchange of gradients, so the work of the same steps lies within the longest of their
windows, however the ranks take turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from hpcai500.checks.limits import HostLimits, Machine
from hpcai500.events import Window
from hpcai500.formats import Node
from hpcai500.record import RankLedger, Segment

if TYPE_CHECKING:
    from hpcai500.checks.case import Case, RunCase

NS_PER_S = 10**9


class Pace(NamedTuple):
    """The fastest that something was done.

    Attributes:
        rate: in things a second; infinite if they took no time.
        place: where findings say it stands.
    """

    rate: float
    place: str


class Work(NamedTuple):
    """What all ranks of a host did in the same steps: samples in sum, the longest duration in ns."""

    samples: int
    duration_ns: int


@dataclass(frozen=True)
class HostPart:
    """A host in one segment of a run.

    Attributes:
        run: the run.
        host: its name.
        nodes: what the run's descriptions say of it.
        ledgers: of its ranks in the segment.
        limits: None if no system.json describes any host.
        num_hosts: that the segment ran on.
        samples: the fastest window of a rank, in samples/s.
        steps: likewise in steps/s.
        windows: work by epoch and first step.
    """

    run: RunCase
    host: str
    nodes: list[Node]
    ledgers: list[RankLedger]
    limits: HostLimits | None
    num_hosts: int
    samples: Pace
    steps: Pace
    windows: dict[tuple[int, int], Work]

    @property
    def place(self) -> str:
        """How findings name it."""
        return f"{self.run.place}/ledger:host {self.host}"

    def epochs(self) -> dict[int, Work]:
        """Work by epoch, in order; of its duration at most too much."""
        epochs: dict[int, Work] = {}
        for (epoch, _), work in self.windows.items():
            before = epochs.get(epoch, Work(0, 0))
            epochs[epoch] = Work(before.samples + work.samples, before.duration_ns + work.duration_ns)
        return dict(sorted(epochs.items()))


def rate(amount: int, duration_ns: int) -> float:
    """So much in such a time, a second; infinite if it took no time, 0 if there is nothing."""
    if duration_ns == 0:
        return float("inf") if amount else 0.0
    return amount * NS_PER_S / duration_ns


def read_hosts(case: Case) -> list[HostPart]:
    """All hosts of the segments of the completed runs."""
    parts = []
    for run in case.completed:
        machine = Machine(run, case.edition)
        for segment in run.record.segments:
            by_host = ledgers_by_host(segment)
            for host, ledgers in by_host.items():
                parts.append(_read_host(machine, host, ledgers, len(by_host)))
    return parts


def ledgers_by_host(segment: Segment) -> dict[str, list[RankLedger]]:
    """The ledgers of the ranks of each host."""
    hosts: dict[str, list[RankLedger]] = {}
    for ledger in segment.ledgers:
        if ledger.opened is not None:
            hosts.setdefault(ledger.opened.host, []).append(ledger)
    return hosts


def _read_host(machine: Machine, host: str, ledgers: list[RankLedger], num_hosts: int) -> HostPart:
    samples = steps = Pace(0.0, "")
    windows: dict[tuple[int, int], Work] = {}
    for ledger in ledgers:  # some hundred thousand windows in a large run, so one loop for all that is asked of them
        for entry in ledger.entries_of(Window):
            window = entry.value
            assert isinstance(window, Window)
            duration_ns, num_samples = window.duration_ns, window.samples
            pace = rate(num_samples, duration_ns)
            if pace > samples.rate:
                samples = Pace(pace, f"{ledger.place}:{entry.line}:duration_ns")
            pace = rate(window.num_steps, duration_ns)
            if pace > steps.rate:
                steps = Pace(pace, f"{ledger.place}:{entry.line}:duration_ns")
            key = (window.epoch, window.first_step)
            before = windows.get(key)
            if before is not None:
                num_samples += before.samples
                duration_ns = max(duration_ns, before.duration_ns)
            windows[key] = Work(num_samples, duration_ns)
    return HostPart(
        run=machine.run,
        host=host,
        nodes=machine.nodes.get(host, []),
        ledgers=ledgers,
        limits=machine.limits(host, ledgers),
        num_hosts=num_hosts,
        samples=samples,
        steps=steps,
        windows=windows,
    )
