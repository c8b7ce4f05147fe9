"""What the segments of a run left behind: how far it is, and which ranks ended without a last word."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from hpcai500.events import Checkpoint, RunClose
from hpcai500.launches import Launch
from hpcai500.record import Position, Segment, list_ledgers, read_segments

NO_WORD = " left no last word"
MAX_NAMED = 4  # ranks or nodes that a line names; of more it gives the number


def next_segment(run_folder: Path) -> int:
    """The number that the next start of the ranks will have."""
    return max(list_ledgers(run_folder), default=-1) + 1


def saved_position(run_folder: Path) -> Position:
    """How far the newest checkpoint that counts is; the beginning if there is none.

    Raises:
        RecordError: the ledgers cannot be read.
    """
    segments = read_segments(run_folder, place="", ranks={0})
    saved = (value for segment in segments for ledger in segment.ledgers for value in ledger.values(Checkpoint))
    return max((Position(value.epoch, value.step) for value in saved), default=Position(0, 0))


def describe_before(run_folder: Path, last: Launch) -> str:
    """How a run ended before, as a sentence: what its job noted, and which ranks left no last word.

    Args:
        run_folder: of the run.
        last: the last line of a job about it.
    """
    if last.what == "ended":
        known = last.reason or f"it ended with exit code {last.exit_code}"
    else:  # whoever was to note the end is gone itself
        known = f"the job's own process on {last.host or 'its first node'} left no last word"
    silent = describe_silent_ranks(run_folder)
    is_said = not silent or silent.removesuffix(NO_WORD) in known
    return known if is_said else f"{known}; {silent}"


def describe_silent_ranks(run_folder: Path) -> str:
    """Which ranks of the last segment left no last word, and on which nodes; "" if all did."""
    segments = read_segments(run_folder, place="")
    if not segments:
        return ""
    by_host, unopened = _silent_ranks(segments[-1])
    parts = []
    if len(by_host) > MAX_NAMED:
        parts.append(f"{sum(map(len, by_host.values()))} ranks on {len(by_host)} nodes")
    else:
        parts += [f"{_name_ranks(ranks)} on {host}" for host, ranks in by_host.items()]
    if unopened:
        parts.append(f"{_name_ranks(unopened)}, which had not begun,")
    return f"{' and '.join(parts)}{NO_WORD}" if parts else ""


def _silent_ranks(segment: Segment) -> tuple[dict[str, list[int]], list[int]]:
    """Ranks without run_close, by host, and ranks without a ledger."""
    by_host: dict[str, list[int]] = defaultdict(list)
    begun = set()
    for ledger in segment.ledgers:
        if ledger.opened is not None:
            begun.add(ledger.rank)
            if ledger.value(RunClose) is None:
                by_host[ledger.opened.host].append(ledger.rank)
    return by_host, [rank for rank in range(segment.num_ranks) if rank not in begun]


def _name_ranks(ranks: list[int]) -> str:
    if len(ranks) > MAX_NAMED:
        return f"{len(ranks)} ranks"
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
