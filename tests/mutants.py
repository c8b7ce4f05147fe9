"""Mutants of recorded submissions: made, mended by a forger, and held against the verifier.

``python benchmarks/mutation_suite.py`` makes all of them and prints what survives; tests/test_mutants.py some.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from unittest import mock

from mutation_bases import Base
from mutation_fields import Mutant
from mutation_tables import DESCRIPTIVE, SURVIVORS, TOLERATED
from mutation_tickets import ISSUER_KEY
from recording import EDITION

from hpcai500 import metrics
from hpcai500.register.keys import public_key
from hpcai500.register.trusted import TrustedKeys
from hpcai500.verdict import Verdict
from hpcai500.verify import verify_submission

TRUSTED = TrustedKeys(issuers={public_key(ISSUER_KEY): "A register"})
TABLES = {"descriptive": DESCRIPTIVE, "tolerated": TOLERATED, "survivors": SURVIVORS}


@dataclass
class Outcome:
    """What became of the mutants, each named with its base.

    Attributes:
        rejected: by the table whose patterns it fits, or "form" or "meaning"
        survivors: names by the table, "" if none has them.
        crashed: names of those on which the verifier raised, with the error.
        unchanged: mutants that left the submission as it was.
    """

    rejected: Counter[str] = field(default_factory=Counter)
    survivors: dict[str, list[str]] = field(default_factory=dict)
    crashed: list[str] = field(default_factory=list)
    unchanged: int = 0

    @property
    def num_survivors(self) -> int:
        """Mutants that keep the form, change the meaning, and are not found out."""
        return len(self.survivors.get("survivors", [])) + len(self.survivors.get("", []))

    @property
    def rate(self) -> float:
        """Share of the mutants that keep the form and change the meaning which are rejected."""
        rejected = self.rejected["meaning"] + self.rejected["survivors"]
        return rejected / (rejected + self.num_survivors)

    @property
    def rate_with_form(self) -> float:
        """The same, those that break the form included."""
        rejected = self.rejected["form"] + self.rejected["meaning"] + self.rejected["survivors"]
        return rejected / (rejected + self.num_survivors)


def judge(bases: Iterable[Base], chosen: Callable[[str], bool] = lambda name: True) -> Outcome:
    """Make the mutants whose full names are chosen, and let the verifier judge each."""
    outcome = Outcome()
    # The interval of the same scores is the same, and takes half of a small submission's verification.
    interval = functools.cache(metrics.bootstrap_interval)
    with mock.patch("hpcai500.metrics.bootstrap_interval", lambda scores, **words: interval(tuple(scores), **words)):
        for base in bases:
            verdict = _verify(base)
            assert not verdict.findings, f"{base.name} is not valid before it is altered: {verdict.findings[0]}"
            for mutant in base.mutants:
                if chosen(f"{base.name}: {mutant.name}"):
                    _judge_one(base, mutant, outcome, verdict.registration)
            base.forgery.write(base.forgery.original)
    return outcome


def _verify(base: Base) -> Verdict:
    """As a leaderboard does, which knows the key of its register."""
    return verify_submission(base.forgery.path, EDITION, trusted=TRUSTED)


def _judge_one(base: Base, mutant: Mutant, outcome: Outcome, registration: str) -> None:
    """A mutant is rejected if it is not valid, or no longer registered as what it was made from."""
    name = f"{base.name}: {mutant.name}"
    model, before = base.forgery.model(), base.forgery.model()
    mutant.change(model)
    if model == before:
        outcome.unchanged += 1
        return
    base.forgery.forge(model, mutant.mends)
    try:
        verdict = _verify(base)
    except Exception as error:  # what the suite is for
        outcome.crashed.append(f"{name}: {type(error).__name__}: {error}")
        return
    table = table_of(name)
    if verdict.valid and verdict.registration == registration:
        outcome.survivors.setdefault(table, []).append(name)
    else:
        outcome.rejected[table or ("meaning" if mutant.keeps_form else "form")] += 1


def table_of(name: str) -> str:
    """The table of tests/mutation_tables.py that has a mutant; "" if none has."""
    return next((table for table, patterns in TABLES.items() if fits(name, patterns)), "")


def fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def stale(outcome: Outcome, table: str) -> list[str]:
    """The patterns of a table of which nothing survives any more."""
    names = outcome.survivors.get(table, [])
    return [pattern for pattern in TABLES[table] if not any(fnmatchcase(name, pattern) for name in names)]


def in_sample(name: str, share: int) -> bool:
    """Whether a mutant is among the one in ``share`` that the usual tests make, always the same ones."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % share == 0
