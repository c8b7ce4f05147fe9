"""What a board keeps of a submission to rank and filter it by: computed from its files and the server's own verdict.

Figures are those of the verdict. What it does not have is computed here:

- ``num_devices``: the accelerators that the system lists if the runs used them, else the sockets of processors.
- ``energy_j``: median over the completed runs, from the best source that tells it of all nodes in all of them
  (hpcai500.energy.figures); null where there is none. ``energy_label`` is what its readings earn.
- ``vflops_per_w``: the score over the median of the runs' mean power.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from hpcai500.energy.figures import headline_of
from hpcai500.formats import RunConfig, Submission, read_config, read_record
from hpcai500.register.ticket import ticket_sha256
from hpcai500.verdict import Verdict

SIZE_CLASSES = {"1": (1, 1), "2-8": (2, 8), "9-64": (9, 64), "65-512": (65, 512), "513+": (513, None)}
"""Classes of machines, by the least and most devices."""
MAX_LISTED = 100  # deviations, notes and runs that are kept for pages; verdict.json has all


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
    energy_label: str | None
    ticket_sha256: str | None
    facts: dict[str, Any]


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
    completed = [result for result in verdict.results if result.status == "completed"]
    energy = headline_of(completed, on_accelerators=config.device.startswith("cuda"))
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
        vflops_per_w=summary.vflops / energy.power_w if energy and energy.power_w else None,
        flops=summary.flops,
        achieved_quality=summary.achieved_quality,
        target_quality=summary.target_quality,
        wall_s=summary.wall_s,
        train_s=summary.train_s,
        energy_j=energy.energy_j if energy else None,
        energy_label=energy.label if energy else None,
        ticket_sha256=ticket_sha256(submission.ticket.ticket) if submission.ticket else None,
        facts=_facts(submission, config, verdict) | {"energy_of": energy.scope if energy else None},
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
