"""Level: what the rules of the level and the size demand of the settings and of the runs as a whole.

Not covered: what no setting says, such as the code that ran; runs that were started and left out.
"""

from __future__ import annotations

from collections import Counter

from hpcai500.checks.case import Case
from hpcai500.edition import check_level
from hpcai500.events import Window
from hpcai500.finding import Finding


def check_settings(case: Case) -> list[Finding]:
    """The level allows all settings of every run (rules level.*); asks the function that the launcher asks."""
    findings = []
    for run in case.runs:
        for found in check_level(case.workload, case.size.name, case.submission.level, run.config.settings):
            place = f"{run.place}/config.json:settings.{found.place}"
            findings.append(Finding(found.rule, place, found.expected, found.found))
    return findings


def check_number_of_runs(case: Case) -> list[Finding]:
    """At least as many runs completed as the size demands."""
    if len(case.completed) >= case.size.num_runs:
        return []
    expected = f"at least {case.size.num_runs} completed runs at size {case.size.name}"
    return [Finding("runs.number", f"{case.place}:runs", expected, f"{len(case.completed)}")]


def check_seeds(case: Case) -> list[Finding]:
    """No two runs have the same seed, run id, folder, or the same losses."""
    findings = []
    keys: dict[str, list[object]] = {
        "seed": [run.submitted.seed for run in case.runs],
        "run_id": [run.submitted.run_id for run in case.runs],
        "folder": [run.record.folder.resolve() for run in case.runs],
    }
    curves = [
        tuple(w.loss_sum for ledger in run.record.ledgers for w in ledger.values(Window)) for run in case.completed
    ]
    keys["losses"] = list(curves)
    for name, values in keys.items():
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            found = "the same in two runs" if name == "losses" else f"{twice[0]} in two runs"
            findings.append(Finding("runs.seeds", f"{case.place}:runs.{name}", f"a {name} of its own for each", found))
    return findings
