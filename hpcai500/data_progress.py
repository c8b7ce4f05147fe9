"""Shows how far preparing or checking a data file is: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

PLAIN_PERIOD_S = 5.0


class DataProgress:
    """A context manager whose ``report`` is told the stage, how much is done and how much there is."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._printed_s: dict[str, float] = {}

    def __enter__(self) -> DataProgress:
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def report(self, stage: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` are done; the first call of a stage may come with some done already."""
        if self._bar is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bar.add_task(stage)
            self._bar.update(self._tasks[stage], completed=done, total=total)
            return
        now_s = time.monotonic()
        if now_s - self._printed_s.setdefault(stage, now_s) >= PLAIN_PERIOD_S:
            self._printed_s[stage] = now_s
            share = done / max(total, 1)
            self._console.print(f"{stage}: {share:.0%} of {total:,}", highlight=False, soft_wrap=True)
