"""Decides where a run goes on: at its beginning, or from the newest good checkpoint of what stands in its folder."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from hpcai500.checkpoint import FoundCheckpoint, find_checkpoint
from hpcai500.edition import Edition
from hpcai500.errors import RecordError, UsageError
from hpcai500.events import Checkpoint
from hpcai500.formats import RunConfig, read_record, write_json
from hpcai500.ledger import ChainHead
from hpcai500.ledger_reader import read_heads
from hpcai500.record import Position, ledgers_digest, list_ledgers, read_run, read_segments
from hpcai500.replay.order import ORDER_NAME, ReplayOrder
from hpcai500.submission import result_from_ledgers

NS_PER_S = 10**9
MAX_CLOCK_LAG_S = 1.0  # how far this node's clock may be behind the ledger's last line; more is a wrong clock
BEGINNING = FoundCheckpoint(Position(0, 0), "", "", [])


@dataclass(frozen=True)
class SegmentPlan:
    """What the ranks that were just started shall do.

    Attributes:
        number: of the segment; 0 for a run that begins.
        checkpoint: where to go on.
        ledgers_sha256: binds the ledgers of the segments before (hpcai500.record.ledgers_digest).
        heads: by rank the ends of their chains there; a rank that is not in it begins a new one.
        num_steps: to train and no more, of a replay (hpcai500/replay); None to train all that is left.
    """

    number: int
    checkpoint: FoundCheckpoint
    ledgers_sha256: str
    heads: dict[int, ChainHead] = field(default_factory=dict)
    num_steps: int | None = None


def plan_segment(run_folder: Path, config: RunConfig, *, num_ranks: int) -> SegmentPlan:
    """Look at a run folder and decide; called by rank 0 alone, which then tells the others.

    Raises:
        UsageError: the run is complete, or cannot go on with so many ranks.
        RecordError: its ledgers are damaged, or are ahead of this machine's clock.
    """
    paths = list_ledgers(run_folder)
    if not paths:
        _check_first_ranks(config, num_ranks)
        return SegmentPlan(0, BEGINNING, ledgers_digest([]))
    if (run_folder / "result.json").exists():
        raise UsageError(
            f"the run in {str(run_folder)!r} is complete; make a new one with `hpcai500 submit` instead of resuming it"
        )
    segments = read_segments(run_folder, place="", ranks={0})
    _check_ranks(config, num_ranks)
    ends = read_ends(paths)
    heads = last_heads(ends)
    _wait_for_clock(run_folder, max((head.time_ns for head in heads.values()), default=0))
    saved = [event for segment in segments for ledger in segment.ledgers for event in ledger.values(Checkpoint)]
    digest = ledgers_digest((*key, head.sha256) for key, head in ends.items())
    return SegmentPlan(max(paths) + 1, find_checkpoint(run_folder / "checkpoints", saved), digest, heads)


def plan_replay(run_folder: Path) -> SegmentPlan:
    """What the ranks of a replay shall do, as the replay.json of their folder says; called by rank 0 alone.

    Raises:
        RecordError: it cannot be read.
    """
    order = read_record(run_folder / ORDER_NAME, ReplayOrder)
    checkpoint = FoundCheckpoint(Position(order.epoch, order.step), order.path, order.sha256, [])
    return SegmentPlan(0, checkpoint, ledgers_digest([]), num_steps=order.num_steps)


def read_ends(paths: dict[int, dict[int, Path]]) -> dict[tuple[int, int], ChainHead]:
    """By segment and rank the ends of the chains in the ledgers, as list_ledgers has them.

    Raises:
        RecordError: a rank's last line is damaged.
    """
    return {
        (segment, rank): head
        for segment, nodes in paths.items()
        for path in nodes.values()
        for rank, head in read_heads(path).items()
    }


def last_heads(ends: dict[tuple[int, int], ChainHead]) -> dict[int, ChainHead]:
    """By rank the end of its chain in the last segment in which it wrote a line."""
    return {rank: head for (_, rank), head in sorted(ends.items(), key=lambda end: end[0])}


def finish_trained_run(run_folder: Path, config: RunConfig, edition: Edition) -> bool:
    """Write result.json of a run whose ranks have all closed their ledgers and died before they could; tell if so.

    Raises:
        RecordError: the ledgers are damaged, or the result cannot be written.
    """
    if (run_folder / "result.json").exists() or not list_ledgers(run_folder):
        return False
    if read_run(run_folder, config).status != "completed":
        return False
    write_json(run_folder / "result.json", result_from_ledgers(run_folder, edition))
    return True


def _check_first_ranks(config: RunConfig, num_ranks: int) -> None:
    if num_ranks != config.num_ranks:
        raise RecordError(
            f"run {config.run_id!r} is configured for {config.num_ranks} ranks and {num_ranks} were started; "
            f"start {config.num_ranks} or make a new run with `hpcai500 submit --ranks {num_ranks}`"
        )


def _check_ranks(config: RunConfig, num_ranks: int) -> None:
    """A run that goes on keeps its global batch, and with it its steps and learning rates."""
    global_batch = int(config.settings["batch_size_per_rank"]) * config.num_ranks
    if global_batch % num_ranks:
        possible = [number for number in range(1, global_batch + 1) if global_batch % number == 0]
        raise UsageError(
            f"a run with a global batch of {global_batch} cannot go on with {num_ranks} ranks; "
            f"start a number that divides it: {', '.join(map(str, possible[:20]))}"
        )


def _wait_for_clock(run_folder: Path, last_ns: int) -> None:
    """Let no line be older than the one before it.

    Raises:
        RecordError: this machine's clock is far behind.
    """
    lag_s = (last_ns - time.time_ns()) / NS_PER_S
    if lag_s > MAX_CLOCK_LAG_S:
        raise RecordError(
            f"this machine's clock is {lag_s:.1f} s behind the last line of the ledgers in {str(run_folder)!r}, so "
            "time would run backwards; set the clocks of all nodes alike (NTP) and resume the run"
        )
    if lag_s > 0:
        time.sleep(lag_s)
