"""What a machine's devices could do at most, from rules/devices.toml, and how near a run came to it."""

from __future__ import annotations

from dataclasses import dataclass

from hpcai500.edition import Edition
from hpcai500.errors import UnknownNameError
from hpcai500.formats import RunConfig, RunResult, System

GPU = "cuda"


@dataclass(frozen=True)
class Machine:
    """The devices that a run computed on.

    Attributes:
        device: name of one.
        num_devices: that computed: accelerators, of which each rank takes one, or nodes with all of their processors.
        peak_flops: what one cannot do better than, in flop/s; None where nothing is known.
        is_peak: it is the dense peak of the vendor, so that MFU can be given; else only a bound that no processor of so
            many cores passes.
        peak_name: what ``peak_flops`` is, in words.
        memory_bytes_per_s: of the memory of one device; None where it is not known.
        not_known: what is not known, in sentences.
    """

    device: str
    num_devices: int
    peak_flops: float | None
    is_peak: bool
    peak_name: str
    memory_bytes_per_s: float | None
    not_known: tuple[str, ...] = ()

    def mfu(self, result: RunResult) -> float | None:
        """FLOPS over the peak of all devices; on processors at least that. None where either is not known."""
        if result.flops is None or not self.peak_flops:
            return None
        return result.flops / (self.num_devices * self.peak_flops)


INTENSITY = (
    "How many bytes the devices moved to and from their memory is not measured, so the run is a line in the roofline "
    "and not a point: its arithmetic intensity lies somewhere on that line."
)


def describe_machine(config: RunConfig, system: System | None, edition: Edition) -> Machine:
    """What the devices of a run can do at most.

    Args:
        config: of the run; its precision decides which peak counts.
        system: that it ran on, if that is known.
        edition: the rules with the devices.
    """
    precision = str(config.settings.get("precision", "fp32"))
    if config.device == GPU:
        return _of_accelerators(config, system, edition, precision)
    return _of_processors(config, system, edition, precision)


def _of_accelerators(config: RunConfig, system: System | None, edition: Edition, precision: str) -> Machine:
    names = sorted({card.name for node in system.nodes for card in node.accelerators} if system else set())
    if len(names) != 1:
        what = f"accelerators of {len(names)} kinds" if names else "accelerators that no system.json describes"
        note = f"The run used {what}, so there is no one peak to compare with and no MFU."
        return Machine(what, config.num_ranks, None, False, "", None, (note,))
    try:
        known = edition.device(names[0])
    except UnknownNameError:
        note = f"The dense peak of {names[0]} is not in rules/devices.toml, so MFU cannot be given."
        return Machine(names[0], config.num_ranks, None, False, "", None, (note,))
    peak = known.flops_bound(precision)
    number_format = next((name for name, value in known.peak_flops.items() if value == peak), precision)
    if precision in known.peak_flops and known.peak_flops[precision] == peak:
        number_format = precision
    because = ", which the rules allow for fp32 products" if (precision, number_format) == ("fp32", "tf32") else ""
    peak_name = f"dense {number_format} peak{because}"
    return Machine(names[0], config.num_ranks, peak, True, peak_name, known.memory_bytes_per_s, (INTENSITY,))


def _of_processors(config: RunConfig, system: System | None, edition: Edition, precision: str) -> Machine:
    if system is None:
        note = "No system.json describes the machine, so nothing is known of its peak."
        return Machine("processors", config.num_nodes, None, False, "", None, (note,))
    kinds = {(node.processor, node.num_cores, node.num_sockets, tuple(node.instruction_sets)) for node in system.nodes}
    name, cores, sockets, instructions = sorted(kinds)[0]
    if len(kinds) > 1:
        note = f"The nodes are of {len(kinds)} kinds, so there is no one peak to compare with."
        return Machine(f"{name} and others", len(system.nodes), None, False, "", None, (note,))
    bound = edition.processors.flops_bound(instructions, precision) * cores
    clock = f"{edition.processors.max_clock_hz / 1e9:g} GHz"
    notes = (
        f"The peak of this processor is not in the rules. The bound is what no processor of {cores} such cores passes, "
        f"at {clock}: the true peak lies below, and so the share reached is at least what is shown.",
        INTENSITY,
    )
    memory = edition.processors.memory_bytes_per_s * sockets
    device = f"{name}, {cores} core{'' if cores == 1 else 's'} a node"
    return Machine(device, len(system.nodes), bound, False, f"bound in {precision}", memory, notes)
