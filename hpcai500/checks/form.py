"""Form: edition, files, digests, and that the files of a submission speak of the same thing.

Not covered: whether a file that the rules do not ask for (steps/, report.html) says anything true.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from hpcai500.checks.case import Case, RunCase
from hpcai500.energy.meter_file import METER_NAME
from hpcai500.errors import RecordError
from hpcai500.events import DataOpen
from hpcai500.finding import Finding
from hpcai500.formats import FileDigest, System
from hpcai500.record import list_ledgers
from hpcai500.submission import file_digest

REQUIRED_FILES = ("config.json", "result.json", "system.json")
DEVICES = ("cpu", "cuda")  # what a run can be trained on; the checks of physics ask which it was


def is_inside(base: Path, relative: str) -> bool:
    """Whether a path of a submission is plain, relative, and stays beneath its folder, symbolic links included."""
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or "\0" in relative or str(path) != relative:
        return False
    return Path(os.path.realpath(base / path)).is_relative_to(os.path.realpath(base))  # resolve() raises on loops


def check_edition(case: Case) -> list[Finding]:
    """The submission was made under the rules it is held against: same edition, same digest of the rules files."""
    submission, edition = case.submission, case.edition
    findings = []
    if submission.edition != edition.number:
        place = f"{case.place}:edition"
        findings.append(Finding("form.edition", place, f"{edition.number!r}", f"{submission.edition!r}"))
    if submission.rules_sha256 != edition.sha256:
        place = f"{case.place}:rules_sha256"
        expected = f"{edition.sha256} (the rules of edition {edition.number})"
        findings.append(Finding("form.rules", place, expected, submission.rules_sha256))
    return findings


def check_files(case: Case) -> list[Finding]:
    """Every listed file is there with its length and sha256; the required files and all ledgers are listed."""
    findings = []
    for run in case.runs:
        for name, listed in run.submitted.files.items():
            findings += check_listed(run.record.folder, name, listed, f"{run.place}/{name}")
        folder = run.record.folder
        paths = (path for nodes in list_ledgers(folder).values() for path in nodes.values())
        ledgers = {path.relative_to(folder).as_posix() for path in paths}
        required = ledgers | ({*REQUIRED_FILES} if run.is_complete else {"config.json"})
        if (run.record.folder / METER_NAME).exists():
            required.add(METER_NAME)  # figures come from it
        for name in sorted(required - run.submitted.files.keys()):
            place = f"{case.place}:runs[{run.place}].files"
            findings.append(Finding("form.files", place, f"{name} listed with its digest", "not listed"))
    return findings


def check_listed(folder: Path, name: str, listed: FileDigest, place: str) -> list[Finding]:
    """A file that a submission lists lies in its folder and is what the list says (rule form.files)."""
    path = folder / name
    try:
        size_bytes = path.stat().st_size  # so that what is not there, or of another length, costs little
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        return [Finding("form.files", place, "a file", str(error))]
    if not is_inside(folder, name):
        return [Finding("form.files", place, "a path inside its folder", repr(name))]
    if size_bytes != listed.size_bytes:
        return [Finding("form.files", place, f"{listed.size_bytes} bytes", f"{size_bytes} bytes")]
    try:
        found = file_digest(path)
    except RecordError as error:
        return [Finding("form.files", place, "a file", str(error))]
    if found != listed:
        expected = f"{listed.size_bytes} bytes with sha256 {listed.sha256}"
        return [Finding("form.files", place, expected, f"{found.size_bytes} bytes with sha256 {found.sha256}")]
    return []


def check_configs(case: Case) -> list[Finding]:
    """Every run's config.json agrees with submission.json, and all runs differ in nothing but run_id and seed."""
    findings = []
    sizes: dict[int | None, RunCase] = {}
    submission, first = case.submission, case.runs[0].config
    for run in case.runs:
        config = run.config
        pairs: dict[str, tuple[object, object]] = {
            name: (getattr(submission, name), getattr(config, name))
            for name in ("workload", "level", "size", "edition", "rules_sha256")
        }
        pairs |= {name: (getattr(run.submitted, name), getattr(config, name)) for name in ("run_id", "seed")}
        pairs["data.source"] = (submission.data_source, config.data.source)
        pairs["data.dataset_sha256"] = (submission.dataset_sha256, config.data.dataset_sha256)
        same = ("num_ranks", "num_nodes", "device", "settings")
        pairs |= {name: (getattr(first, name), getattr(config, name)) for name in same}
        if config.device not in DEVICES:
            pairs["device"] = (" or ".join(DEVICES), config.device)
        if run.is_complete:
            sizes.setdefault(_train_bytes(run), run)
        for name, (expected, found) in pairs.items():
            if expected != found:
                findings.append(
                    Finding("form.config", f"{run.place}/config.json:{name}", f"{expected!r}", f"{found!r}")
                )
    for size, run in list(sizes.items())[1:]:
        place, expected = f"{run.place}/ledger:data_open.train_bytes", f"{next(iter(sizes))}, as in the first run"
        findings.append(Finding("form.config", place, expected, f"{size}"))
    return findings


def _train_bytes(run: RunCase) -> int | None:
    """Bytes of the data set, as rank 0 says last."""
    values = [data.train_bytes for root in run.record.roots for data in root.values(DataOpen)]
    return values[-1] if values else None


def check_system(case: Case) -> list[Finding]:
    """The system is that of the first completed run; all runs ran on like nodes, as many as they were configured for.

    Host names, environment and memory to the byte may differ between runs: a scheduler gives other nodes and job ids. A
    run may be resumed on fewer or more nodes, but not on other ones or with other libraries.
    """
    findings = []
    for number, run in enumerate(case.completed):
        place = f"{run.place}/system.json"
        if run.system is None:
            continue  # reading the run found that it is missing
        if number == 0 and run.system != case.submission.system:
            findings.append(Finding("form.system", f"{case.place}:system", f"what stands in {place}", "another"))
        if _kind(run.system) != _kind(case.submission.system):
            expected = f"{_kind(case.submission.system)}"
            findings.append(Finding("form.system", place, expected, f"{_kind(run.system)}"))
        if len(run.system.nodes) != run.config.num_nodes:
            expected = f"{run.config.num_nodes} nodes"
            findings.append(Finding("form.system", f"{place}:nodes", expected, f"{len(run.system.nodes)}"))
        kinds, libraries = _kind(run.system)
        for segment, later in enumerate(run.later_systems, start=1):
            if not set(map(str, _kind(later)[0])) <= set(map(str, kinds)) or later.libraries != libraries:
                place = f"{run.place}/system-{segment:03d}.json"
                findings.append(
                    Finding("form.system", place, f"nodes and libraries like {_kind(run.system)}", "others")
                )
    return findings


def _kind(system: System) -> tuple[list[tuple[str, int, int, list[str]]], dict[str, str]]:
    """What must be alike in all runs: processors and accelerators of the nodes, in any order, and the libraries."""
    nodes = [
        (node.processor, node.num_sockets, node.num_cores, [a.name for a in node.accelerators]) for node in system.nodes
    ]
    return sorted(nodes), system.libraries
