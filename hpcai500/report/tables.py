"""The figures of a report as CSV and JSON, for spreadsheets and programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pandas as pd  # type: ignore[import-untyped]

from hpcai500.energy.figures import headline_of
from hpcai500.formats import RunResult, TimeParts
from hpcai500.report.run_figures import PERCENTILES, RunFigures
from hpcai500.report.subject import Subject
from hpcai500.spreadsheet import safe_cell
from hpcai500.verdict import printable, verdict_form

OWN_FIELDS = ("format", "run_id", "seed", "parts", "energy")  # told otherwise
RESULT_FIELDS = [name for name in RunResult.__struct_fields__ if name not in OWN_FIELDS]


def runs_frame(subjects: Sequence[Subject]) -> pd.DataFrame:
    """A row for each run of each subject."""
    return pd.DataFrame([_row(subject, run) for subject in subjects for run in subject.runs])


def _row(subject: Subject, run: RunFigures) -> dict[str, Any]:
    config, machine, verdict = run.config, subject.machine, subject.verdict
    row: dict[str, Any] = {"subject": subject.name, "run": run.name, "run_id": config.run_id}
    row |= {"seed": str(config.seed)}  # announced seeds are larger than a spreadsheet's numbers
    row |= {"valid": None if verdict is None else verdict.valid}
    row |= {"workload": config.workload, "size": config.size, "level": config.level, "edition": config.edition}
    row |= {"precision": str(config.settings.get("precision", "")), "device": machine.device if machine else None}
    row |= {"num_nodes": config.num_nodes, "num_ranks": config.num_ranks}
    row |= {name: getattr(run.result, name) for name in RESULT_FIELDS}
    row |= {"mfu": machine.mfu(run.result) if machine and machine.is_peak else None}
    row |= {name: getattr(run.parts, name, None) for name in TimeParts.__struct_fields__}
    row |= {"start_up_s": sum(run.start_up_s.values()) if run.start_up_s else None}
    energy = headline_of([run.result], on_accelerators=config.device.startswith("cuda"))
    row |= {"energy_j": energy.energy_j if energy else None, "power_w": energy.power_w if energy else None}
    row |= {"energy_label": energy.label if energy else None, "energy_of": energy.scope if energy else None}
    row |= {"step_own_s_median": run.ranks.own_s[3] if run.ranks else None}
    return row | {"num_stragglers": run.ranks.num_stragglers if run.ranks else None}


def as_csv(subjects: Sequence[Subject]) -> str:
    """The runs as CSV with a line of names, times in s, rates in flop/s."""
    frame = runs_frame(subjects)
    texts = frame.select_dtypes(exclude="number").columns
    frame[texts] = frame[texts].map(plain_cell)
    csv: str = frame.to_csv(index=False, lineterminator="\r\n")
    return csv


def plain_cell(value: object) -> object:
    """Texts on one line, without control characters, and no formulas."""
    return safe_cell(value, printable(value)) if isinstance(value, str) else value


def as_json(subjects: Sequence[Subject]) -> str:
    """Everything that the page shows as JSON: for each subject its verdict, runs, curves and machine."""
    forms = [_form(subject) for subject in subjects]
    content = msgspec.json.encode({"format": 1, "percentiles": PERCENTILES, "subjects": forms})
    return msgspec.json.format(content, indent=2).decode() + "\n"


def _form(subject: Subject) -> Mapping[str, object]:
    rows = runs_frame([subject]).astype(object)
    records = rows.where(rows.notna(), None).to_dict(orient="records")
    curves = [
        {"run": run.name, "evaluations": run.curve, "windows": run.stretches, "ranks": run.ranks}
        | {"energy": run.result.energy, "energy_of_nodes": run.energy}
        | {"start_up_s": run.start_up_s, "damage": run.damage or None}
        for run in subject.runs
    ]
    verdict = verdict_form(subject.verdict, str(subject.path)) if subject.verdict else None
    return {
        "name": subject.name,
        "not_judged": subject.not_judged or None,
        "verdict": verdict,
        "summary": subject.summary,
        "machine": subject.machine,
        "unreadable": subject.unreadable,
        "runs": records,
        "curves": curves,
    }
