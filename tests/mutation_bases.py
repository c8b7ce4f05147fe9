"""The valid submissions that mutants are made of: of both workloads, resumed, at a closed level, and with a ticket."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutation_fields import Mutant, event_mutants, field_mutants, record_mutants
from mutation_ledgers import ledger_mutants, rescale
from mutation_model import Forgery, Json, Lines, Model
from mutation_tickets import record_ticketed, ticket_mutants
from recording import NS_PER_S, record_submission

from hpcai500.events import EVENTS
from hpcai500.formats import RunConfig

# A recorded step takes a second and a run some twenty; the verifier leaves a run some seconds. So runs take this much
# longer, and what is altered in them is as little of the whole as in a real one.
STRETCH = (40, 1)


@dataclass(frozen=True)
class Base:
    """A valid submission, and the mutants that are made of it."""

    name: str
    forgery: Forgery
    mutants: list[Mutant]


def make_bases(folder: Path) -> list[Base]:
    """Record the submissions and list their mutants.

    Args:
        folder: an empty one, best in memory.
    """
    recorded = {
        "resnet50": (record_submission(folder / "resnet50"), _all_mutants),
        "fasterrcnn": (record_submission(folder / "fasterrcnn", workload="fasterrcnn", num_runs=2), _detector_mutants),
        "resumed": (record_submission(folder / "resumed", resumed_on=2), _resumed_mutants),
        "hardware": (record_submission(folder / "hardware", level="hardware"), _closed_mutants),
        "detector at hardware": (_record_detector(folder / "detector"), _closed_mutants),
        "ticket": (record_ticketed(folder / "ticket"), ticket_mutants),
    }
    return [_base(name, path, make) for name, (path, make) in recorded.items()]


def _record_detector(folder: Path) -> Path:
    return record_submission(folder, level="hardware", workload="fasterrcnn", num_runs=2)


def _base(name: str, path: Path, make: Callable[[Model], Iterable[Mutant]]) -> Base:
    forgery = Forgery(path.parent)
    model = forgery.model()
    complete(model)
    forgery.forge(model)
    forgery.keep()
    return Base(name, forgery, list(make(forgery.model())))


def _all_mutants(model: Model) -> Iterator[Mutant]:
    yield from field_mutants(model)
    yield from _ledger_mutants(model)


def _ledger_mutants(model: Model) -> Iterator[Mutant]:
    for event in EVENTS:
        yield from event_mutants(model, event)
    yield from ledger_mutants(model)


def _detector_mutants(model: Model) -> Iterator[Mutant]:
    """What a detector has of its own: counts of each class, curves, no loss of evaluation."""
    for event in ("model_built", "epoch_part", "evaluation_shard", "evaluation"):
        yield from event_mutants(model, event)
    yield from ledger_mutants(model)


def _resumed_mutants(model: Model) -> Iterator[Mutant]:
    """What joins segments."""
    for event in ("run_open", "resume", "epoch_part", "checkpoint"):
        yield from event_mutants(model, event)
    yield from ledger_mutants(model)


def _closed_mutants(model: Model) -> Iterator[Mutant]:
    """What a level closes: settings and the code that ran."""
    for mutant in record_mutants(model, "config.json", RunConfig, "config"):
        if mutant.field.startswith("config.settings."):
            yield mutant
    for mutant in event_mutants(model, "run_open"):
        if mutant.field == "run_open.code_sha256":
            yield mutant


def complete(model: Model) -> None:
    """Stretch the runs, and add what a recorded run leaves out and a real one may have: staging, energy, bytes."""
    for system in model.systems:
        for interface in system["nodes"][0]["network"]:
            interface["speed_bits_per_s"] = 10**10
    for run in model.runs:
        for (_, rank), lines in run.ledgers.items():
            if rank == 0:
                _add_node_events(lines)
            rescale(STRETCH, lines, lines=True, walls=True, durations=True)
        for data in run.events("data_open"):
            data["train_bytes"] = 1000 * data["num_train_samples"]
        for opened in run.events("run_open"):
            opened["job"] = "4711"


def _add_node_events(lines: Lines) -> None:
    data = next(index for index, line in enumerate(lines) if line["event"] == "data_open")
    staging: Json = {"source": "/shared/data.h5", "path": "/local/data.h5", "num_bytes": 10**6, "reused": False}
    staging |= {"duration_ns": NS_PER_S // 10, "verify_ns": NS_PER_S // 20, "fell_back": None}
    lines.insert(data, _line_before(lines[data], "staging", staging))
    stops = [line for line in lines if line["event"] == "clock_stop"]
    if stops:
        start = next(line for line in lines if line["event"] == "clock_start")
        duration_ns = stops[0]["time_ns"] - start["time_ns"] + NS_PER_S // 10
        energy: Json = {"source": "rapl", "num_devices": 1, "energy_j": 100 * duration_ns / NS_PER_S * STRETCH[0]}
        energy |= {"wall_ns": start["time_ns"] - NS_PER_S // 20, "duration_ns": duration_ns}
        energy |= {"num_readings": 20, "longest_gap_ns": duration_ns}
        lines.insert(-1, _line_before(lines[-1], "energy", energy))


def _line_before(line: dict[str, Any], event: str, value: Json) -> dict[str, Any]:
    return line | {"event": event, "value": value}
