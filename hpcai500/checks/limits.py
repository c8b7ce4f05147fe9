"""Limits: what the hosts of a run cannot do better than, from its system.json and rules/devices.toml.

Every limit is one that no honest run can pass, so it is seldom near: a processor is taken to clock as high as any, a
peak to be reached without a pause. An accelerator that the rules do not list is as fast as ``hpcai500 selfcheck``
measured it, where the run's folder has the file selfcheck.json that it wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from hpcai500.devices import Device
from hpcai500.edition import Edition
from hpcai500.errors import RecordError, UnknownNameError
from hpcai500.formats import SELFCHECK_NAME, Node, read_bytes
from hpcai500.record import RankLedger

if TYPE_CHECKING:
    from hpcai500.checks.case import RunCase

# Winograd's F(2x2, 3x3) takes 2.25 times fewer products than a convolution is counted with (Lavin and Gray, CVPR 2016,
# section 4.1); it suits those of 3 x 3 with stride 1, which are 37 % of the FLOP of ResNet-50 and 62 % of Faster R-CNN.
WINOGRAD_GAIN = 1.6
MEASURED_ROOM = 1.25  # [ours] a quick measurement misses the peak
MATRIX_UNIT_GAIN = 16  # [recalled] of fp16 over fp32 in one device: 8 in a V100 or T4, 15 in an H100


class _RankFigures(msgspec.Struct):
    figures: dict[str, dict[str, float]] = {}


class _NodeFigures(msgspec.Struct):
    ranks: list[_RankFigures] = []


class SelfCheck(msgspec.Struct):
    """What counts here of the file that ``hpcai500 selfcheck --json`` writes; the rest may be anything."""

    nodes: list[_NodeFigures] = []

    def rate(self, figure: str) -> float:
        """The best of a figure over all accelerators, in flop/s; 0 where none was measured."""
        tables = (rank.figures.get(figure, {}) for node in self.nodes for rank in node.ranks)
        return max((rate for table in tables for name, rate in table.items() if name.startswith("cuda")), default=0.0)

    def flops_bound(self, precision: str) -> float:
        """What no run of that precision passes on one accelerator; 0 where nothing was measured.

        fp32 products are measured without TF32, which is no faster than bf16.
        """
        fp32, bf16 = self.rate("fp32"), self.rate("bf16")
        if bf16:
            return MEASURED_ROOM * max(fp32, bf16)
        return MEASURED_ROOM * fp32 * (WINOGRAD_GAIN if precision == "fp32" else MATRIX_UNIT_GAIN)


@dataclass(frozen=True)
class HostLimits:
    """What a host cannot do better than.

    Attributes:
        flops: of each of its devices, the largest first: its accelerators, or all processors together where it trains
            on those. Empty if an accelerator is unknown, or there is none to train on.
        bus_bytes_per_s: from its memory to each of its accelerators, the largest first; empty on processors.
        memory_bytes_per_s: of the memory of its processors and accelerators together.
        network_bytes_per_s: into the host over all of its interfaces; None if one does not tell its speed.
        unknown: accelerators that the rules do not list and nobody measured.
    """

    flops: tuple[float, ...]
    bus_bytes_per_s: tuple[float, ...]
    memory_bytes_per_s: float
    network_bytes_per_s: float | None
    unknown: tuple[str, ...]

    def flops_of(self, num_ranks: int) -> float:
        """Of so many ranks together; a rank computes on one device."""
        return sum(self.flops[:num_ranks])

    def bus_of(self, num_ranks: int) -> float:
        """To the accelerators of so many ranks together."""
        return sum(self.bus_bytes_per_s[:num_ranks])


@dataclass(frozen=True)
class Machine:
    """The machine a run ran on."""

    run: RunCase
    edition: Edition

    @cached_property
    def nodes(self) -> dict[str, list[Node]]:
        """What the run's descriptions, one for each of its segments, say of each host."""
        hosts: dict[str, list[Node]] = {}
        for system in (self.run.system, *self.run.later_systems):
            for node in system.nodes if system is not None else ():
                hosts.setdefault(node.host, []).append(node)
        return hosts

    @cached_property
    def selfcheck(self) -> SelfCheck:
        """What was measured on it."""
        return read_selfcheck(self.run)

    def limits(self, host: str, ledgers: Sequence[RankLedger]) -> HostLimits | None:
        """Those of a host with the ranks of these ledgers: of the strongest of its descriptions.

        A host that none describes may be as strong as any of the run's. None if nothing is described.
        """
        nodes = self.nodes.get(host) or [node for nodes in self.nodes.values() for node in nodes]
        limits = [self._node_limits(node, ledgers) for node in nodes]
        return max(limits, key=lambda one: (sum(one.flops), one.memory_bytes_per_s), default=None)

    def _node_limits(self, node: Node, ledgers: Sequence[RankLedger]) -> HostLimits:
        devices, strangers = known_devices(node, self.edition)
        on_accelerators = self.run.config.device.startswith("cuda")
        # Of an accelerator that nobody knows, memory and bus are taken to be as good as the best.
        memory = [device.memory_bytes_per_s for device in devices]
        memory += [max(device.memory_bytes_per_s for device in self.edition.devices)] * len(strangers)
        bus = [device.bus_bytes_per_s for device in devices]
        bus += [max(device.bus_bytes_per_s for device in self.edition.devices)] * len(strangers)
        network = network_bytes_per_s(node)
        if network is not None:
            network += sum(device.fabric_bytes_per_s for device in devices)
        flops = (
            self._accelerator_flops(devices, len(strangers)) if on_accelerators else [self._cpu_flops(node, ledgers)]
        )
        return HostLimits(
            flops=tuple(sorted(flops, reverse=True)),
            bus_bytes_per_s=tuple(sorted(bus, reverse=True)) if on_accelerators else (),
            memory_bytes_per_s=node.num_sockets * self.edition.processors.memory_bytes_per_s + sum(memory),
            network_bytes_per_s=None if strangers else network,
            unknown=() if flops else tuple(strangers),
        )

    def _precision(self) -> str:
        return str(self.run.config.settings["precision"])

    def _cpu_flops(self, node: Node, ledgers: Sequence[RankLedger]) -> float:
        """All processors of a node together; the rank that described it may have had a part of the cores."""
        cores = max(node.num_cores, count_cores(ledger.opened.cores for ledger in ledgers if ledger.opened))
        gain = WINOGRAD_GAIN if self._precision() == "fp32" else 1.0
        return gain * cores * self.edition.processors.flops_bound(node.instruction_sets, self._precision())

    def _accelerator_flops(self, devices: Sequence[Device], num_unknown: int) -> list[float]:
        """Of each accelerator; empty if there is an unknown one that nobody measured."""
        precision = self._precision()
        flops = []
        for device in devices:
            on_vector_units = precision == "fp32" and "tf32" not in device.peak_flops
            flops.append(device.flops_bound(precision) * (WINOGRAD_GAIN if on_vector_units else 1.0))
        measured = self.selfcheck.flops_bound(precision) if num_unknown else 0.0
        return [] if num_unknown and not measured else flops + [measured] * num_unknown


def known_devices(node: Node, edition: Edition) -> tuple[list[Device], list[str]]:
    """The accelerators of a node that the rules list, and the names of the others."""
    known, unknown = [], []
    for accelerator in node.accelerators:
        try:
            known.append(edition.device(accelerator.name))
        except UnknownNameError:
            unknown.append(accelerator.name)
    return known, unknown


def network_bytes_per_s(node: Node) -> float | None:
    """All interfaces of a node together, in one direction; None if one that is not down does not tell its speed."""
    speeds = [interface.speed_bits_per_s for interface in node.network if interface.state != "down"]
    known = [speed for speed in speeds if speed is not None]
    return sum(known) / 8 if known and len(known) == len(speeds) else None


def read_selfcheck(run: RunCase) -> SelfCheck:
    """The self-check in a run's folder, if the submission lists it; one without figures where there is none."""
    if SELFCHECK_NAME not in run.submitted.files:
        return SelfCheck()
    try:
        return msgspec.json.decode(read_bytes(run.record.folder / SELFCHECK_NAME), type=SelfCheck)
    except (RecordError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return SelfCheck()  # the advice of the rule says how to get a good one


def count_cores(lists: Iterable[str]) -> int:
    """How many cores lists like "0-3,8" name together, each counted once; what is no number is left out."""
    ranges = set()
    for text in lists:
        for first, last in re.findall(r"(\d{1,9})(?:-(\d{1,9}))?", text):
            ranges.add((int(first), int(last or first)))
    count, end = 0, -1
    for first, last in sorted(ranges):
        count += max(0, last - max(first - 1, end))
        end = max(end, last)
    return count
