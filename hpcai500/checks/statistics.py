"""Statistics: the score is taken over all runs that were started, in the order in which they were.

How many runs must complete is checked in hpcai500/checks/level.py; whether the score is too noisy to be ranked is no
finding but a reason not to rank it (hpcai500.submission.reasons_not_to_rank). Not covered: runs whose folders were
deleted, which only a ticket of the run register brings to light.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

from hpcai500.checks.case import Case
from hpcai500.errors import RecordError
from hpcai500.events import RunOpen
from hpcai500.finding import Finding
from hpcai500.formats import read_config
from hpcai500.record import read_segments
from hpcai500.submission import place_in_order

MAX_FOLDERS = 10_000


def check_order_of_runs(case: Case) -> list[Finding]:
    """Runs are listed in the order in which they were announced or started, on which the score's windows depend."""
    findings = []
    for before, after in itertools.pairwise(case.runs):
        if place_in_order(after.record) < place_in_order(before.record):
            place = f"{case.place}:runs[{after.place}]"
            findings.append(Finding("runs.order", place, f"before {before.place}, as it was started", "after it"))
    return findings


def check_runs_are_listed(case: Case) -> list[Finding]:
    """Beside the runs lies no other of the same kind that started before the submission was made."""
    listed = {run.record.folder.resolve() for run in case.runs}
    made_ns = _made_ns(case)
    findings = []
    for parent in sorted({run.record.folder.parent for run in case.runs}):
        for folder in _folders(parent):
            if folder.resolve() not in listed and _started_before(case, folder, made_ns):
                expected = "every run that was started, failed ones too"
                findings.append(Finding("runs.listed", f"{case.place}:runs", expected, f"{folder.name} is not listed"))
    return findings


def _made_ns(case: Case) -> float:
    """When the submission was made; not before the last line of any of its runs, whatever it says."""
    if case.created_ns is None:  # check_created says so
        return math.inf
    lasts = [root.entries[-1].time_ns for run in case.runs for root in run.record.roots if root.entries]
    return max(case.created_ns, *lasts, 0)


def _folders(parent: Path) -> list[Path]:
    try:
        found = itertools.islice(parent.iterdir(), MAX_FOLDERS)
        return sorted(folder for folder in found if (folder / "config.json").is_file())
    except OSError:
        return []


def _started_before(case: Case, folder: Path, made_ns: float) -> bool:
    """Whether a folder holds a run of the submission's kind that opened before; one that cannot be read does not."""
    submission = case.submission
    try:
        config, _ = read_config(folder)
        segments = read_segments(folder, place="", ranks={0})
    except RecordError:
        return False
    kind = (submission.workload, submission.level, submission.size, submission.rules_sha256)
    is_one = kind == (config.workload, config.level, config.size, config.rules_sha256)
    openings = (opened.wall_ns for segment in segments if (opened := segment.ledgers[0].value(RunOpen)))
    return is_one and any(opened_ns < made_ns for opened_ns in openings)
