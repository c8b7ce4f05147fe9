"""What the checks look at: a submission with all of its files read, and the rules it is held against."""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hpcai500.checks.hosts import HostPart, read_hosts
from hpcai500.edition import Edition, Size, Workload
from hpcai500.errors import RecordError
from hpcai500.formats import RunConfig, RunResult, Submission, SubmittedRun, Summary, System
from hpcai500.record import RankLedger, RunRecord
from hpcai500.submission import NS_PER_S, compute_result, summarise


@dataclass(frozen=True)
class RunCase:
    """One run of a submission.

    Attributes:
        submitted: what submission.json says of it.
        place: how findings name its folder.
        record: its configuration and ledgers.
        config_sha256: of the bytes of its config.json.
        result: its result.json; None where there is none, which only a run that did not complete may lack.
        system: its system.json; None likewise.
        later_systems: those of its later segments, system-001.json and so on.
    """

    submitted: SubmittedRun
    place: str
    record: RunRecord
    config_sha256: str
    result: RunResult | None
    system: System | None
    later_systems: list[System]

    @property
    def config(self) -> RunConfig:
        """Its config.json."""
        return self.record.config

    @property
    def global_batch(self) -> int:
        """Samples of a step on all ranks together; a run keeps it when it goes on with another number of ranks."""
        return int(self.config.settings["batch_size_per_rank"]) * self.config.num_ranks

    @property
    def is_complete(self) -> bool:
        """Whether its ledgers say that it completed."""
        return self.record.status == "completed"


@dataclass(frozen=True)
class Case:
    """A submission, its runs and the rules of its workload and size.

    Most checks are given a case of one run at a time. Those that compare runs (hpcai500.checks.WHOLE_CHECKS) are given
    all runs, but of each only the ledgers of rank 0, and the ``known_results`` of all.
    """

    path: Path
    edition: Edition
    submission: Submission
    workload: Workload
    size: Size
    runs: list[RunCase]
    known_results: list[RunResult] | None = None

    @property
    def place(self) -> str:
        """How findings name the submission's file."""
        return self.path.name

    @property
    def completed(self) -> list[RunCase]:
        """The runs whose ledgers say that they completed."""
        return [run for run in self.runs if run.is_complete]

    @cached_property
    def results(self) -> list[RunResult]:
        """The figures of every run, computed from its ledgers; once, though several checks compare with them."""
        if self.known_results is not None:
            return self.known_results
        return [compute_result(run.record, self.size) for run in self.runs]

    @cached_property
    def hosts(self) -> list[HostPart]:
        """What the hosts of the completed runs did and can do; once, though several checks look at it."""
        return read_hosts(self)

    @cached_property
    def created_ns(self) -> int | None:
        """Unix time at which the submission says it was made; None if there is no such time, as on 31 February."""
        try:
            return calendar.timegm(time.strptime(self.submission.created, "%Y-%m-%dT%H:%M:%SZ")) * NS_PER_S
        except ValueError:
            return None

    @cached_property
    def summary(self) -> Summary | None:
        """The figures of the submission, computed from those of its runs; None where they cannot be."""
        try:
            return summarise(self.results, self.size)
        except RecordError:
            return None

    @property
    def completed_ledgers(self) -> Iterator[tuple[RunCase, RankLedger]]:
        """The ledgers of all ranks of the completed runs, each with its run."""
        for run in self.completed:
            for ledger in run.record.ledgers:
                yield run, ledger
