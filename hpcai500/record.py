"""What a run folder says, read into memory: its configuration and the ledgers of its ranks, segment by segment.

A file holds the lines of all ranks of a node; here each rank has a ledger of its own, a RankLedger.

A run that was stopped and resumed has several segments. Work done after the checkpoint from which the next segment
went on was done again there; it took time, but it does not count. So ``values`` and ``entries_of`` of a ledger leave
such lines out, and ``entries`` has them all.

Reading never stops at something wrong; what is wrong becomes a finding, and the checks decide what to make of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from hpcai500.entries import Entries, KeptEntries, StoredEntries, StoredLines
from hpcai500.errors import RecordError
from hpcai500.events import Checkpoint, EpochPart, Evaluation, EvaluationShard, Event, Resume, RunClose, RunOpen, Window
from hpcai500.finding import Finding
from hpcai500.formats import RunConfig, Status
from hpcai500.ledger import ChainHead
from hpcai500.ledger_reader import Entry, scan_ledger

LEDGER_NAME = re.compile(r"^node-(\d{5,})\.jsonl$")
SEGMENT_NAME = re.compile(r"^segment-(\d{3,})$")
MAX_RUN_BYTES = 800 << 20  # in memory; a run on 2,048 ranks over 26 epochs takes 130 MB
MAX_KEPT_BYTES = 128 << 20  # of ledgers whose entries are kept in memory; of larger ones they are read again
MAX_NODE_BYTES = 256 << 20  # of one that is read again, which takes twice as much for a while
BYTES_OF_A_FINDING = 1000
BYTES_OF_A_RANK = 2000
BYTES_OF_A_STORED_LINE = 9
EventType = TypeVar("EventType", bound=Event)


class Position(NamedTuple):
    """How far a run is: so many epochs are done, and so many steps of the next one."""

    epoch: int
    step: int


def ledger_path(run_folder: Path, segment: int, node: int) -> Path:
    """Where the ledger of a node lies: ``ledger/node-00000.jsonl``, ``ledger/segment-001/node-00000.jsonl``, ...

    Nodes are numbered by the lowest of their ranks, so that rank 0 is on node 0.
    """
    folder = run_folder / "ledger" / f"segment-{segment:03d}" if segment else run_folder / "ledger"
    return folder / f"node-{node:05d}.jsonl"


def list_ledgers(run_folder: Path) -> dict[int, dict[int, Path]]:
    """The ledger files of a run folder, by segment and node."""
    folder = run_folder / "ledger"
    folders = {0: folder}
    for path in sorted(folder.glob("segment-*")):
        if segment := SEGMENT_NAME.match(path.name):
            folders[int(segment.group(1))] = path
    segments = {
        number: {int(node.group(1)): path for path in paths if (node := LEDGER_NAME.match(path.name))}
        for number, paths in ((number, sorted(one.glob("node-*.jsonl"))) for number, one in folders.items())
    }
    return {number: nodes for number, nodes in sorted(segments.items()) if nodes}


def ledgers_digest(heads: Iterable[tuple[int, int, str]]) -> str:
    """One digest of the ledgers of many ranks: of segment, rank and digest of the last whole line, in that order."""
    lines = (f"{segment} {rank} {sha256}\n" for segment, rank, sha256 in sorted(heads))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class RankLedger:
    """The lines of one rank in one segment.

    Attributes:
        segment: as the file's path has it.
        rank: as the lines have it.
        node: as the file's path has it.
        place: how findings name the file, in which the lines of the node's other ranks stand too.
        entries: the events that could be read, in the order of the file.
        head_sha256: digest of the last whole line.
        until: where a later segment went on, so that what comes after does not count; None for the last segment.
    """

    segment: int
    rank: int
    node: int
    place: str
    entries: Entries
    head_sha256: str
    until: Position | None = None

    @property
    def rank_place(self) -> str:
        """How findings name the rank where no line is meant; what follows is a field of it."""
        return f"{self.place}:rank[{self.rank}]"

    @property
    def first_place(self) -> str:
        """How findings name the rank's first line, which a rank with a ledger has."""
        return f"{self.place}:{self.entries[0].line}"

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
    def _values(self) -> dict[str, list[Event]]:
        return {}

    @cached_property
    def opened(self) -> RunOpen | None:
        """The value of run_open."""
        return self.value(RunOpen)

    def entries_of(self, kind: type[Event]) -> list[Entry]:
        """Entries of one kind of event that count, in order."""
        entries = self.entries.of(kind.EVENT)
        return entries if self.until is None else list(filter(self.counts, entries))

    def all_entries_of(self, *kinds: type[Event]) -> list[Entry]:
        """Entries of some kinds of events, those of work that was done again too, in order."""
        if len(kinds) == 1:
            return self.entries.of(kinds[0].EVENT)
        found = [entry for kind in kinds for entry in self.entries.of(kind.EVENT)]
        return sorted(found, key=attrgetter("line"))

    def values(self, kind: type[EventType]) -> list[EventType]:
        """Values of one kind of event that count, in order; the list is not to be changed."""
        values = self._values.get(kind.EVENT)
        if values is None:
            values = [entry.value for entry in self.entries_of(kind)]
            if self.entries.is_kept:
                self._values[kind.EVENT] = values
        return cast(list[EventType], values)  # events are decoded to the type of their name

    def value(self, kind: type[EventType]) -> EventType | None:
        """Value of the first event of a kind."""
        return next(iter(self.values(kind)), None)

    def time_ns(self, kind: type[Event]) -> int | None:
        """``time_ns`` of the first event of a kind."""
        return next((entry.time_ns for entry in self.entries_of(kind)), None)


@dataclass(frozen=True)
class Segment:
    """One stretch of a run: from a start of its ranks to their end.

    Attributes:
        number: as the files' paths have it.
        ledgers: of its ranks, node by node, on each by rank; a rank without a whole line has none.
        findings: what is wrong with the form of the files.
        until: where a later segment went on; None for the last.
    """

    number: int
    ledgers: list[RankLedger]
    findings: list[Finding] = field(default_factory=list)
    until: Position | None = None

    @property
    def num_ranks(self) -> int:
        """The number of ranks that took part, as the first that opened says."""
        return next((ledger.opened.num_ranks for ledger in self.ledgers if ledger.opened), 0)

    @property
    def start(self) -> Position | None:
        """How far the run was when it began; None if no rank got to say so."""
        beginning = None if self.number else Position(0, 0)  # also where all ranks died before their first line
        return next((ledger.start for ledger in self.ledgers if ledger.start is not None), beginning)


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
            dataclasses.replace(segment, ledgers=[ledger for ledger in segment.ledgers if ledger.rank == 0])
            for segment in self.segments
        ]
        return RunRecord(self.folder, self.config, segments, of_all_ranks=self.status)

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
    ledgers = list_ledgers(folder)
    reader = _Reader(folder, place, ranks, is_kept=_size_of(ledgers) <= MAX_KEPT_BYTES)
    segments = []
    for number, paths in ledgers.items():
        segment = Segment(number, [])
        for node, path in sorted(paths.items()):
            reader.read_node(path, segment, node)
            if ranks == {0} and segment.ledgers:
                break  # rank 0 is on node 0
        if segment.ledgers or (ranks is None and segment.findings):
            segments.append(segment)
    return _cut(segments)


def _size_of(ledgers: Mapping[int, Mapping[int, Path]]) -> int:
    """Bytes of all ledgers.

    Raises:
        RecordError: the size of one cannot be found out.
    """
    num_bytes = 0
    for path in (path for nodes in ledgers.values() for path in nodes.values()):
        try:
            num_bytes += path.stat().st_size
        except OSError as error:  # a link to itself
            raise RecordError(f"cannot read ledger {str(path)!r} ({error.strerror})") from None
    return num_bytes


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


class _Reader:
    """Reads the ledgers of a run, node by node; ``is_kept`` says whether their entries stay in memory."""

    def __init__(self, folder: Path, place: str, ranks: Container[int] | None, *, is_kept: bool) -> None:
        self._folder, self._place, self._ranks, self._is_kept = folder, place, ranks, is_kept
        self._heads: dict[int, ChainHead] = {}
        self._budget = MemoryBudget()

    def read_node(self, path: Path, segment: Segment, node: int) -> None:
        """Add the ledgers of the ranks of a node to the segment, and what is wrong with the form of their file.

        Raises:
            RecordError: the file cannot be read, or is larger than any node's.
        """
        name = path.relative_to(self._folder).as_posix()
        place = f"{self._place}/{name}" if self._place else name
        size_bytes = path.stat().st_size
        if not self._is_kept and size_bytes > MAX_NODE_BYTES:
            raise RecordError(f"ledger {str(path)!r} has {size_bytes} bytes, and no node's more than {MAX_NODE_BYTES}")
        self._budget.spend(path, 2 * size_bytes if self._is_kept else 0)
        lines = None if self._is_kept else StoredLines(path)
        entries: dict[int, Entries] = {}
        for item in scan_ledger(path, place=place, heads=self._heads):
            if not isinstance(item, Entry):
                segment.findings.append(item)
                self._budget.spend(path, BYTES_OF_A_FINDING)
            elif self._ranks is None or item.rank in self._ranks:
                of_rank = entries.get(item.rank)
                if of_rank is None:
                    of_rank = entries[item.rank] = StoredEntries(lines) if lines else KeptEntries()
                    self._budget.spend(path, BYTES_OF_A_RANK)
                of_rank.append(item)
                if not self._is_kept:
                    self._budget.spend(path, BYTES_OF_A_STORED_LINE)
                elif isinstance(item.value, Evaluation):
                    self._budget.spend(path, 32 * sum(map(len, item.value.curves)))
        for rank, of_rank in sorted(entries.items()):
            head = self._heads[rank].sha256
            segment.ledgers.append(RankLedger(segment.number, rank, node, place, of_rank, head))


def _cut(segments: list[Segment]) -> list[Segment]:
    """Tell every ledger where later segments went on: at the earliest, if a damaged checkpoint threw the run back."""
    until: Position | None = None
    cut: list[Segment] = []
    for segment in reversed(segments):
        ledgers = [dataclasses.replace(ledger, until=until) for ledger in segment.ledgers]
        cut.append(dataclasses.replace(segment, ledgers=ledgers, until=until))
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
    for finding in (finding for segment in segments for finding in segment.findings):
        if finding.rule not in ("ledger.torn", "ledger.empty"):
            raise RecordError(f"run folder {str(folder)!r} is damaged: {finding}")
    return RunRecord(folder, config, segments)
