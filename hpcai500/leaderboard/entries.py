"""What a board keeps of a submission to rank and filter it by: computed from its files and the server's own verdict.

Figures are those of the verdict. What it does not have is computed here:

- ``num_devices``: the accelerators that the system lists if the runs used them, else the sockets of processors.
- ``energy_j``: median over the completed runs of what the devices drew, from the sources (nvml, rapl) that tell it of
  as many devices as the system has; null where a completed run tells of none.
- ``vflops_per_w``: the score over the median of energy_j / the time in which it was counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from hpcai500.events import Energy
from hpcai500.formats import RunConfig, Submission, SubmittedRun, System, read_config, read_record
from hpcai500.metrics import median
from hpcai500.record import list_ledgers
from hpcai500.register.ticket import ticket_sha256
from hpcai500.submission import NS_PER_S
from hpcai500.verdict import Verdict

SIZE_CLASSES = {"1": (1, 1), "2-8": (2, 8), "9-64": (9, 64), "65-512": (65, 512), "513+": (513, None)}
"""Classes of machines, by the least and most devices."""
MAX_LISTED = 100  # deviations, notes and runs that are kept for pages; verdict.json has all
ENERGY_MARK = b'"event":"energy"'


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of table ``submission`` that the server finds itself (hpcai500/leaderboard/tables.py)."""

    workload: str
    level: str
    size: str
    edition: str
    precision: str
    size_class: str
    rankable: bool
    why_not: str | None
    signed_by: str | None
    submitter: str | None
    created: str
    accelerator: str
    num_accelerators: int
    num_devices: int
    num_nodes: int
    num_ranks: int
    communicator: str
    num_runs: int
    num_completed: int
    vflops: float
    vflops_low: float
    vflops_high: float
    vflops_per_device: float
    vflops_per_w: float | None
    flops: float
    achieved_quality: float
    target_quality: float
    wall_s: float
    train_s: float
    energy_j: float | None
    ticket_sha256: str | None
    facts: dict[str, Any]


class _EnergyLine(msgspec.Struct, frozen=True):
    """A line of a ledger, as far as it is needed here."""

    value: Energy


def size_class(num_devices: int) -> str:
    """The class of a machine with so many devices."""
    return next(name for name, (_, most) in SIZE_CLASSES.items() if most is None or num_devices <= most)


def read_entry(submission_path: Path, verdict: Verdict) -> Entry:
    """The entry of a valid submission.

    Args:
        submission_path: of its submission.json.
        verdict: of this verifier on it, which is valid.

    Raises:
        RecordError: a file cannot be read any more.
    """
    assert verdict.valid, verdict.findings
    summary = verdict.summary
    assert summary is not None
    submission = read_record(submission_path, Submission)
    run = next(run for run in submission.runs if run.status == "completed")
    config, _ = read_config(submission_path.parent / run.folder)
    system = submission.system
    accelerators = [one.name for node in system.nodes for one in node.accelerators]
    used = accelerators if config.device.startswith("cuda") else []
    num_devices = len(used) or sum(node.num_sockets for node in system.nodes)
    low, high = summary.vflops_interval
    energy_j, power_w = _energy(submission_path.parent, submission, num_used=len(used))
    return Entry(
        workload=submission.workload,
        level=submission.level,
        size=submission.size,
        edition=submission.edition,
        precision=_setting(config, "precision"),
        size_class=size_class(num_devices),
        rankable=verdict.rankable,
        why_not="; ".join(verdict.why_not) or None,
        signed_by=verdict.signed_by,
        submitter=submission.submitter,
        created=submission.created,
        accelerator=_names(used or [node.processor for node in system.nodes]),
        num_accelerators=len(used),
        num_devices=num_devices,
        num_nodes=config.num_nodes,
        num_ranks=config.num_ranks,
        communicator=_setting(config, "communicator"),
        num_runs=summary.num_runs,
        num_completed=summary.num_completed,
        vflops=summary.vflops,
        vflops_low=low,
        vflops_high=high,
        vflops_per_device=summary.vflops / num_devices,
        vflops_per_w=summary.vflops / power_w if power_w else None,
        flops=summary.flops,
        achieved_quality=summary.achieved_quality,
        target_quality=summary.target_quality,
        wall_s=summary.wall_s,
        train_s=summary.train_s,
        energy_j=energy_j,
        ticket_sha256=ticket_sha256(submission.ticket.ticket) if submission.ticket else None,
        facts=_facts(submission, config, verdict),
    )


def _setting(config: RunConfig, name: str) -> str:
    return str(config.settings.get(name, ""))[:40]


def _names(names: list[str]) -> str:
    """All kinds that there are, in the order in which they come, as far as the column goes."""
    return " + ".join(dict.fromkeys(names))[:200]


def _facts(submission: Submission, config: RunConfig, verdict: Verdict) -> dict[str, Any]:
    """What pages show beside, in words of JSON."""
    system = submission.system
    fields = ("seed", "status", "segments", "epochs", "wall_s", "train_s", "achieved_quality", "flops", "vflops")
    return {
        "os": system.os,
        "kernel": system.kernel,
        "python": system.python,
        "libraries": dict(list(system.libraries.items())[:MAX_LISTED]),
        "processor": _names([node.processor for node in system.nodes]),
        "num_cores": sum(node.num_cores for node in system.nodes),
        "memory_bytes": sum(node.memory_bytes for node in system.nodes),
        "data_source": submission.data_source,
        "settings": config.settings,
        "deviations": [str(deviation) for deviation in verdict.deviations[:MAX_LISTED]],
        "notes": verdict.notes[:MAX_LISTED],
        "warnings": [str(finding) for finding in verdict.findings[:MAX_LISTED]],
        "runs": [{field: getattr(run, field) for field in fields} for run in verdict.results[:MAX_LISTED]],
    }


def _energy(base: Path, submission: Submission, *, num_used: int) -> tuple[float | None, float | None]:
    """Medians over the completed runs of energy in J and of mean power in W; None where one does not tell."""
    told = [_energy_of(base, run, num_used=num_used) for run in submission.runs if run.status == "completed"]
    known = [pair for pair in told if pair is not None]
    if not known or len(known) < len(told):
        return None, None
    return median([energy_j for energy_j, _ in known]), median([energy_j / time_s for energy_j, time_s in known])


def _energy_of(base: Path, run: SubmittedRun, *, num_used: int) -> tuple[float, float] | None:
    """Energy of a run in J and the time in s in which it was counted, of the sources that tell it of all devices.

    A run that was resumed tells it of each of its segments.
    """
    num_sockets = sum(node.num_sockets for node in read_record(base / run.folder / "system.json", System).nodes)
    wanted = {"nvml": num_used, "rapl": num_sockets}
    energy_j: dict[str, float] = dict.fromkeys(wanted, 0.0)
    time_s = 0.0
    for ranks in list_ledgers(base / run.folder).values():
        events = [event for path in ranks.values() for event in _energy_events(path)]
        for source, num_devices in wanted.items():
            told = [event for event in events if event.source == source]
            if num_devices == 0 or sum(event.num_devices for event in told) < num_devices:
                energy_j.pop(source, None)
            elif source in energy_j:
                energy_j[source] += sum(event.energy_j for event in told)
        time_s += max((event.duration_ns for event in events), default=0) / NS_PER_S
    total_j = sum(energy_j.values())
    return (total_j, time_s) if total_j > 0 and time_s > 0 else None


def _energy_events(ledger: Path) -> list[Energy]:
    with ledger.open("rb") as file:
        lines = [line for line in file if ENERGY_MARK in line]
    return [msgspec.json.decode(line, type=_EnergyLine).value for line in lines]
