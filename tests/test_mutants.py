"""Nothing that changes what a submission means gets past the verifier, but for what tests/mutation_tables.py lists.

One mutant in ten is made here, always the same ones, and all that are known to survive; all of them by
``python benchmarks/mutation_suite.py``, whose figures are in benchmarks/mutation_suite.rst.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from mutants import fits, in_sample, judge, stale
from mutation_bases import Base, make_bases
from mutation_tables import DESCRIPTIVE, SURVIVORS, TOLERATED

from hpcai500.events import EVENTS
from hpcai500.formats import RunConfig, RunResult, Submission, System

SHARE = 10
MEMORY = Path("/dev/shm")  # thousands of small files are written


@pytest.fixture(scope="module")
def bases() -> Iterator[list[Base]]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield make_bases(Path(folder))


def test_every_field_of_every_record_and_event_has_mutants(bases: list[Base]) -> None:
    fields = {mutant.field for base in bases for mutant in base.mutants}
    records = {"submission": Submission, "config": RunConfig, "result": RunResult, "system": System, **EVENTS}
    for name, kind in records.items():
        missing = {f"{name}.{field.encode_name}" for field in msgspec.structs.fields(kind)} - fields
        assert not missing
    assert fields >= set(EVENTS), "whole events"
    for base in bases:
        names = [mutant.name for mutant in base.mutants]
        assert len(set(names)) == len(names)


def test_what_changes_the_meaning_is_rejected(bases: list[Base]) -> None:
    outcome = judge(bases, lambda name: in_sample(name, SHARE) or fits(name, SURVIVORS))
    assert outcome.crashed == []
    assert outcome.survivors.get("", []) == [], (
        "report the hole, or list it in tests/mutation_tables.py with the reason"
    )
    assert stale(outcome, "survivors") == [], "is found out now: take it off the table"
    assert outcome.rejected["meaning"] > 300
    assert outcome.rejected["form"] > 100


def test_every_exception_has_its_reason_and_none_hides_all(bases: list[Base]) -> None:
    """Patterns fit some mutants each, and no base is excepted as a whole."""
    names = [f"{base.name}: {mutant.name}" for base in bases for mutant in base.mutants]
    for table in (DESCRIPTIVE, TOLERATED, SURVIVORS):
        for pattern, reason in table.items():
            assert len(reason) > 8
            assert any(fits(name, [pattern]) for name in names), pattern
    excepted = [name for name in names if fits(name, [*DESCRIPTIVE, *TOLERATED, *SURVIVORS])]
    assert len(excepted) < len(names) / 5


def test_the_page_of_figures_lists_what_survives() -> None:
    page = (Path(__file__).parents[1] / "benchmarks/mutation_suite.rst").read_text()
    listed = re.findall(r"^``(.+)`` \(\d+\)$", page.split("What nothing follows from")[0], re.MULTILINE)
    assert sorted(listed) == sorted([*SURVIVORS, *TOLERATED]), "run benchmarks/mutation_suite.py and write it down"
