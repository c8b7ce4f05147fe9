"""What a run folder says, read into memory: its configuration and the ledgers of its ranks, segment by segment.

A run that was stopped and resumed has several segments. Work done after the checkpoint from which the next segment
went on was done again there; it took time, but it does not count. So ``values`` and ``entries_of`` of a ledger leave
such lines out, and ``entries`` has them all.

Reading never stops at something wrong; what is wrong becomes a finding, and the checks decide what to make of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from hpcai500.errors import RecordError
from hpcai500.events import Checkpoint, EpochPart, Evaluation, EvaluationShard, Event, Resume, RunClose, RunOpen, Window
from hpcai500.finding import Finding
from hpcai500.formats import RunConfig, Status
from hpcai500.ledger import ChainHead, Entry, scan_ledger

LEDGER_NAME = re.compile(r"^rank-(\d{5,})\.jsonl$")
SEGMENT_NAME = re.compile(r"^segment-(\d{3,})$")
MAX_RUN_BYTES = 800 << 20  # in memory; a run on 2,048 ranks over 26 epochs takes 130 MB
BYTES_OF_A_FINDING = 1000
EventType = TypeVar("EventType", bound=Event)


class Position(NamedTuple):
    """How far a run is: so many epochs are done, and so many steps of the next one."""

    epoch: int
    step: int


def ledger_path(run_folder: Path, segment: int, rank: int) -> Path:
    """Where the ledger of a rank lies: ``ledger/rank-00000.jsonl``, ``ledger/segment-001/rank-00000.jsonl``, ..."""
    folder = run_folder / "ledger" / f"segment-{segment:03d}" if segment else run_folder / "ledger"
    return folder / f"rank-{rank:05d}.jsonl"


def list_ledgers(run_folder: Path) -> dict[int, dict[int, Path]]:
    """The ledger files of a run folder, by segment and rank."""
    folder = run_folder / "ledger"
    folders = {0: folder}
    for path in sorted(folder.glob("segment-*")):
        if segment := SEGMENT_NAME.match(path.name):
            folders[int(segment.group(1))] = path
    segments = {
        number: {int(rank.group(1)): path for path in paths if (rank := LEDGER_NAME.match(path.name))}
        for number, paths in ((number, sorted(one.glob("rank-*.jsonl"))) for number, one in folders.items())
    }
    return {number: ranks for number, ranks in sorted(segments.items()) if ranks}


def ledgers_digest(heads: Iterable[tuple[int, int, str]]) -> str:
    """One digest of the ledgers of many ranks: of segment, rank and digest of the last whole line, in that order."""
    lines = (f"{segment} {rank} {sha256}\n" for segment, rank, sha256 in sorted(heads))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class RankLedger:
    """The ledger of one rank in one segment.

    Attributes:
        segment, rank: as the file's path has them.
        place: how findings name the file.
        entries: the events that could be read, in the order of the file.
        findings: what is wrong with the file's form.
        head_sha256: digest of the last whole line.
        until: where a later segment went on, so that what comes after does not count; None for the last segment.
    """

    segment: int
    rank: int
    place: str
    entries: list[Entry]
    findings: list[Finding]
    head_sha256: str
    until: Position | None = None

    @cached_property
    def start(self) -> Position | None:
        """How far the run was when this rank began; None if the rank did not get to say so."""
        resume = next((entry.value for entry in self.all_entries_of(Resume)), None)
        if isinstance(resume, Resume):
            return Position(resume.epoch, resume.step)
        return None if self.segment else Position(0, 0)

    def counts(self, entry: Entry) -> bool:
        """Whether an event is part of the run, and not of work that a later segment did again."""
        value, until = entry.value, self.until
        if until is None:
            return True
        if isinstance(value, Window | EpochPart):
            return Position(value.epoch, value.first_step) < until
        if isinstance(value, EvaluationShard | Evaluation):
            return value.epoch <= until.epoch
        return not isinstance(value, Checkpoint) or Position(value.epoch, value.step) <= until

    @cached_property
    def _all_by_event(self) -> dict[str, list[Entry]]:
        table: dict[str, list[Entry]] = {}
        for entry in self.entries:
            table.setdefault(entry.event, []).append(entry)
        return table

    @cached_property
    def _by_event(self) -> dict[str, list[Entry]]:
        if self.until is None:
            return self._all_by_event
        return {event: list(filter(self.counts, entries)) for event, entries in self._all_by_event.items()}

    @cached_property
    def _values(self) -> dict[str, list[Event]]:
        return {}

    @cached_property
    def opened(self) -> RunOpen | None:
        """The value of run_open."""
        return self.value(RunOpen)

    def entries_of(self, kind: type[Event]) -> list[Entry]:
        """Entries of one kind of event that count, in order."""
        return self._by_event.get(kind.EVENT, [])

    def all_entries_of(self, *kinds: type[Event]) -> list[Entry]:
        """Entries of some kinds of events, those of work that was done again too, in order."""
        if len(kinds) == 1:
            return self._all_by_event.get(kinds[0].EVENT, [])
        found = [entry for kind in kinds for entry in self._all_by_event.get(kind.EVENT, [])]
        return sorted(found, key=attrgetter("line"))

    def values(self, kind: type[EventType]) -> list[EventType]:
        """Values of one kind of event that count, in order; the list is not to be changed."""
        if kind.EVENT not in self._values:
            self._values[kind.EVENT] = [entry.value for entry in self.entries_of(kind)]
        return cast(list[EventType], self._values[kind.EVENT])  # events are decoded to the type of their name

    def value(self, kind: type[EventType]) -> EventType | None:
        """Value of the first event of a kind."""
        return next(iter(self.values(kind)), None)

    def time_ns(self, kind: type[Event]) -> int | None:
        """``time_ns`` of the first event of a kind."""
        return next((entry.time_ns for entry in self.entries_of(kind)), None)


@dataclass(frozen=True)
class Segment:
    """One stretch of a run: from a start of its ranks to their end, by rank."""

    number: int
    ledgers: list[RankLedger]

    @property
    def num_ranks(self) -> int:
        """The number of ranks that took part, as the first that opened says."""
        return next((ledger.opened.num_ranks for ledger in self.ledgers if ledger.opened), 0)

    @property
    def start(self) -> Position | None:
        """How far the run was when it began; None if no rank got to say so."""
        return next((ledger.start for ledger in self.ledgers if ledger.start is not None), None)

    @property
    def until(self) -> Position | None:
        """Where a later segment went on; None for the last."""
        return self.ledgers[0].until


@dataclass(frozen=True)
class RunRecord:
    """A run folder: its configuration and its segments with the ledgers of the ranks that left one.

    ``of_all_ranks`` is the status where the ledgers of some ranks are left out (``of_rank_0``); else null.
    """

    folder: Path
    config: RunConfig
    segments: list[Segment] = field(default_factory=list)
    of_all_ranks: Status | None = None

    def of_rank_0(self) -> RunRecord:
        """The same run with the ledgers of rank 0 alone: little, however many ranks there are."""
        segments = [
            Segment(segment.number, [ledger for ledger in segment.ledgers if ledger.rank == 0])
            for segment in self.segments
        ]
        kept = [segment for segment in segments if segment.ledgers]
        return RunRecord(self.folder, self.config, kept, of_all_ranks=self.status)

    @cached_property
    def ledgers(self) -> list[RankLedger]:
        """The ledgers of all segments, by segment and rank."""
        return [ledger for segment in self.segments for ledger in segment.ledgers]

    @cached_property
    def roots(self) -> list[RankLedger]:
        """The ledgers of rank 0, by segment."""
        return [ledger for ledger in self.ledgers if ledger.rank == 0]

    @cached_property
    def status(self) -> Status:
        """What became of the run: the worst that any rank says last; one without a last word was interrupted."""
        if self.of_all_ranks is not None:
            return self.of_all_ranks
        last = self.segments[-1] if self.segments else Segment(0, [])
        closes = [ledger.value(RunClose) for ledger in last.ledgers]
        statuses = {close.status if close else "interrupted" for close in closes}
        if statuses == {"completed"} and len(last.ledgers) == last.num_ranks:
            return "completed"
        return "failed" if "failed" in statuses else "interrupted"


def read_segments(folder: Path, *, place: str, ranks: Container[int] | None = None) -> list[Segment]:
    """Read the ledgers of a run folder.

    Args:
        folder: the run folder.
        place: how findings name it.
        ranks: only those of these ranks; segments that have none of them are left out.

    Raises:
        RecordError: a file cannot be read, or the ledgers are larger than any run's.
    """
    heads: dict[int, ChainHead] = {}
    segments = []
    budget = MemoryBudget()
    for number, paths in list_ledgers(folder).items():
        ledgers = []
        for rank, path in sorted(paths.items()):
            if ranks is not None and rank not in ranks:
                continue
            name = path.relative_to(folder).as_posix()
            head = heads.setdefault(rank, ChainHead())
            where = f"{place}/{name}" if place else name
            ledgers.append(_read_ledger(path, number, rank, head=head, place=where, budget=budget))
        if ledgers:
            segments.append(Segment(number, ledgers))
    return _cut(segments)


class MemoryBudget:
    """Keeps what is read of a run below a gigabyte, whatever somebody has put into its folder.

    An event takes about twice its line's bytes in memory; the numbers of an evaluation's curves take 32 bytes each, and
    two in the file at the least.
    """

    def __init__(self) -> None:
        self._left_bytes = MAX_RUN_BYTES

    def spend(self, path: Path, num_bytes: int) -> None:
        """Take in a part of a ledger.

        Raises:
            RecordError: what was read up to now takes more than MAX_RUN_BYTES.
        """
        self._left_bytes -= num_bytes
        if self._left_bytes < 0:
            raise RecordError(
                f"the ledgers up to {str(path)!r} take more than {MAX_RUN_BYTES >> 20} MiB of memory, which no run's do"
            )


def _read_ledger(
    path: Path, segment: int, rank: int, *, head: ChainHead, place: str, budget: MemoryBudget
) -> RankLedger:
    entries: list[Entry] = []
    findings: list[Finding] = []
    try:
        budget.spend(path, 2 * path.stat().st_size)
    except OSError as error:  # a link to itself
        raise RecordError(f"cannot read ledger {str(path)!r} ({error.strerror})") from None
    for item in scan_ledger(path, place=place, head=head):
        if isinstance(item, Entry):
            entries.append(item)
            if isinstance(item.value, Evaluation):
                budget.spend(path, 32 * sum(map(len, item.value.curves)))
        else:
            findings.append(item)
            budget.spend(path, BYTES_OF_A_FINDING)
    return RankLedger(segment, rank, place, entries, findings, head.sha256)


def _cut(segments: list[Segment]) -> list[Segment]:
    """Tell every ledger where later segments went on: at the earliest, if a damaged checkpoint threw the run back."""
    until: Position | None = None
    cut: list[Segment] = []
    for segment in reversed(segments):
        cut.append(Segment(segment.number, [dataclasses.replace(ledger, until=until) for ledger in segment.ledgers]))
        if segment.start is not None:
            until = segment.start if until is None else min(until, segment.start)
    return cut[::-1]


def read_run(folder: Path, config: RunConfig) -> RunRecord:
    """Read a run folder that is expected to be sound.

    Raises:
        RecordError: a ledger is missing or damaged (a last line cut by a crash is not damage); names the line.
    """
    segments = read_segments(folder, place="")
    if not segments:
        raise RecordError(f"run folder {str(folder)!r} has no ledger; has the run started?")
    for finding in (finding for segment in segments for ledger in segment.ledgers for finding in ledger.findings):
        if finding.rule not in ("ledger.torn", "ledger.empty"):
            raise RecordError(f"run folder {str(folder)!r} is damaged: {finding}")
    return RunRecord(folder, config, segments)
