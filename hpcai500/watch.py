"""Watch a submission until all its runs are over: queue, epoch, images/s, quality and time left.

Run as ``hpcai500 watch ...`` or ``python -m hpcai500.watch ...``. It only reads; the runs need it as little as they
mind it, so it may be ended and started again at any time and anywhere the folder can be seen.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from hpcai500.command import INTERRUPTED_EXIT_CODE, run_command
from hpcai500.errors import BackendUnavailableError, UsageError
from hpcai500.formats import SUBMISSION_NAME
from hpcai500.launch.queue import Queue
from hpcai500.launches import list_submissions
from hpcai500.over import assemble_if_over, has_job_left, show_verdict
from hpcai500.progress import PLAIN_PERIOD_S
from hpcai500.run_states import RunView, SubmissionFollower, SubmissionView, shown_path
from hpcai500.status import describe_run
from hpcai500.straggler_record import StragglerNote

PERIOD_S = 2.0  # between two looks; squeue is asked each time
PATIENCE_S = 600.0  # how long Slurm may not answer

EPILOG = """examples:
  hpcai500 watch                                   your newest submission
  hpcai500 watch runs/resnet50-mini-free-20261124-101500

Ctrl-C ends the watching, not the runs. The exit status is 0 if the submission is valid, else 1."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    parser.add_argument(
        "folder", nargs="?", type=Path, metavar="FOLDER", help="folder of a submission (default: your newest)"
    )


def run(args: argparse.Namespace) -> int:
    """Watch; returns 0 if the submission is valid."""
    folder = args.folder or next(iter(list_submissions()), None)
    if folder is None:
        raise UsageError("you have no submissions yet; `hpcai500 submit` makes one")
    return watch(folder)


def watch(
    folder: Path, *, console: Console | None = None, queue: Queue | None = None, period_s: float = PERIOD_S
) -> int:
    """Show a submission until all its runs are over, then its verdict.

    Args:
        folder: of the submission.
        console: where to show it; stdout by default.
        queue: whom to ask; Slurm by default.
        period_s: between two looks.

    Returns:
        0 if the submission is valid, 1 if not or if there is none, 130 after Ctrl-C, which leaves the runs alone.

    Raises:
        UsageError: the folder holds no submission.
        BackendUnavailableError: Slurm has not answered for a long time.
    """
    shown = console or Console()
    follower = SubmissionFollower(folder.absolute(), queue or Queue())
    greeting = f"watching {shown_path(folder)} ({follower.title}); Ctrl-C ends the watching, not the runs"
    shown.print(greeting, highlight=False, soft_wrap=True)
    try:
        _show_until_over(follower, shown, period_s)
    except KeyboardInterrupt:
        shown.print(
            f"the runs go on without being watched; see them again with `hpcai500 watch {shown_path(folder)}` "
            "or `hpcai500 status`",
            highlight=False,
            soft_wrap=True,
        )
        return INTERRUPTED_EXIT_CODE
    return _judge(folder, follower, period_s)


def _judge(folder: Path, follower: SubmissionFollower, period_s: float) -> int:
    """The verdict: of the submission that is there or that a job is about to make, or else that is made now."""
    path = folder / SUBMISSION_NAME
    while not path.exists() and has_job_left(folder, follower.queue):
        time.sleep(period_s)
    if not path.exists():
        valid = assemble_if_over(folder, queue=follower.queue)
        if valid is not None or not path.exists():
            return 0 if valid else 1
    return 0 if show_verdict(path) else 1


def _show_until_over(follower: SubmissionFollower, console: Console, period_s: float) -> None:
    answered_s = time.monotonic()
    with _Display(console) as display:
        while True:
            view = follower.look()
            display.show(view)
            if view.is_over:
                return
            if not view.problem:
                answered_s = time.monotonic()
            elif time.monotonic() - answered_s > PATIENCE_S:
                raise BackendUnavailableError(f"{view.problem}; the runs may go on all the same")
            time.sleep(period_s)


class _Display:
    """A block that is drawn anew on a terminal; elsewhere a line for each run that changed.

    A run that trains changes all the time and has a line every PLAIN_PERIOD_S; of others each change is news.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._shown: dict[int, tuple[str, float]] = {}
        self._told: dict[int, list[StragglerNote]] = {}

    def __enter__(self) -> _Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, view: SubmissionView) -> None:
        lines = {run.number: describe_run(run) for run in view.runs}
        if self._live:
            text = [line for run in view.runs for line in (lines[run.number], *_more_of(run))]
            note = [f"note: {view.problem}"] if view.problem else []
            self._live.update(Text("\n".join([*text, *note])), refresh=True)
            return
        now_s = time.monotonic()
        for run in view.runs:
            self._show_stragglers(run)
            line, shown, shown_s = lines[run.number], *self._shown.get(run.number, ("", 0.0))
            news = run.state if run.state == "running" else line
            if news != shown or (run.state == "running" and now_s - shown_s >= PLAIN_PERIOD_S):
                self._console.print(line, highlight=False, soft_wrap=True)
                self._shown[run.number] = (news, now_s)

    def _show_stragglers(self, run: RunView) -> None:
        """Print what has become slow since the last look, once."""
        slow = run.progress.slow if run.state == "running" else {}
        for note in slow.values():
            if note not in self._told.get(run.number, []):
                self._console.print(f"run {run.number}: {note.describe()}", highlight=False, soft_wrap=True)
        self._told[run.number] = list(slow.values())


def _more_of(run: RunView) -> list[str]:
    """More lines of a run that trains: what its report would show so far, and what is slow now, by what it shows."""
    if run.state != "running":
        return []
    more = [run.progress.describe_time(), *(note.describe() for note in run.progress.slow.values())]
    return [f"  {line}" for line in more if line]


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m hpcai500.watch``."""
    return run_command("python -m hpcai500.watch", sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
