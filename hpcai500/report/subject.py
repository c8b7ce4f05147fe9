"""What a report is about: a submission with its verdict, or runs that are in none, read from a path that a user gave.

Paths are of strangers' files: whatever is wrong with them becomes a finding, a sentence beside the run, or one error.
"""

from __future__ import annotations

import base64
import gc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from hpcai500.checks.form import is_inside
from hpcai500.deviations import Deviation, list_deviations
from hpcai500.edition import Edition, Size, Workload
from hpcai500.errors import RecordError, UnknownNameError, UsageError
from hpcai500.formats import (
    SUBMISSION_NAME,
    RunConfig,
    RunResult,
    Submission,
    Summary,
    System,
    decode,
    read_bytes,
    read_config,
)
from hpcai500.micro_record import MICRO_NAME, MicroRecord, read_micro
from hpcai500.plain_files import open_plain
from hpcai500.record import RunRecord, list_ledgers, read_segments
from hpcai500.register.trusted import TrustedKeys
from hpcai500.report.machine import Machine, describe_machine
from hpcai500.report.run_figures import RunFigures, figures_of
from hpcai500.submission import summarise
from hpcai500.verdict import Verdict, printable
from hpcai500.verify import verify_submission

SHEET = "evaluation/sheet.png"
MAX_SHEET_BYTES = 1 << 20
MAX_SHEET_PIXELS = 40_000_000  # of a few kilobytes some pictures make gigabytes
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Subject:
    """One of the things that a report is about.

    Attributes:
        name: how the report names it.
        path: of submission.json, or of the folder of a run or of an unfinished submission.
        verdict: None where there is nothing that is judged; ``not_judged`` says why.
        workload, size: of the edition's rules; None if the submission names none of them.
        runs: those that can be read, in the submission's order.
        unreadable: a sentence for each run that cannot.
        micro: what `hpcai500 micro` measured of its machine, where that lies beside it.
        micro_note: what is wrong with a file of that which cannot be read.
    """

    name: str
    path: Path
    submission: Submission | None
    verdict: Verdict | None
    not_judged: str = ""
    workload: Workload | None = None
    size: Size | None = None
    edition: Edition | None = None
    runs: tuple[RunFigures, ...] = ()
    unreadable: tuple[str, ...] = field(default=())
    micro: MicroRecord | None = None
    micro_note: str = ""

    @property
    def config(self) -> RunConfig | None:
        """That of the first run that completed, or else of the first."""
        return next((run.config for run in (*self.completed, *self.runs)), None)

    @property
    def system(self) -> System | None:
        """What the submission says of its machine, or else what its runs say."""
        if self.submission is not None:
            return self.submission.system
        return next((run.system for run in self.runs if run.system is not None), None)

    @property
    def completed(self) -> tuple[RunFigures, ...]:
        """The runs that count."""
        return tuple(run for run in self.runs if run.is_complete)

    @cached_property
    def results(self) -> list[RunResult]:
        """The figures of its runs: the verifier's where it gave some."""
        return self.verdict.results if self.verdict and self.verdict.results else [run.result for run in self.runs]

    @cached_property
    def summary(self) -> Summary | None:
        """The verifier's figures, or without a verdict those of the runs so far; None where no run completed."""
        if self.verdict is not None:
            return self.verdict.summary
        if self.size is None:
            return None
        try:
            return summarise(self.results, self.size)
        except RecordError:
            return None

    @cached_property
    def machine(self) -> Machine | None:
        """What its runs could have reached on their devices."""
        if self.config is None or self.edition is None:
            return None
        return describe_machine(self.config, self.system, self.edition)

    @cached_property
    def deviations(self) -> list[Deviation]:
        """What differs from the reference."""
        if self.verdict is not None:
            return self.verdict.deviations
        if self.workload is None or self.config is None:
            return []
        return list_deviations(self.workload, self.config.size, self.config.settings)


def read_subject(
    path: Path, edition: Edition, *, trusted: TrustedKeys | None = None, verdict: Verdict | None = None
) -> Subject:
    """Read and judge what lies at a path.

    Args:
        path: of submission.json, of its folder, of a run's folder, or of a folder with runs.
        edition: the rules.
        trusted: keys that the reader knows.
        verdict: on the submission, where it is known; found out otherwise.

    Raises:
        UsageError: nothing of that lies there.
        RecordError: it lies there and cannot be read at all.
    """
    subject = _read_subject(path, edition, trusted, verdict)
    beside = (path.parent if path.is_file() else path) / MICRO_NAME
    if not beside.exists():
        return subject
    try:
        return replace(subject, micro=read_micro(beside))
    except RecordError as error:
        return replace(subject, micro_note=f"{MICRO_NAME} cannot be read: {printable(str(error))}")


def _read_subject(path: Path, edition: Edition, trusted: TrustedKeys | None, verdict: Verdict | None) -> Subject:
    gc_was_enabled = gc.isenabled()
    gc.disable()  # as in hpcai500.judged_run: hundreds of thousands of objects without a cycle
    try:
        if path.is_file():
            return _read_submission(path, edition, trusted, verdict)
        if (path / SUBMISSION_NAME).is_file():
            return _read_submission(path / SUBMISSION_NAME, edition, trusted, verdict)
        if (path / "config.json").is_file():
            return _read_runs(path, [path], edition, "a run by itself is not judged; a submission of all runs is")
        folders = [one.parent for one in path.glob("run-*/config.json")]
    finally:
        if gc_was_enabled:
            gc.enable()
    if folders:
        folders.sort(key=lambda folder: (len(folder.name), folder.name))
        reason = "its runs are not over, or none completed: there is no submission.json yet"
        return _read_runs(path, folders, edition, reason)
    raise UsageError(
        f"{str(path)!r} is nothing to report on; name a submission.json, the folder of a submission or that of a run"
    )


def _read_submission(path: Path, edition: Edition, trusted: TrustedKeys | None, verdict: Verdict | None) -> Subject:
    verdict = verdict or verify_submission(path, edition, trusted=trusted)
    name = _name_of(path.parent)
    submission = decode(read_bytes(path), Submission)
    if isinstance(submission, list):
        return Subject(name, path, None, verdict, edition=edition)
    try:
        workload = edition.workload(submission.workload)
        size = workload.size(submission.size)
    except UnknownNameError:
        return Subject(name, path, submission, verdict, edition=edition)
    runs, unreadable = [], []
    for submitted in submission.runs:
        try:
            if not is_inside(path.parent, submitted.folder):
                raise RecordError("its folder does not lie beneath the submission's")
            runs.append(_read_run(path.parent / submitted.folder, submitted.folder, size))
        except RecordError as error:
            unreadable.append(f"run {submitted.folder} cannot be read: {error}")
    by_id = {result.run_id: result for result in verdict.results}
    runs = [replace(run, result=by_id.get(run.config.run_id, run.result)) for run in runs]
    return Subject(
        name,
        path,
        submission,
        verdict,
        workload=workload,
        size=size,
        edition=edition,
        runs=tuple(_with_sheet(runs)),
        unreadable=tuple(unreadable),
    )


def _read_runs(path: Path, folders: Sequence[Path], edition: Edition, reason: str) -> Subject:
    config, _ = read_config(folders[0])
    workload = edition.workload(config.workload)
    size = workload.size(config.size)
    runs, unreadable = [], []
    for folder in folders:
        try:
            runs.append(_read_run(folder, folder.name, size))
        except RecordError as error:
            unreadable.append(f"run {folder.name} cannot be read: {error}")
    return Subject(
        _name_of(path),
        path,
        None,
        None,
        not_judged=reason,
        workload=workload,
        size=size,
        edition=edition,
        runs=tuple(_with_sheet(runs)),
        unreadable=tuple(unreadable),
    )


def _name_of(folder: Path) -> str:
    """The folder's name; of a run's folder that of its submission too."""
    folder = folder.absolute()
    is_run = folder.name.startswith("run-") and folder.name[4:].isdigit()
    return printable(f"{folder.parent.name}/{folder.name}" if is_run else folder.name)


def _read_run(folder: Path, name: str, size: Size) -> RunFigures:
    config, _ = read_config(folder)
    segments = read_segments(folder, place=name) if list_ledgers(folder) else []
    figures = figures_of(RunRecord(folder, config, segments), size, name=name, system=_read_system(folder))
    if config.workload != "fasterrcnn":
        return figures
    try:
        return replace(figures, sheet=_read_sheet(folder / SHEET))
    except RecordError as error:
        return replace(figures, sheet_note=str(error))


def _read_system(folder: Path) -> System | None:
    try:
        system = decode(read_bytes(folder / "system.json", System), System)
    except RecordError:
        return None  # a run that did not get as far has none
    return None if isinstance(system, list) else system


def _with_sheet(runs: Sequence[RunFigures]) -> list[RunFigures]:
    """The same with the pictures of one run only, the first that has some: a page stays small."""
    first = next((number for number, run in enumerate(runs) if run.sheet), None)
    return [run if number == first else replace(run, sheet="") for number, run in enumerate(runs)]


def _read_sheet(path: Path) -> str:
    """A PNG as data: URI.

    Raises:
        RecordError: it is missing, too large or no PNG.
    """
    with open_plain(path) as file:
        content = file.read(MAX_SHEET_BYTES + 1)
    if len(content) > MAX_SHEET_BYTES:
        raise RecordError(f"{SHEET} has more than {MAX_SHEET_BYTES >> 10} KiB, too many for a page")
    width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    if not content.startswith(PNG_SIGNATURE) or content[12:16] != b"IHDR" or not 0 < width * height <= MAX_SHEET_PIXELS:
        raise RecordError(f"{SHEET} is no PNG of a size that can be shown")
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
