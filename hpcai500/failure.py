"""The first failure of each segment of a run: who ended it and why, so that one line says it and no rank contradicts.

A rank that fails takes all others down, and each of them sees another end of it. ``failures/segment-NNN.json`` belongs
to whoever creates it first; the others stay silent and end with its exit code.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec

READ_PATIENCE_S = 1.0  # between creation and content of a file on a network


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank noted when it ended.

    Attributes:
        segment: of the run, from 0.
        rank: who noted it; which rank is at fault, the reason says.
        host: where that rank ran.
        reason: one sentence.
        exit_code: of hpcai500.command, which tells whether the run can be gone on with.
        wall_ns: Unix time of the note.
    """

    segment: int
    rank: int
    host: str
    reason: str
    exit_code: int
    wall_ns: int


def failure_path(run_folder: Path, segment: int) -> Path:
    """Where the first failure of a segment is noted."""
    return run_folder / "failures" / f"segment-{segment:03d}.json"


def note_failure(run_folder: Path, segment: int, *, rank: int, host: str, reason: str, exit_code: int) -> bool:
    """Note a failure if it is the first of its segment.

    Returns:
        Whether it is, so that the caller says it. Also True where nothing can be noted, as on a full disk: better said
        twice than not at all.
    """
    failure = Failure(segment=segment, rank=rank, host=host, reason=reason, exit_code=exit_code, wall_ns=time.time_ns())
    path = failure_path(run_folder, segment)
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
    try:
        with path.open("xb") as file:
            file.write(msgspec.json.encode(failure) + b"\n")
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def read_failure(run_folder: Path, segment: int, *, patience_s: float = 0.0) -> Failure | None:
    """The first failure of a segment; None if nobody noted one that can be read.

    Args:
        run_folder: the run.
        segment: its number.
        patience_s: how long to look again if the note is still empty.
    """
    path = failure_path(run_folder, segment)
    end_s = time.monotonic() + patience_s
    while True:
        try:
            return msgspec.json.decode(path.read_bytes(), type=Failure)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError):
            if time.monotonic() >= end_s:
                return None
            time.sleep(0.05)


def report_failure(run_folder: Path, segment: int, *, rank: int, host: str, reason: str, exit_code: int) -> int:
    """Note a failure, say it on stderr if it is the segment's first, and return the exit code this rank shall end with.

    That is the code of the first failure: if rank 1 ends because of a bug, the ranks that then miss it must not report
    a run that can be resumed.
    """
    if note_failure(run_folder, segment, rank=rank, host=host, reason=reason, exit_code=exit_code):
        sys.stderr.write(f"hpcai500 train: {reason}\n")
        sys.stderr.flush()
        return exit_code
    first = read_failure(run_folder, segment, patience_s=READ_PATIENCE_S)
    return first.exit_code if first else exit_code
