"""Mutants of recorded submissions: made, mended by a forger, and held against the verifier.

``python benchmarks/mutation_suite.py`` makes all of them and prints what survives; tests/test_mutants.py some.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from unittest import mock

from mutation_fields import Mutant, event_mutants, field_mutants, record_mutants
from mutation_ledgers import ledger_mutants
from mutation_model import SUBMISSION, Forgery, Model
from mutation_tables import DESCRIPTIVE, SURVIVORS
from mutation_tickets import record_ticketed, ticket_mutants
from recording import EDITION, record_submission

from hpcai500 import metrics
from hpcai500.events import EVENTS
from hpcai500.formats import RunConfig
from hpcai500.verify import verify_submission


@dataclass(frozen=True)
class Base:
    """A valid submission, and which mutants are made of it."""

    name: str
    forgery: Forgery
    mutants: list[Mutant]


@dataclass
class Outcome:
    """What became of the mutants, each named with its base."""

    rejected: Counter[str] = field(default_factory=Counter)
    survivors: list[str] = field(default_factory=list)
    descriptive: list[str] = field(default_factory=list)
    unchanged: int = 0
    crashed: list[str] = field(default_factory=list)


def make_bases(folder: Path) -> list[Base]:
    """Record the submissions and list their mutants.

    Args:
        folder: an empty one, best in memory.
    """
    return [
        _base(folder / "resnet50", _all_mutants),
        _base(folder / "fasterrcnn", _ledger_mutants, workload="fasterrcnn", num_runs=2),
        _base(folder / "resumed", _ledger_mutants, resumed_on=2),
        _base(folder / "hardware", _setting_mutants, level="hardware"),
        _base(folder / "hardware-fasterrcnn", _setting_mutants, level="hardware", workload="fasterrcnn", num_runs=2),
        Base("ticket", *_recorded(record_ticketed(folder / "ticket"), ticket_mutants)),
    ]


def _base(folder: Path, make: Callable[[Model], Iterable[Mutant]], **words: Any) -> Base:
    return Base(folder.name, *_recorded(record_submission(folder, **words), make))


def _recorded(path: Path, make: Callable[[Model], Iterable[Mutant]]) -> tuple[Forgery, list[Mutant]]:
    forgery = Forgery(path.parent)
    return forgery, list(make(forgery.model()))


def _all_mutants(model: Model) -> Iterator[Mutant]:
    yield from field_mutants(model)
    yield from _ledger_mutants(model)


def _ledger_mutants(model: Model) -> Iterator[Mutant]:
    for event in EVENTS:
        yield from event_mutants(model, event)
    yield from ledger_mutants(model)


def _setting_mutants(model: Model) -> Iterator[Mutant]:
    """Settings, at the level that closes most of them."""
    for mutant in record_mutants(model, "config.json", RunConfig, "config"):
        if mutant.field.startswith("config.settings."):
            yield mutant


def full_name(base: Base, mutant: Mutant) -> str:
    return f"{base.name}: {mutant.name}"


def judge(bases: Iterable[Base], chosen: Callable[[str], bool] = lambda name: True) -> Outcome:
    """Make the mutants whose full names are chosen, and let the verifier judge each."""
    outcome = Outcome()
    # The interval of the same scores is the same, and takes half of a small submission's verification.
    interval = functools.cache(metrics.bootstrap_interval)
    with mock.patch("hpcai500.metrics.bootstrap_interval", lambda scores, **words: interval(tuple(scores), **words)):
        for base in bases:
            original = base.forgery.original
            assert verify_submission(base.forgery.path, EDITION).valid, f"{base.name} is not valid before it is altered"
            for mutant in base.mutants:
                if chosen(full_name(base, mutant)):
                    _judge_one(base, mutant, outcome)
            base.forgery.write(original)
    return outcome


def _judge_one(base: Base, mutant: Mutant, outcome: Outcome) -> None:
    name = full_name(base, mutant)
    model, before = base.forgery.model(), base.forgery.model()
    mutant.change(model)
    if model == before:
        outcome.unchanged += 1
        return
    base.forgery.forge(model, mutant.mends)
    try:
        is_valid = verify_submission(base.forgery.path, EDITION).valid
    except Exception as error:  # what the suite is for
        outcome.crashed.append(f"{name}: {type(error).__name__}: {error}")
        return
    if is_descriptive(mutant):
        outcome.descriptive += [name] if is_valid else []
    elif is_valid:
        outcome.survivors.append(name)
    else:
        outcome.rejected["form" if not mutant.keeps_form else "meaning"] += 1


def is_descriptive(mutant: Mutant) -> bool:
    """Whether it alters what no figure, rule or identity follows from, and keeps the form."""
    return mutant.keeps_form and any(fnmatchcase(mutant.field, pattern) for pattern in DESCRIPTIVE)


def listed(name: str) -> list[str]:
    """The patterns of the table of survivors that a mutant fits."""
    return [pattern for pattern in SURVIVORS if fnmatchcase(name, pattern)]


def thinned(name: str, share: int) -> bool:
    """Whether a mutant is among the one in ``share`` that the usual tests make, always the same ones."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % share == 0


def rate(outcome: Outcome) -> float:
    """Share of the mutants that keep the form and change the meaning which were rejected."""
    return outcome.rejected["meaning"] / (outcome.rejected["meaning"] + len(outcome.survivors))


__all__ = ["SUBMISSION", "Base", "Outcome", "judge", "listed", "make_bases", "rate", "thinned"]
