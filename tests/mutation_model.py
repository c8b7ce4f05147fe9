"""A recorded submission in memory, and a forger who mends whatever a change broke and anybody can mend.

``Forgery`` holds one on disk: it writes only files that differ from what lies there, so that a mutant costs little.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from recording import EDITION

from hpcai500.errors import HpcAi500Error
from hpcai500.formats import RunConfig, RunResult
from hpcai500.ledger import ChainHead
from hpcai500.record import SEGMENT_NAME, RunRecord, ledger_path, ledgers_digest, read_segments
from hpcai500.submission import compute_result, summarise

Lines = list[dict[str, Any]]
Json = dict[str, Any]
SUBMISSION = "submission.json"
CANNOT_BE_COMPUTED = (HpcAi500Error, msgspec.MsgspecError, LookupError, ValueError, TypeError, OverflowError)


@dataclass
class Run:
    """One run: its folder's name, its records by file name, and its ledgers' lines by segment and rank, on one node."""

    folder: str
    records: dict[str, Json]
    ledgers: dict[tuple[int, int], Lines]

    @property
    def config(self) -> Json:
        return self.records["config.json"]

    @property
    def systems(self) -> list[Json]:
        return [record for name, record in self.records.items() if name.startswith("system")]

    def events(self, event: str, rank: int | None = None) -> list[Json]:
        """Values of all events of a kind, of one rank or of all."""
        return [
            line["value"]
            for (_, one), lines in self.ledgers.items()
            for line in lines
            if line["event"] == event and rank in (None, one)
        ]


@dataclass
class Model:
    """A submission as a forger sees it; ``others`` are files that are no records."""

    submission: Json
    runs: list[Run]
    others: dict[str, bytes]

    @property
    def ledgers(self) -> Iterator[Lines]:
        for run in self.runs:
            yield from run.ledgers.values()

    @property
    def systems(self) -> list[Json]:
        return [self.submission["system"], *(system for run in self.runs for system in run.systems)]


def read_model(files: Mapping[str, bytes]) -> Model:
    """Take a submission apart, given as the bytes of its files by their paths."""
    submission = msgspec.json.decode(files[SUBMISSION])
    runs = {run["folder"]: Run(run["folder"], {}, {}) for run in submission["runs"]}
    others = {}
    for path, content in files.items():
        folder, _, name = path.partition("/")
        if folder not in runs:
            if path != SUBMISSION:
                others[path] = content
        elif name.startswith("ledger/"):
            parts = Path(name).parts
            segment = SEGMENT_NAME.match(parts[1])
            assert parts[-1] == "node-00000.jsonl", "these submissions are of one node"
            for line in map(msgspec.json.decode, content.splitlines()):
                key = int(segment.group(1)) if segment else 0, line["rank"]
                runs[folder].ledgers.setdefault(key, []).append(line)
        elif name.endswith(".json"):
            runs[folder].records[name] = msgspec.json.decode(content)
        else:
            others[path] = content
    for run in runs.values():
        run.ledgers = dict(sorted(run.ledgers.items()))
    return Model(submission, list(runs.values()), others)


def encode(record: object) -> bytes:
    try:
        return msgspec.json.encode(record)
    except (OverflowError, msgspec.MsgspecError):  # an integer beyond 64 bits
        return json.dumps(record, separators=(",", ":")).encode()


def ledger_name(segment: int) -> str:
    return ledger_path(Path(), segment, node=0).as_posix()


def chain(run: Run, *, binds: bool) -> dict[str, bytes]:
    """The ledgers' files with their chains made anew and, with ``binds``, segments bound to those before."""
    heads: dict[int, ChainHead] = {}
    ends: dict[tuple[int, int], str] = {}
    files: dict[str, bytes] = {}
    for (segment, rank), lines in run.ledgers.items():
        head, content = heads.setdefault(rank, ChainHead()), []
        before = [(number, one, sha256) for (number, one), sha256 in ends.items() if number < segment]
        for line in lines:
            if binds and line.get("event") == "resume" and isinstance(line.get("value"), dict):
                line["value"]["ledgers_sha256"] = ledgers_digest(before)
            raw = encode({"rank": rank} | line | {"rank": rank, "seq": head.seq, "prev": head.sha256})
            head.advance(raw)
            content.append(raw + b"\n")
        ends[segment, rank] = head.sha256
        name = ledger_name(segment)
        files[name] = files.get(name, b"") + b"".join(content)
    return files


def bind_config(run: Run, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    for lines in run.ledgers.values():
        for line in lines:
            if line.get("event") == "run_open" and isinstance(line.get("value"), dict):
                line["value"]["config_sha256"] = digest


@dataclass
class Forgery:
    """A submission on disk that can be changed and put back as often as one likes."""

    folder: Path
    original: dict[str, bytes] = field(init=False)
    on_disk: dict[str, bytes] = field(default_factory=dict)
    known: dict[bytes, RunResult] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / SUBMISSION

    def __post_init__(self) -> None:
        paths = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        self.on_disk = {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}
        self.keep()

    def keep(self) -> None:
        """Take what lies on the disk for the original."""
        self.original = dict(self.on_disk)

    def model(self) -> Model:
        return read_model(self.original)

    def write(self, files: Mapping[str, bytes]) -> None:
        """Make the folder hold these files and no others."""
        for path in self.on_disk.keys() - files.keys():
            (self.folder / path).unlink()
        for path, content in files.items():
            if self.on_disk.get(path) != content:
                target = self.folder / path
                if path not in self.on_disk:
                    target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
        self.on_disk = dict(files)

    def forge(self, model: Model, mends: str = "all") -> None:
        """Write a changed submission with all mended: "all", all but what binds the configuration ("figures"), file
        digests alone ("digests"), or chains alone ("no")."""
        files = dict(model.others)
        results: list[RunResult | None] = []
        for run in model.runs:
            config = encode(run.config)
            if mends == "all":
                bind_config(run, config)
            named = chain(run, binds=mends == "all")
            named |= {name: encode(record) for name, record in run.records.items()} | {"config.json": config}
            files |= {f"{run.folder}/{name}": content for name, content in named.items()}
        self.write(files | {SUBMISSION: encode(model.submission)})
        if mends in ("all", "figures"):
            for run in model.runs:
                result = self.compute(run, files)
                results.append(result)
                if result is not None and "result.json" in run.records:
                    files[f"{run.folder}/result.json"] = msgspec.json.encode(result)
            self._mend_summary(model.submission, results)
        if mends != "no":
            self._mend_digests(model.submission, files)
        self.write(files | {SUBMISSION: encode(model.submission)})

    def compute(self, run: Run, files: Mapping[str, bytes]) -> RunResult | None:
        """The figures of a run as its ledgers on disk now have them; None where there are none to be had."""
        prefix = f"{run.folder}/"
        parts = [files[path] for path in sorted(files) if path.startswith((f"{prefix}ledger/", f"{prefix}config.json"))]
        key = hashlib.sha256(b"\0".join(parts)).digest()
        if key not in self.known:
            try:
                config = msgspec.json.decode(files[f"{prefix}config.json"], type=RunConfig)
                size = EDITION.workload(config.workload).size(config.size)
                folder = self.folder / run.folder
                self.known[key] = compute_result(RunRecord(folder, config, read_segments(folder, place="")), size)
            except CANNOT_BE_COMPUTED:
                return None
        return self.known[key]

    def _mend_summary(self, submission: Json, results: list[RunResult | None]) -> None:
        known = [result for result in results if result is not None]
        with contextlib.suppress(*CANNOT_BE_COMPUTED):
            if len(known) == len(submission["runs"]):
                size = EDITION.workload(submission["workload"]).size(submission["size"])
                submission["summary"] = msgspec.to_builtins(summarise(known, size))

    def _mend_digests(self, submission: Json, files: Mapping[str, bytes]) -> None:
        with contextlib.suppress(LookupError, TypeError, AttributeError):
            for run in submission["runs"]:
                run["files"] = {
                    path.removeprefix(f"{run['folder']}/"): {
                        "sha256": hashlib.sha256(content).hexdigest(),
                        "size_bytes": len(content),
                    }
                    for path, content in files.items()
                    if path.startswith(f"{run['folder']}/")
                }
