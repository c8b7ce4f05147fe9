"""Checkpoints: each says how far the run is, and all ranks of a segment tell of the same ones.

Not covered: what is in them, which a submission does not carry; their digests can be held against the files of whoever
made the run.
"""

from __future__ import annotations

from collections.abc import Iterator

from hpcai500.checks.case import Case, RunCase
from hpcai500.events import Checkpoint, EpochPart
from hpcai500.finding import Finding
from hpcai500.record import Position, RankLedger

Saved = tuple[int, int, str, str]  # epoch, step, path and digest of a checkpoint


def check_positions(case: Case) -> list[Finding]:
    """A checkpoint is of the epoch and step that its rank has just reached."""
    findings = []
    for run, ledger in case.completed_ledgers:
        steps_per_epoch = case.size.num_train_samples // run.global_batch
        position = ledger.start
        for entry in ledger.all_entries_of(EpochPart, Checkpoint):
            value = entry.value
            if isinstance(value, EpochPart):
                done = value.first_step + value.steps
                position = Position(value.epoch, done) if done < steps_per_epoch else Position(value.epoch + 1, 0)
            elif isinstance(value, Checkpoint) and position != (value.epoch, value.step):
                place = f"{ledger.place}:{entry.line}"
                expected = f"epoch {position.epoch}, step {position.step}" if position else "none"
                found = f"epoch {value.epoch}, step {value.step}"
                findings.append(Finding("chain.checkpoints", place, f"{expected}, where the rank is", found))
    return findings


def check_saved(case: Case) -> list[Finding]:
    """All ranks tell of the same checkpoints, and no two of a run have the same file or the same content.

    A rank of a segment that was cut may have been stopped before it told of the last one.
    """
    return [finding for run in case.completed for finding in _check_run(run)]


def _check_run(run: RunCase) -> Iterator[Finding]:
    paths: set[str] = set()
    positions: dict[str, tuple[int, int]] = {}  # by content; work that was done again to the bit has the same
    for segment in run.record.segments:
        alike: dict[tuple[Saved, ...], tuple[Saved, ...]] = {}  # what thousands of ranks tell is kept once
        told = {ledger.rank: alike.setdefault(saved := _told(ledger), saved) for ledger in segment.ledgers}
        longest = max(alike, key=len, default=())
        is_cut = segment.number != run.record.segments[-1].number
        for ledger in segment.ledgers:
            mine = told[ledger.rank]
            if mine != (longest[: len(mine)] if is_cut and len(mine) >= len(longest) - 1 else longest):
                expected = f"{len(longest)} checkpoints, the same as those of the other ranks"
                yield Finding(
                    "chain.checkpoints", f"{ledger.rank_place}.checkpoint", expected, f"{len(mine)}, or others"
                )
        for epoch, step, path, sha256 in longest:
            if path in paths or positions.setdefault(sha256, (epoch, step)) != (epoch, step):
                place = f"{segment.ledgers[0].rank_place}.checkpoint[{epoch}, {step}]"
                yield Finding("chain.checkpoints", place, "a file and content of its own", f"{path}, {sha256}"[:1000])
            paths.add(path)


def _told(ledger: RankLedger) -> tuple[Saved, ...]:
    saved = (entry.value for entry in ledger.all_entries_of(Checkpoint))
    return tuple((one.epoch, one.step, one.path, one.sha256) for one in saved if isinstance(one, Checkpoint))
