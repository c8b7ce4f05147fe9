"""Mutants of whole events, ledgers and runs: removed, doubled, moved, swapped between ranks, runs and seeds, rescaled.

The forger keeps what gives a lie away at once: a line that is moved takes the time of its new place, and a ledger that
is lent to another rank or run says that it is that one's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from mutation_fields import Mutant
from mutation_model import Json, Lines, Model, Run

NS_PER_S = 10**9
# Where an event stands and whose it is; the forger leaves that when he exchanges what events say.
POSITION = ("epoch", "first_step", "step", "num_steps", "steps", "samples", "path", "rank", "local_rank", "run_id",
            "config_sha256", "segment", "pid", "wall_ns", "monotonic_ns", "num_ranks", "ledgers_sha256",
            "epoch_digest")  # fmt: skip
WALLS = ("wall_ns",)
FACTORS = {"x0.5": (1, 2), "x0.9": (9, 10), "x2": (2, 1), "x0.001": (1, 1000)}


def ledger_mutants(model: Model) -> Iterator[Mutant]:
    """Everything that can be done to whole events, ledgers and runs."""
    kinds = list(dict.fromkeys(line["event"] for lines in model.runs[0].ledgers.values() for line in lines))
    for kind in kinds:
        yield from _event_mutants(kind)
    last = max(segment for segment, _ in model.runs[0].ledgers)
    for rank in (0, 1):
        lines = model.runs[0].ledgers[last, rank]
        for place in range(len(lines) - 1):
            what = f"{lines[place]['event']} and {lines[place + 1]['event']}"
            field = f"order of {what}"
            yield _mutant(field, f"swapped at {place}", f"rank {rank}", partial(_swap_neighbours, place, (rank,)))
            if rank == 0:
                yield _mutant(field, f"swapped at {place}", "all", partial(_swap_neighbours, place, None))
        for count in range(1, len(lines) - 1):
            yield _mutant("ledger", f"cut by {count}", f"rank {rank}", partial(_cut, count, (rank,)))
            if rank == 0:
                yield _mutant("ledger", f"cut by {count}", "all", partial(_cut, count, None))
    yield from _swaps(kinds)
    yield from _time_mutants()
    yield from _run_mutants(model)


def _mutant(field: str, how: str, where: str, change: Callable[[Model], object], mends: str = "all") -> Mutant:
    return Mutant(field, how, where, change, mends)


# ---- events ----------------------------------------------------------------------------------------------------------


def _event_mutants(kind: str) -> Iterator[Mutant]:
    for which in (0, -1):
        word = "first" if which == 0 else "last"
        for where, ranks in {"rank 0": (0,), "rank 1": (1,), "all": None}.items():
            yield _mutant(kind, f"{word} deleted", where, partial(_edit_lines, ranks, partial(_delete, kind, which)))
            yield _mutant(kind, f"{word} doubled", where, partial(_edit_lines, ranks, partial(_double, kind, which)))
            yield _mutant(kind, f"{word} moved to the front", where,
                          partial(_edit_lines, ranks, partial(_move, kind, which, 1)))  # fmt: skip
            yield _mutant(kind, f"{word} moved to the end", where,
                          partial(_edit_lines, ranks, partial(_move, kind, which, -1)))  # fmt: skip
    for where, ranks in {"rank 0": (0,), "all": None}.items():
        yield _mutant(kind, "all deleted", where, partial(_edit_lines, ranks, partial(_delete_all, kind)))
        yield _mutant(kind, "order reversed", where, partial(_edit_lines, ranks, partial(_reverse, kind)))


def _edit_lines(ranks: tuple[int, ...] | None, edit: Callable[[Lines], object], model: Model) -> None:
    """Edit the ledgers of some ranks of the first run, or of all ranks of all runs."""
    runs = model.runs if ranks is None else model.runs[:1]
    for run in runs:
        for (_, rank), lines in run.ledgers.items():
            if ranks is None or rank in ranks:
                edit(lines)


def _indices(lines: Lines, kind: str) -> list[int]:
    return [index for index, line in enumerate(lines) if line["event"] == kind]


def _delete(kind: str, which: int, lines: Lines) -> None:
    if found := _indices(lines, kind):
        del lines[found[which]]


def _delete_all(kind: str, lines: Lines) -> None:
    lines[:] = [line for line in lines if line["event"] != kind]


def _double(kind: str, which: int, lines: Lines) -> None:
    if found := _indices(lines, kind):
        lines.insert(found[which], copy.deepcopy(lines[found[which]]))


def _move(kind: str, which: int, target: int, lines: Lines) -> None:
    """Move an event behind the first or before the last; every line keeps the time of its place."""
    found = _indices(lines, kind)
    if not found:
        return
    times = [line["time_ns"] for line in lines]
    line = lines.pop(found[which])
    lines.insert(min(target, len(lines)) if target > 0 else max(0, len(lines) - 1), line)
    for one, time_ns in zip(lines, times, strict=True):
        one["time_ns"] = time_ns


def _reverse(kind: str, lines: Lines) -> None:
    """What the events of a kind say, in reverse; where they stand stays."""
    found = _indices(lines, kind)
    contents = [_content(lines[index]["value"]) for index in found]
    for index, content in zip(found, contents[::-1], strict=True):
        lines[index]["value"] |= content


def _content(value: Json) -> Json:
    return {key: one for key, one in value.items() if key not in POSITION}


def _swap_neighbours(place: int, ranks: tuple[int, ...] | None, model: Model) -> None:
    def swap(lines: Lines) -> None:
        if place + 1 < len(lines):
            for key in ("event", "value"):
                lines[place][key], lines[place + 1][key] = lines[place + 1][key], lines[place][key]

    _last_segment(ranks, swap, model)


def _cut(count: int, ranks: tuple[int, ...] | None, model: Model) -> None:
    """Leave the last lines before the close away."""

    def cut(lines: Lines) -> None:
        del lines[max(1, len(lines) - 1 - count) : -1]

    _last_segment(ranks, cut, model)


def _last_segment(ranks: tuple[int, ...] | None, edit: Callable[[Lines], object], model: Model) -> None:
    for run in model.runs if ranks is None else model.runs[:1]:
        last = max(segment for segment, _ in run.ledgers)
        for (segment, rank), lines in run.ledgers.items():
            if segment == last and (ranks is None or rank in ranks):
                edit(lines)


# ---- swaps -----------------------------------------------------------------------------------------------------------


def _swaps(kinds: list[str]) -> Iterator[Mutant]:
    for kind in kinds:
        yield _mutant(kind, "swapped between ranks", "run 1", partial(_between_ranks, kind, True))
        yield _mutant(kind, "of rank 0 copied to rank 1", "run 1", partial(_between_ranks, kind, False))
        yield _mutant(kind, "swapped between runs", "all ranks", partial(_between_runs, kind, True))
        yield _mutant(kind, "of run 1 copied to run 2", "all ranks", partial(_between_runs, kind, False))
        yield _mutant(kind, "of run 1 copied to run 2", "rank 0", partial(_between_runs, kind, False, ranks=(0,)))
    yield _mutant("ledgers", "swapped between ranks", "run 1", partial(_lend_ranks, True))
    yield _mutant("ledgers", "of rank 1 copied to rank 0", "run 1", partial(_lend_ranks, False))
    yield _mutant("ledgers", "swapped between runs", "all ranks", partial(_lend_runs, True))
    yield _mutant("ledgers", "of run 1 copied to run 2", "all ranks", partial(_lend_runs, False))
    yield _mutant("ledgers", "of run 1 copied to run 2", "rank 1", partial(_lend_runs, False, ranks=(1,)))


def _exchange(one: list[Json], other: list[Json], *, both: bool) -> None:
    for mine, its in zip(one, other, strict=False):
        content, before = _content(mine), _content(its)
        its.update(content)
        if both:
            mine.update(before)


def _between_ranks(kind: str, both: bool, model: Model) -> None:
    run = model.runs[0]
    _exchange(run.events(kind, rank=0), run.events(kind, rank=1), both=both)


def _between_runs(kind: str, both: bool, model: Model, ranks: tuple[int, ...] = (0, 1)) -> None:
    first, second = model.runs[:2]
    for rank in ranks:
        _exchange(first.events(kind, rank=rank), second.events(kind, rank=rank), both=both)


def _lend_ranks(both: bool, model: Model) -> None:
    ledgers = model.runs[0].ledgers
    for segment in {segment for segment, _ in ledgers}:
        if (segment, 0) in ledgers and (segment, 1) in ledgers:
            of_0, of_1 = ledgers[segment, 0], ledgers[segment, 1]
            ledgers[segment, 0] = _lent(of_1, of_0)
            if both:
                ledgers[segment, 1] = _lent(of_0, of_1)


def _lend_runs(both: bool, model: Model, ranks: tuple[int, ...] = (0, 1)) -> None:
    first, second = model.runs[0].ledgers, model.runs[1].ledgers
    for rank in ranks:
        of_first, of_second = first[0, rank], second[0, rank]
        second[0, rank] = _lent(of_first, of_second)
        if both:
            first[0, rank] = _lent(of_second, of_first)


def _lent(lines: Lines, to: Lines) -> Lines:
    """A copy of a ledger that opens as another and is of the other's time."""
    lent = copy.deepcopy(lines)
    lent[0]["value"] = copy.deepcopy(to[0]["value"])
    _shift(lent, to[0]["time_ns"] - lines[0]["time_ns"], first=1)
    lent[0]["time_ns"] = to[0]["time_ns"]
    return lent


def _shift(lines: Lines, offset_ns: int, *, first: int = 0) -> None:
    for line in lines[first:]:
        line["time_ns"] += offset_ns
        for key in WALLS:
            if key in line["value"]:
                line["value"][key] += offset_ns


# ---- times -----------------------------------------------------------------------------------------------------------


def _time_mutants() -> Iterator[Mutant]:
    modes = {
        "lines": (True, False, False),
        "lines and walls": (True, True, False),
        "durations": (False, False, True),
        "walls": (False, True, False),
        "all": (True, True, True),
    }
    for mode, (lines, walls, durations) in modes.items():
        for word, factor in FACTORS.items():
            for where, ranks in {"rank 0": (0,), "rank 1": (1,), "run 1": (0, 1), "all runs": None}.items():
                change = partial(rescale, factor, lines=lines, walls=walls, durations=durations)
                yield _mutant(f"times: {mode}", word, where, partial(_edit_lines, ranks, change))
    for offset_s in (-86400, -60, -1, 1, 60, 86400):
        for where, ranks in {"rank 0": (0,), "rank 1": (1,), "run 1": (0, 1)}.items():
            shift = partial(_shift_s, offset_s)
            yield _mutant("clock", f"shifted by {offset_s} s", where, partial(_edit_lines, ranks, shift))
            later = partial(_shift_s, offset_s, first=8)
            yield _mutant("clock", f"stepped by {offset_s} s", where, partial(_edit_lines, ranks, later))


def _shift_s(offset_s: int, lines: Lines, *, first: int = 0) -> None:
    _shift(lines, offset_s * NS_PER_S, first=first)


def rescale(factor: tuple[int, int], ledger: Lines, *, lines: bool, walls: bool, durations: bool) -> None:
    """Let a rank's time go faster or slower, counted from its first line."""
    up, down = factor
    first_ns = ledger[0]["time_ns"]
    for line in ledger:
        if lines:
            line["time_ns"] = first_ns + (line["time_ns"] - first_ns) * up // down
        for key, value in line["value"].items():
            if key in WALLS and walls:
                line["value"][key] = first_ns + (value - first_ns) * up // down
            elif key.endswith("_ns") and key not in (*WALLS, "monotonic_ns") and durations:
                line["value"][key] = value * up // down


# ---- runs ------------------------------------------------------------------------------------------------------------


def _run_mutants(model: Model) -> Iterator[Mutant]:
    yield _mutant("runs", "order reversed", "submission", lambda model: model.submission["runs"].reverse())
    yield _mutant("runs", "first left out", "submission", partial(_leave_out, 0))
    yield _mutant("runs", "last left out", "submission", partial(_leave_out, 1))
    yield _mutant("runs", "first listed twice", "submission", _list_twice)
    yield _mutant("runs", "seeds swapped", "everywhere", _swap_seeds)
    yield _mutant("runs", "configurations swapped", "everywhere", _swap_configs)
    yield _mutant("runs", "first copied over the second", "with its own seed", _copy_run)
    yield _mutant("ranks", "one added", "run 1", partial(_add_rank, False))
    yield _mutant("ranks", "one added", "all runs", partial(_add_rank, True))
    yield _mutant("ranks", "one dropped", "run 1", partial(_drop_rank, False))
    yield _mutant("ranks", "one dropped", "all runs", partial(_drop_rank, True))
    for status in ("failed", "interrupted"):
        yield _mutant("runs", f"closed as {status}", "run 1", partial(_close_as, status))
    last = max(segment for segment, _ in model.runs[0].ledgers)
    if last:
        yield _mutant("segments", "first deleted", "run 1", partial(_drop_segment, 0, False))
        yield _mutant("segments", "last deleted", "run 1", partial(_drop_segment, last, False))
        yield _mutant("segments", "first deleted and renumbered", "run 1", partial(_drop_segment, 0, True))
        yield _mutant("segments", "last doubled", "run 1", partial(_double_segment, last))
        for offset_s in (-1500, -900, -100, 900):
            yield _mutant("segments", f"last shifted by {offset_s} s", "run 1", partial(_shift_segment, last, offset_s))
        yield _mutant("segments", "joined", "run 1", partial(_join, last))


def _leave_out(number: int, model: Model) -> None:
    del model.submission["runs"][number]
    run = model.runs.pop(number)
    model.others = {path: one for path, one in model.others.items() if not path.startswith(f"{run.folder}/")}


def _list_twice(model: Model) -> None:
    model.submission["runs"].append(copy.deepcopy(model.submission["runs"][0]))
    model.runs.append(model.runs[0])


def _swap_seeds(model: Model) -> None:
    first, second = model.runs[:2]
    first.config["seed"], second.config["seed"] = second.config["seed"], first.config["seed"]
    for run, submitted in zip(model.runs, model.submission["runs"], strict=True):
        submitted["seed"] = run.config["seed"]


def _swap_configs(model: Model) -> None:
    """Let each run pass as the other, as its configuration, with all that a ledger says of it."""
    first, second = model.runs[:2]
    first.records["config.json"], second.records["config.json"] = second.config, first.config
    for run, submitted in zip(model.runs, model.submission["runs"], strict=True):
        submitted |= {key: run.config[key] for key in ("seed", "run_id")}
        for opened in run.events("run_open"):
            opened["run_id"] = run.config["run_id"]


def _copy_run(model: Model) -> None:
    first, second = model.runs[:2]
    second.ledgers = {where: _lent(lines, second.ledgers.get(where, lines)) for where, lines in first.ledgers.items()}
    second.records |= {name: copy.deepcopy(one) for name, one in first.records.items() if name.startswith("system")}
    for opened in second.events("run_open"):
        opened["run_id"] = second.config["run_id"]


def _set_ranks(run: Run, number: int) -> None:
    run.config["num_ranks"] = number
    for opened in run.events("run_open"):
        opened["num_ranks"] = number


def _add_rank(everywhere: bool, model: Model) -> None:
    for run in model.runs if everywhere else model.runs[:1]:
        lines = copy.deepcopy(run.ledgers[0, 1])
        lines[0]["value"] |= {"rank": 2, "local_rank": 2, "pid": 99}
        run.ledgers[0, 2] = lines
        run.ledgers = dict(sorted(run.ledgers.items()))
        _set_ranks(run, 3)


def _drop_rank(everywhere: bool, model: Model) -> None:
    for run in model.runs if everywhere else model.runs[:1]:
        run.ledgers = {(segment, rank): lines for (segment, rank), lines in run.ledgers.items() if rank == 0}
        run.config["settings"]["batch_size_per_rank"] *= 2
        _set_ranks(run, 1)


def _close_as(status: str, model: Model) -> None:
    for close in model.runs[0].events("run_close"):
        close["status"] = status
    model.submission["runs"][0]["status"] = status


# ---- segments of a resumed run ---------------------------------------------------------------------------------------


def _drop_segment(number: int, renumber: bool, model: Model) -> None:
    run = model.runs[0]
    kept = {where: lines for where, lines in run.ledgers.items() if where[0] != number}
    if renumber:
        kept = {(segment - (segment > number), rank): lines for (segment, rank), lines in kept.items()}
        for (segment, _), lines in kept.items():
            lines[0]["value"]["segment"] = segment
            lines[:] = [line for line in lines if segment or line["event"] != "resume"]
    run.ledgers = kept


def _double_segment(number: int, model: Model) -> None:
    run = model.runs[0]
    for (_, rank), lines in [item for item in run.ledgers.items() if item[0][0] == number]:
        again = copy.deepcopy(lines)
        again[0]["value"]["segment"] = number + 1
        _shift(again, 10**4 * NS_PER_S)
        run.ledgers[number + 1, rank] = again
    run.ledgers = dict(sorted(run.ledgers.items()))


def _shift_segment(number: int, offset_s: int, model: Model) -> None:
    for (segment, _), lines in model.runs[0].ledgers.items():
        if segment == number:
            _shift(lines, offset_s * NS_PER_S)


def _join(number: int, model: Model) -> None:
    """Pass a resumed run off as one that was never stopped, the lost work and the restart left out."""
    run = model.runs[0]
    for rank in (0, 1):
        before, after = run.ledgers[0, rank], run.ledgers.pop((number, rank))
        saved = max(_indices(before, "checkpoint"))
        start = _indices(after, "clock_start")[0]
        rest: list[dict[str, Any]] = after[start + 1 :]
        _shift(rest, before[saved]["time_ns"] - after[start]["time_ns"])
        run.ledgers[0, rank] = [*before[: saved + 1], *rest]
    run.records = {name: one for name, one in run.records.items() if not name.startswith("system-")}
