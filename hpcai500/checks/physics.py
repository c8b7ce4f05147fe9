"""Physics: nothing was faster than the machine can.

Only completed runs are looked at. What is bounded is what is recorded: windows of steps, shards of evaluations, epochs.
Energy is in hpcai500/checks/energy.py. The limits (hpcai500/checks/limits.py) are those that no honest run passes, so a
run that is a few times too fast on a machine that is seldom at its peak is not found out here. Not covered: a forger
who describes a larger machine than his own, and storage, of which only is known that what memory holds is read from
memory.
"""

from __future__ import annotations

from collections.abc import Iterator

from hpcai500.checks.case import Case
from hpcai500.checks.hosts import HostPart, Pace, rate
from hpcai500.checks.limits import network_bytes_per_s
from hpcai500.events import DataOpen, EvaluationShard, ModelBuilt
from hpcai500.finding import Finding
from hpcai500.flop_forms import FlopForm, evaluation_flop, flop_form

GRADIENT_BYTES = 2  # of a number in bf16 or fp16, the smallest form of gradients but at free level
OPTIMIZER_LAYER = 8  # hyper-parameters and policies: where this is open, gradients may be sent in any form
# Bytes of a value of the input that comes to the device at least: pictures are bytes, climate fields half floats.
INPUT_VALUE_BYTES = {"resnet50": 1, "fasterrcnn": 2}


def _form(case: Case, part: HostPart) -> FlopForm:
    return flop_form(case.submission.workload, part.run.config.settings, case.size)


def _over(rule: str, pace: Pace, limit: float, unit: str, what: str) -> Iterator[Finding]:
    """A finding if the pace is over a limit."""
    if pace.rate > limit:
        yield Finding(rule, pace.place, f"at most {limit:.4g} {unit}, {what}", f"{pace.rate:.4g} {unit}")


def _over_host(rule: str, part: HostPart, rank: Pace, host: Pace, unit: str) -> list[Finding]:
    """A finding if a rank was faster than its device, or else if its host's ranks were than their devices."""
    limits = part.limits
    if limits is None or not limits.flops:
        return []  # check_devices says so
    num_ranks = len(part.ledgers)
    alone = _over(rule, rank, limits.flops_of(1), unit, "the peak of its device")
    return list(alone) or list(
        _over(rule, host, limits.flops_of(num_ranks), unit, f"the peak of the devices of {num_ranks} ranks")
    )


def check_devices(case: Case) -> list[Finding]:
    """Every host's accelerators are in the rules, or were measured by the self-check that lies in the run's folder.

    A host that trains on accelerators has one.
    """
    findings = []
    for part in case.hosts:
        if part.limits is None or part.limits.flops:
            continue
        unknown = ", ".join(sorted(set(part.limits.unknown)))[:500]
        rule = "physics.unknown_device" if unknown and not case.size.rankable else "physics.device"
        found = unknown or "none"
        expected = "devices of rules/devices.toml, or a selfcheck.json beside config.json"
        findings.append(Finding(rule, f"{part.run.place}/system.json:host {part.host}"[:500], expected, found))
    return findings


def check_training_flops(case: Case) -> list[Finding]:
    """In no window of steps a rank computes faster than its device, or a host's ranks than their devices together."""
    findings = []
    for part in case.hosts:
        flop = _form(case, part).training
        host = max((rate(*work) for work in part.windows.values()), default=0.0)
        rank = Pace(part.samples.rate * flop, part.samples.place)
        findings += _over_host("physics.flops", part, rank, Pace(host * flop, part.place), "flop/s in training")
    return findings


def check_evaluation_flops(case: Case) -> list[Finding]:
    """In no evaluation a rank computes faster than its device, or a host's ranks than their devices together."""
    findings = []
    for part in case.hosts:
        flop = evaluation_flop(case.submission.workload, part.run.config.settings, case.size)
        rank = Pace(0.0, "")
        whole: dict[int, tuple[int, int]] = {}
        for ledger in part.ledgers:
            for shard in ledger.values(EvaluationShard):
                pace = flop * rate(shard.samples, shard.duration_ns)
                if pace > rank.rate:
                    rank = Pace(pace, f"{ledger.rank_place}.evaluation_shard[{shard.epoch}].duration_ns")
                samples, duration_ns = whole.get(shard.epoch, (0, 0))
                whole[shard.epoch] = (samples + shard.samples, max(duration_ns, shard.duration_ns))
        host = Pace(flop * max((rate(*work) for work in whole.values()), default=0.0), part.place)
        findings += _over_host("physics.flops", part, rank, host, "flop/s in an evaluation")
    return findings


def check_bus(case: Case) -> list[Finding]:
    """In a segment's first epoch samples come to the accelerators no faster than their buses carry them.

    Later epochs may find them in the accelerators' memory. A sample takes the fewest bytes in which its values can be
    handed over.
    """
    findings: list[Finding] = []
    for part in case.hosts:
        epochs = part.epochs()
        if part.limits is None or not part.limits.bus_bytes_per_s or not epochs:
            continue
        values = 1
        for length in _form(case, part).input_shape:
            values *= length
        sample_bytes = INPUT_VALUE_BYTES.get(case.submission.workload, 1) * values
        first = next(iter(epochs.values()))
        pace = Pace(sample_bytes * rate(*first), part.place)
        limit = part.limits.bus_of(len(part.ledgers))
        findings += _over("physics.bus", pace, limit, "bytes/s of input", "what the buses to its accelerators carry")
    return findings


def check_storage(case: Case) -> list[Finding]:
    """In no epoch a host reads samples faster than all of its memory can be read, where the data might lie."""
    findings: list[Finding] = []
    for part in case.hosts:
        data = next((data for ledger in part.ledgers if (data := ledger.value(DataOpen))), None)
        if part.limits is None or data is None or data.train_bytes is None:
            continue
        sample_bytes = data.train_bytes / data.num_train_samples
        fastest = max((rate(*work) for work in part.epochs().values()), default=0.0)
        pace, limit = Pace(sample_bytes * fastest, part.place), part.limits.memory_bytes_per_s
        findings += _over("physics.storage", pace, limit, "bytes/s of data", "what its memory can be read at")
    return findings


def check_network(case: Case) -> list[Finding]:
    """Each step's averaged gradients come to each host of several once, no faster than all of its interfaces together.

    Not at free level, where they may be compressed at will, and not where an interface does not tell its speed.
    """
    if OPTIMIZER_LAYER in case.edition.level(case.submission.level).open_layers:
        return []
    findings: list[Finding] = []
    for part in case.hosts:
        model = next((model for ledger in part.ledgers if (model := ledger.value(ModelBuilt))), None)
        if part.num_hosts == 1 or model is None or part.limits is None or part.limits.network_bytes_per_s is None:
            continue
        pace = Pace(part.steps.rate * model.num_parameters * GRADIENT_BYTES, part.steps.place)
        limit, what = part.limits.network_bytes_per_s, "what the network interfaces of its host carry"
        findings += _over("physics.network", pace, limit, "bytes/s of gradients", what)
    return findings


def unchecked(case: Case) -> list[str]:
    """What cannot be checked for want of a figure of the machine, in words; needs no ledgers."""
    if OPTIMIZER_LAYER in case.edition.level(case.submission.level).open_layers:
        return []
    notes = []
    for run in case.completed:
        nodes = run.system.nodes if run.system is not None and run.config.num_nodes > 1 else []
        silent = [node.host for node in nodes if network_bytes_per_s(node) is None]
        if silent:
            others = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
            notes.append(
                f"run {run.place}: traffic is not checked, as {silent[0]}{others} does not tell all its speeds"
            )
    return notes
