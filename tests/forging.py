"""A forger's tools: the verifier's tests break one thing at a time in a recorded submission, and mend the rest.

``Forger.forge`` mends all that a clever forger would mend: hash chains, results, summary and digests.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from recording import EDITION, heads_before, segments_digest

from hpcai500.errors import RecordError
from hpcai500.ledger import ChainHead
from hpcai500.record import RunRecord, ledger_path, list_ledgers, read_segments
from hpcai500.submission import compute_result, file_digest, read_config, summarise


@dataclass(frozen=True)
class Mutation:
    """One way to break a submission: the check it is for, the rule that must be named, and what the forger mends."""

    check: str
    rule: str
    name: str
    change: Callable[[Forger], object]
    mends: str = "all"
    resumed: bool = False


@dataclass
class Forger:
    """Changes a submission and mends what the change broke."""

    path: Path

    def run(self, number: int = 1) -> Path:
        return self.path.parent / f"run-{number}"

    def edit_json(self, path: Path, change: Callable[[dict[str, Any]], object]) -> None:
        content = json.loads(path.read_bytes())
        change(content)
        path.write_text(json.dumps(content))

    def edit_submission(self, change: Callable[[dict[str, Any]], object]) -> None:
        self.edit_json(self.path, change)

    def edit_config(self, change: Callable[[dict[str, Any]], object], *, numbers: tuple[int, ...] = (1, 2)) -> None:
        for number in numbers:
            self.edit_json(self.run(number) / "config.json", change)

    def ledger(self, number: int = 1, segment: int = 0, node: int = 0) -> Path:
        return ledger_path(self.run(number), segment, node)

    def lines(self, number: int = 1, rank: int = 0, segment: int = 0) -> list[dict[str, Any]]:
        """The lines of a rank."""
        lines = map(json.loads, self.ledger(number, segment).read_bytes().splitlines())
        return [line for line in lines if line["rank"] == rank]

    def edit_lines(
        self, change: Callable[[list[dict[str, Any]]], object], *, number: int = 1, rank: int = 0, segment: int = 0
    ) -> None:
        """Change a rank's lines and chain them anew."""
        path = self.ledger(number, segment)
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        mine = [line for line in lines if line["rank"] == rank]
        change(mine)
        others = [line for line in lines if line["rank"] != rank]
        chain_lines(path, others + mine, heads_before(self.run(number), segment))

    def edit_events(
        self, event: str, change: Callable[[dict[str, Any]], object], *, number: int = 1, rank: int | None = None
    ) -> None:
        """Change the value of every event of a kind, in one rank's ledger or in all, and chain anew."""

        def change_all(lines: list[dict[str, Any]]) -> None:
            chosen = [line for line in lines if line["event"] == event]
            assert chosen, f"no {event} in the ledger"
            for line in chosen:
                change(line["value"])

        for one in (0, 1) if rank is None else (rank,):
            self.edit_lines(change_all, number=number, rank=one)

    def forge(self, *, configs: bool = True, figures: bool = True) -> None:
        """Mend config digests in the ledgers, results and summary where they can be computed, and all file digests."""
        submission = json.loads(self.path.read_bytes())
        size = EDITION.workload("resnet50").size(submission["size"])
        results = []
        for run in submission["runs"]:
            folder = self.path.parent / run["folder"]
            config, digest = read_config(folder)
            if configs:
                mend_ledgers(folder, digest)
            results.append(compute_result(RunRecord(folder, config, read_segments(folder, place="")), size))
            if figures and (folder / "result.json").exists():
                (folder / "result.json").write_bytes(msgspec.json.encode(results[-1]))
        if figures:
            with contextlib.suppress(RecordError):  # nothing left to make a summary of
                submission["summary"] = msgspec.to_builtins(summarise(results, size))
        for run in submission["runs"]:
            folder = self.path.parent / run["folder"]
            run["files"] = {name: msgspec.to_builtins(file_digest(folder / name)) for name in run["files"]}
        self.path.write_text(json.dumps(submission))


def mend_ledgers(folder: Path, config_sha256: str) -> None:
    """Mend what binds the ledgers of a run: the digest of its configuration, their chains, and segments to segments."""
    for segment, paths in list_ledgers(folder).items():
        before = [one for one in read_segments(folder, place="") if one.number < segment]
        for path in paths.values():
            lines = [json.loads(line) for line in path.read_bytes().splitlines()]
            for line in lines:
                if line["event"] == "run_open":
                    line["value"]["config_sha256"] = config_sha256
                if line["event"] == "resume":
                    line["value"]["ledgers_sha256"] = segments_digest(before)
            chain_lines(path, lines, heads_before(folder, segment))


def chain_lines(path: Path, lines: list[dict[str, Any]], heads: dict[int, ChainHead] | None = None) -> None:
    """Write lines with sequence numbers and chains made anew, as anybody can; of rank 0 where none is named."""
    heads, content = heads or {}, b""
    for line in lines:
        named = {"rank": 0} | line
        head = heads.setdefault(named["rank"], ChainHead())
        raw = json.dumps(named | {"seq": head.seq, "prev": head.sha256}, separators=(",", ":")).encode()
        head.advance(raw)
        content += raw + b"\n"
    path.write_bytes(content)


def forger_of_copy(submission: Path, folder: Path) -> Forger:
    """A forger of a copy of a submission, which is made as ``folder``."""
    shutil.copytree(submission.parent, folder)
    return Forger(folder / submission.name)
