"""Any values that the types allow: they are read as they were written, and every submission of them gets a verdict.

What has not the form is in tests/test_any_input.py. The examples are the same every time.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import inspect
from mutation_bases import complete
from mutation_fields import Place, places, put
from mutation_model import Forgery, Model
from recording import EDITION, record_submission
from type_strategies import values_of

from hpcai500.events import EVENTS
from hpcai500.formats import RunConfig, RunResult, SignedTicket, Submission, System, decode
from hpcai500.ledger import ChainHead
from hpcai500.ledger_reader import Entry, scan_ledger
from hpcai500.signature import Signature
from hpcai500.verify import verify_submission

FORMS = (Submission, RunConfig, RunResult, System, SignedTicket, Signature)
steady = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_what_has_the_form_is_read_as_it_was_written(form: type) -> None:
    @settings(steady, max_examples=40)
    @given(values_of(inspect.type_info(form)))
    def test(value: Any) -> None:
        record = decode(json.dumps(value).encode(), form)
        assert isinstance(record, form), record
        assert decode(msgspec.json.encode(record), form) == record

    test()


EVENT_VALUES = st.one_of(
    [st.tuples(st.just(name), values_of(inspect.type_info(kind))) for name, kind in EVENTS.items()]
)
LINES = st.lists(EVENT_VALUES, min_size=1, max_size=6)


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


def test_a_ledger_of_any_events_is_read_as_it_was_written(memory: Path) -> None:
    @settings(steady, max_examples=80)
    @given(LINES, st.integers(0, 2**63 - 1))
    def test(lines: list[tuple[str, Any]], time_ns: int) -> None:
        head, content = ChainHead(), b""
        for event, value in lines:
            line = {"rank": 0, "seq": head.seq, "time_ns": time_ns, "event": event, "value": value, "prev": head.sha256}
            raw = json.dumps(line).encode()
            head.advance(raw)
            content += raw + b"\n"
        path = memory / "ledger"
        path.write_bytes(content)
        entries = list(scan_ledger(path))
        assert [entry.event for entry in entries if isinstance(entry, Entry)] == [event for event, _ in lines]
        for entry, (_, value) in zip(entries, lines, strict=True):
            assert isinstance(entry, Entry)
            assert value.items() <= msgspec.to_builtins(entry.value).items()

    test()


# ---- whole submissions -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forgery(memory: Path) -> Forgery:
    path = record_submission(memory / "recorded", resumed_on=2)
    forgery = Forgery(path.parent)
    model = forgery.model()
    complete(model)
    forgery.forge(model)
    forgery.keep()
    return forgery


def fields(model: Model) -> list[tuple[str, Place]]:
    """All fields of all records, each with the record that it stands in."""
    run = model.runs[0].records
    records = {"submission": (Submission, model.submission), "config.json": (RunConfig, run["config.json"])}
    records |= {"system.json": (System, run["system.json"]), "result.json": (RunResult, run["result.json"])}
    return [(name, place) for name, (form, record) in records.items() for place in places(form, record, name)]


def test_records_with_any_values_are_judged(forgery: Forgery) -> None:
    chosen = st.lists(st.sampled_from(fields(forgery.model())), min_size=1, max_size=4, unique_by=id)

    @settings(steady, max_examples=120)
    @given(chosen, st.data())
    def test(where: list[tuple[str, Place]], data: st.DataObject) -> None:
        model = forgery.model()
        for name, place in where:
            record = model.submission if name == "submission" else model.runs[0].records[name]
            value = data.draw(values_of(place.kind), label=place.name)
            try:
                put(record, place.way, value)
            except (LookupError, TypeError):  # what it stands in was altered before
                continue
        forgery.forge(model)
        verify_submission(forgery.path, EDITION)

    test()


def test_ledgers_with_any_events_are_judged(forgery: Forgery) -> None:
    """Any value of its kind in the place of some events, on one rank or on all."""
    kinds = st.dictionaries(st.integers(0, 25), st.booleans(), min_size=1, max_size=5)

    @settings(steady, max_examples=150)
    @given(kinds, st.data())
    def test(where: dict[int, bool], data: st.DataObject) -> None:
        model = forgery.model()
        ledgers = model.runs[0].ledgers
        for index, on_all_ranks in where.items():
            lines = ledgers[data.draw(st.sampled_from(sorted(ledgers)))]
            line = lines[index % len(lines)]
            value = data.draw(values_of(inspect.type_info(EVENTS[line["event"]])), label=line["event"])
            kept = {key: line["value"][key] for key in data.draw(st.sets(st.sampled_from(sorted(line["value"]))))}
            for others in ledgers.values() if on_all_ranks else [lines]:
                other = others[index % len(others)]
                if other["event"] == line["event"]:
                    other["value"] = value | kept
        forgery.forge(model)
        verify_submission(forgery.path, EDITION)

    test()


def test_ledgers_with_any_times_are_judged(forgery: Forgery) -> None:
    times = st.lists(st.one_of(st.integers(0, 2**63 - 1), st.sampled_from([0, 1, 2**63 - 1])), min_size=1, max_size=40)

    @settings(steady, max_examples=60)
    @given(times, st.booleans())
    def test(times_ns: list[int], in_order: bool) -> None:
        model = forgery.model()
        for lines in model.ledgers:
            chosen = sorted(times_ns) if in_order else times_ns
            for line, time_ns in zip(lines, chosen, strict=False):
                line["time_ns"] = time_ns
                if "wall_ns" in line["value"]:
                    line["value"]["wall_ns"] = time_ns
        forgery.forge(model)
        verify_submission(forgery.path, EDITION)

    test()
