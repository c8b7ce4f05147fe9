"""Mutants of single fields, made from the types: every field of every record and event, altered, removed, nulled, ...

A field is named as "config.seed" or "window.samples". Where it stands several times it is altered in one place, on all
ranks, in all runs, and wherever a forger who is no fool would alter it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from msgspec import inspect
from mutation_model import Json, Model, Run

from hpcai500.events import EVENTS
from hpcai500.formats import DataSource, RunConfig, RunResult, Submission, SubmittedRun, System

HUGE_INTEGER, HUGE_NUMBER = 2**62, 1e300
FORM = ("removed", "null", "unknown field", "another type")
FIELD_NAMES = {"submission": {*Submission.__struct_fields__, *SubmittedRun.__struct_fields__}}
FIELD_NAMES |= {"config": {*RunConfig.__struct_fields__, *DataSource.__struct_fields__}}
FIELD_NAMES |= {event: {*kind.__struct_fields__} for event, kind in EVENTS.items()}
# Fields that say the same thing: who alters one everywhere alters the others too.
SAME = ({"source", "data_source"},)


@dataclass(frozen=True)
class Mutant:
    """One altered submission.

    Attributes:
        field: what is altered, as "window.samples" or "window" for a whole event.
        how: in which way.
        where: in which places.
        change: does it.
        mends: what the forger mends afterwards (mutation_model.Forgery.forge).
    """

    field: str
    how: str
    where: str
    change: Callable[[Model], object]
    mends: str = "all"

    @property
    def name(self) -> str:
        return f"{self.field} {self.how}, {self.where}"

    @property
    def keeps_form(self) -> bool:
        """Whether every file still has its form, so that only what it says can give it away."""
        return not self.how.startswith(FORM)


# ---- values ----------------------------------------------------------------------------------------------------------


def alternatives(value: object, kind: inspect.Type, key: str) -> dict[str, object]:
    """Other values for a field, by what was done to it."""
    if isinstance(kind, inspect.LiteralType):
        return {f"other {other}": other for other in kind.values if other != value}
    if isinstance(value, bool):
        return {"flipped": not value}
    if isinstance(value, int):
        others: dict[str, object] = {"x2": 2 * value, "/2": value // 2, "0": 0, "huge": HUGE_INTEGER}
        if not key.endswith("_ns"):  # a nanosecond more changes nothing
            others |= {"+1": value + 1}
    elif isinstance(value, float):
        others = {"x2": 2 * value, "/2": value / 2, "0": 0.0, "+1 %": 1.01 * value, "huge": HUGE_NUMBER}
        others |= {"+1": value + 1} if value < 1000 else {}  # of a trillion, one more changes nothing
    elif isinstance(value, str):
        others = {"more": "0-999"} if key == "cores" else {"other": other_text(value)}
    elif isinstance(value, list):
        others = {"empty": [], "shorter": value[:-1], "longer": [*value, *value[-1:]], "reversed": value[::-1]}
        if value and isinstance(value[0], int | float | list):
            others["larger"] = larger(value)
    elif isinstance(value, dict):
        others = {"empty": {}, "shorter": dict(list(value.items())[1:])}
    elif value is None:
        others = {"a value": sample(kind)}
    else:
        raise AssertionError(value)
    return {how: other for how, other in others.items() if other != value}


def other_text(value: str) -> str:
    if value.isdecimal():
        return str((int(value) + 1) % 2**64)
    if len(value) in (64, 128) and set(value) <= set("0123456789abcdef"):
        return ("1" if value[0] != "1" else "2") * len(value)
    return value[:-3] + "07Z" if value.endswith("Z") and value[:2] == "20" else f"{value}x"


def larger(value: Any) -> Any:
    """Numbers of nested lists, the first of each a little larger."""
    first = value[0]
    return [larger(first) if isinstance(first, list) else first * 1.01 if isinstance(first, float) else first + 1,
            *value[1:]]  # fmt: skip


def sample(kind: inspect.Type) -> object:
    """Some value of a type."""
    kind = not_null(kind)
    simple = {inspect.IntType: 1, inspect.FloatType: 0.5, inspect.BoolType: True, inspect.AnyType: True}
    value: object = simple.get(type(kind))
    if isinstance(kind, inspect.StructType):
        value = {field.name: sample(field.type) for field in kind.fields if field.required}
    elif isinstance(kind, inspect.StrType):
        lengths = [word for word in ("128", "64") if word in (kind.pattern or "")]
        value = "2" * int(lengths[0]) if lengths else "7" if "0-9" in (kind.pattern or "") else "x"
    elif isinstance(kind, inspect.LiteralType):
        value = kind.values[0]
    elif isinstance(kind, inspect.ListType):
        value = [sample(kind.item_type)]
    elif isinstance(kind, inspect.TupleType):
        value = [sample(item) for item in kind.item_types]
    elif isinstance(kind, inspect.DictType):
        value = {"x": sample(kind.value_type)}
    assert value is not None, kind
    return value


def not_null(kind: inspect.Type) -> inspect.Type:
    if isinstance(kind, inspect.Metadata):
        return not_null(kind.type)
    if isinstance(kind, inspect.UnionType):
        kinds = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
        return not_null(kinds[0]) if len(kinds) == 1 else kind
    return kind


# ---- places ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A field in a record: the way to it, its name for people, its type, its value, and what it is if left out."""

    way: tuple[str | int, ...]
    name: str
    kind: inspect.Type
    value: Any
    default: object = inspect.NODEFAULT

    @property
    def key(self) -> str:
        return str(self.way[-1])


def places(form: type, record: Json, name: str) -> Iterator[Place]:
    """Every field of a record, nested ones too; of a list of records those of the first."""
    kind = inspect.type_info(form)
    assert isinstance(kind, inspect.StructType)
    yield from _places_of(kind, record, (), name)


def _places_of(kind: inspect.Type, value: Any, way: tuple[str | int, ...], name: str) -> Iterator[Place]:
    kind = not_null(kind)
    if isinstance(kind, inspect.StructType) and isinstance(value, dict):
        for field in kind.fields:
            here = (*way, field.encode_name)
            child = value.get(field.encode_name, None if field.default is None else msgspec.UNSET)
            yield Place(here, f"{name}.{field.encode_name}", field.type, child, field.default)
            yield from _places_of(field.type, child, here, f"{name}.{field.encode_name}")
    elif isinstance(kind, inspect.ListType) and isinstance(not_null(kind.item_type), inspect.StructType) and value:
        yield from _places_of(kind.item_type, value[0], (*way, 0), name)
    elif isinstance(kind, inspect.DictType) and isinstance(value, dict):
        for key, child in value.items():
            item = not_null(kind.value_type)
            yield Place((*way, key), f"{name}.{key}", kind.value_type, child)
            if isinstance(item, inspect.StructType | inspect.DictType):
                yield from _places_of(item, child, (*way, key), f"{name}.{key}")


def parent_of(record: Any, way: tuple[str | int, ...]) -> Any:
    for step in way[:-1]:
        record = record[step]
    return record


def put(record: Json, way: tuple[str | int, ...], value: object) -> None:
    parent_of(record, way)[way[-1]] = value


def drop(record: Json, way: tuple[str | int, ...]) -> None:
    parent_of(record, way).pop(way[-1], None)


def add_unknown(record: Json, way: tuple[str | int, ...]) -> None:
    parent_of(record, way)["unknown"] = 1


Edit = Callable[[Json, tuple[str | int, ...]], object]


def edits(place: Place) -> Iterator[tuple[str, Edit]]:
    """What can be done to a field: to alter it, and to break its form."""
    value, kind = place.value, not_null(place.kind)
    if value is msgspec.UNSET:
        yield "added", partial(_put, sample(kind))
        return
    if not isinstance(kind, inspect.StructType) or value is None:
        for how, other in alternatives(value, kind, place.key).items():
            yield how, partial(_put, other)
    if value != place.default:
        yield "removed" if place.default is inspect.NODEFAULT else "left out", drop
    if value is not None:
        may_be_null = place.kind is not kind and "NoneType" in repr(place.kind)
        yield "nothing" if may_be_null else "null", partial(_put, None)
        yield "another type", partial(_put, [] if isinstance(value, str | int | float) else "x")
    yield "unknown field beside it", add_unknown


def _put(value: object, record: Json, way: tuple[str | int, ...]) -> None:
    put(record, way, value)


# ---- mutants ---------------------------------------------------------------------------------------------------------


def field_mutants(model: Model) -> Iterator[Mutant]:
    """Every field of the records and of every kind of event."""
    yield from submission_mutants(model)
    yield from record_mutants(model, "config.json", RunConfig, "config")
    yield from record_mutants(model, "system.json", System, "system")
    for place in places(RunResult, model.runs[0].records["result.json"], "result"):
        for how, edit in edits(place):
            yield Mutant(place.name, how, "run 1", partial(_in_record, "result.json", edit, place.way), "digests")
    yield from line_mutants(model)


def submission_mutants(model: Model) -> Iterator[Mutant]:
    for place in places(Submission, model.submission, "submission"):
        if place.name.startswith("submission.runs.files") and place.way[-1] != "files":
            mends = "no"
        else:
            mends = "digests" if place.name.startswith("submission.summary") else "all"
        for how, edit in edits(place):
            if place.name == "submission.runs.files" or (how in ("removed", "null") and mends == "all"):
                yield Mutant(place.name, how, "alone", partial(_in_submission, edit, place.way), "no")
            else:
                yield Mutant(place.name, how, "alone", partial(_in_submission, edit, place.way), mends)


def record_mutants(model: Model, file: str, form: type, name: str) -> Iterator[Mutant]:
    record = model.runs[0].records[file]
    for place in places(form, record, name):
        for how, edit in edits(place):
            yield Mutant(place.name, how, "run 1", partial(_in_record, file, edit, place.way))
            if how.startswith(FORM):
                continue
            if file == "system.json":
                yield Mutant(place.name, how, "everywhere", partial(_in_systems, edit, place.way))
            else:
                yield Mutant(place.name, how, "all runs", partial(_in_configs, edit, place.way))
        if file == "config.json":
            yield from everywhere_mutants(place, name)


def event_mutants(model: Model, event: str) -> Iterator[Mutant]:
    """Every field of a kind of event: in one event, on one rank, on all, and in all runs."""
    scopes = ("first", "last of rank 1", "all of run 1", "all")
    sampled = next(iter(model.runs[0].events(event)), None)
    if sampled is None:
        return
    for place in places(EVENTS[event], sampled, event):
        mends = "figures" if place.key in ("config_sha256", "ledgers_sha256") else "all"
        for how, edit in edits(place):
            for scope in scopes if not how.startswith(FORM) else scopes[:2]:
                change = partial(_in_events, event, place, how, edit, scope)
                yield Mutant(place.name, how, scope, change, mends)
        yield from everywhere_mutants(place, event)


def everywhere_mutants(place: Place, owner: str) -> Iterator[Mutant]:
    """The same alteration wherever a field of that name stands in a configuration, a ledger or the submission."""
    keys = next((group for group in SAME if place.key in group), {place.key})
    others = {name for name, names in FIELD_NAMES.items() if name != owner and names & keys}
    if not isinstance(place.value, str | int | float) or place.key == "config_sha256" or not others:
        return
    for how in alternatives(place.value, not_null(place.kind), place.key):
        change = partial(_everywhere, keys, how, not_null(place.kind))
        yield Mutant(place.name, how, "everywhere", change)


def line_mutants(model: Model) -> Iterator[Mutant]:
    """What every line has besides its event; number and chain are what the forger mends."""
    time_ns = model.runs[0].ledgers[0, 0][0]["time_ns"]
    for how, other in alternatives(time_ns, inspect.IntType(), "time_ns").items():
        for position in (0, 3, 6, -1):
            change = partial(_in_line, position, "time_ns", other)
            yield Mutant("line.time_ns", f"{how} at {position}", "rank 0", change)
    for how, other in {"unknown": "pause", "of another kind": "window", "null": None}.items():
        yield Mutant("line.event", how, "rank 0", partial(_in_line, 3, "event", other))
    for how, other in {"empty": {}, "null": None, "a list": [], "text": "x"}.items():
        yield Mutant("line.value", how, "rank 0", partial(_in_line, 3, "value", other))
    for name in ("time_ns", "event", "value"):
        yield Mutant(f"line.{name}", "removed", "rank 0", partial(_drop_of_line, 3, name))
    yield Mutant("line", "unknown field", "rank 0", partial(_in_line, 3, "unknown", 1))


def _in_submission(edit: Edit, way: tuple[str | int, ...], model: Model) -> None:
    edit(model.submission, way)


def _in_record(file: str, edit: Edit, way: tuple[str | int, ...], model: Model) -> None:
    edit(model.runs[0].records[file], way)


def _in_configs(edit: Edit, way: tuple[str | int, ...], model: Model) -> None:
    for run in model.runs:
        edit(run.config, way)


def _in_systems(edit: Edit, way: tuple[str | int, ...], model: Model) -> None:
    for system in model.systems:
        edit(system, way)


def _in_line(position: int, name: str, value: object, model: Model) -> None:
    model.runs[0].ledgers[0, 0][position][name] = value


def _drop_of_line(position: int, name: str, model: Model) -> None:
    model.runs[0].ledgers[0, 0][position].pop(name)


def chosen_events(model: Model, event: str, scope: str) -> list[Json]:
    first = model.runs[0]
    if scope == "first":
        return first.events(event)[:1]
    if scope == "last of rank 1":
        return first.events(event, rank=1)[-1:]
    runs: list[Run] = [first] if scope == "all of run 1" else model.runs
    return [value for run in runs for value in run.events(event)]


def _in_events(event: str, place: Place, how: str, edit: Edit, scope: str, model: Model) -> None:
    for value in chosen_events(model, event, scope):
        parent = parent_of(value, place.way)
        others = {}
        if place.way[-1] in parent:
            others = alternatives(parent[place.way[-1]], not_null(place.kind), place.key)
        if how in others:  # from the value that stands there: twice of each, not twice of the first
            put(value, place.way, others[how])
        elif how.startswith(FORM) or how in ("left out", "nothing", "added"):
            edit(value, place.way)


def _everywhere(keys: set[str], how: str, kind: inspect.Type, model: Model) -> None:
    records = [model.submission, *(run.config for run in model.runs), *model.systems]
    values = [line["value"] for lines in model.ledgers for line in lines]
    for record in (*records, *values):
        _alter_keys(record, keys, how, kind)


def _alter_keys(record: Any, keys: set[str], how: str, kind: inspect.Type) -> None:
    if isinstance(record, list):
        for one in record:
            _alter_keys(one, keys, how, kind)
    if not isinstance(record, dict):
        return
    for key, value in record.items():
        if key in keys and isinstance(value, str | int | float):
            record[key] = alternatives(value, kind, key).get(how, value)
        elif key not in ("files", "summary", "equivalence"):
            _alter_keys(value, keys, how, kind)
