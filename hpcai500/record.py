"""What a run folder says, read into memory: its configuration and the ledgers of its ranks.

Reading never stops at something wrong; what is wrong becomes a finding, and the checks decide what to make of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from hpcai500.errors import RecordError
from hpcai500.events import Event, RunClose, RunOpen
from hpcai500.finding import Finding
from hpcai500.formats import RunConfig, Status
from hpcai500.ledger import Entry, scan_ledger

LEDGER_NAME = re.compile(r"^rank-(\d{5,})\.jsonl$")
EventType = TypeVar("EventType", bound=Event)


@dataclass(frozen=True)
class RankLedger:
    """The ledger of one rank.

    Attributes:
        rank: the number in the file's name.
        place: how findings name the file.
        entries: the events that could be read, in the order of the file.
        findings: what is wrong with the file's form.
    """

    rank: int
    place: str
    entries: list[Entry]
    findings: list[Finding]

    @cached_property
    def _by_event(self) -> dict[str, list[Entry]]:
        table: dict[str, list[Entry]] = {}
        for entry in self.entries:
            table.setdefault(entry.event, []).append(entry)
        return table

    @property
    def opened(self) -> RunOpen | None:
        """The value of run_open."""
        return self.value(RunOpen)

    def entries_of(self, kind: type[Event]) -> list[Entry]:
        """Entries of one kind of event, in order."""
        return self._by_event.get(kind.EVENT, [])

    def values(self, kind: type[EventType]) -> list[EventType]:
        """Values of one kind of event, in order."""
        return [entry.value for entry in self.entries_of(kind) if isinstance(entry.value, kind)]

    def value(self, kind: type[EventType]) -> EventType | None:
        """Value of the first event of a kind."""
        return next(iter(self.values(kind)), None)

    def time_ns(self, kind: type[Event]) -> int | None:
        """``time_ns`` of the first event of a kind."""
        return next((entry.time_ns for entry in self.entries_of(kind)), None)


@dataclass(frozen=True)
class RunRecord:
    """A run folder: its configuration and the ledgers of the ranks that left one, by rank."""

    folder: Path
    config: RunConfig
    ledgers: list[RankLedger] = field(default_factory=list)

    @cached_property
    def status(self) -> Status:
        """What became of the run: the worst that any rank says; a rank without a last word was interrupted."""
        closes = [ledger.value(RunClose) for ledger in self.ledgers]
        statuses = {close.status if close else "interrupted" for close in closes}
        if statuses == {"completed"} and len(self.ledgers) == self.config.num_ranks:
            return "completed"
        return "failed" if "failed" in statuses else "interrupted"


def read_ledgers(folder: Path, *, place: str) -> list[RankLedger]:
    """Read all ledgers of a run folder, by rank.

    Args:
        folder: the run folder.
        place: how findings name it.

    Raises:
        RecordError: a file cannot be read.
    """
    ledgers = []
    for path in sorted((folder / "ledger").glob("rank-*.jsonl")):
        match = LEDGER_NAME.match(path.name)
        if match is None:
            continue
        entries: list[Entry] = []
        findings: list[Finding] = []
        name = f"{place}/ledger/{path.name}" if place else f"ledger/{path.name}"
        for item in scan_ledger(path, place=name):
            if isinstance(item, Entry):
                entries.append(item)
            else:
                findings.append(item)
        ledgers.append(RankLedger(int(match.group(1)), name, entries, findings))
    return sorted(ledgers, key=lambda ledger: ledger.rank)


def read_run(folder: Path, config: RunConfig) -> RunRecord:
    """Read a run folder that is expected to be sound.

    Raises:
        RecordError: a ledger is missing or damaged (a last line cut by a crash is not damage); names the line.
    """
    ledgers = read_ledgers(folder, place="")
    if not ledgers:
        raise RecordError(f"run folder {str(folder)!r} has no ledger; has the run started?")
    for finding in (finding for ledger in ledgers for finding in ledger.findings):
        if finding.rule not in ("ledger.torn", "ledger.empty"):
            raise RecordError(f"run folder {str(folder)!r} is damaged: {finding}")
    return RunRecord(folder, config, ledgers)
