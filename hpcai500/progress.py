"""Follows a run through the ledger that its rank 0 writes, and shows how far it is.

It reads files only, so it works wherever the run folder can be read, and neither disturbs nor is needed by the run.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hpcai500.record import ledger_path
from hpcai500.straggler_record import STRAGGLERS_NAME, StragglerNote, read_notes

RANK_0 = b'{"rank":0,'  # how its lines begin
TIME_PARTS = ("data_wait", "forward_backward", "communication", "optimizer")  # of a window
PLAIN_PERIOD_S = 10.0  # between two lines where the output is not a terminal


@dataclass
class RunState:
    """What is known of a run so far.

    Attributes:
        phase: what it is doing, in words.
        segment: how often it was resumed.
        step: steps done over all epochs; num_steps in all, 0 while unknown.
        samples_per_s: of all ranks, in the last window.
        loss: mean of rank 0's last window.
        quality: of the last evaluation, None before the first.
        target_quality: that it should reach, None if that is not known.
        parts_ns: where rank 0's time went so far.
        slow: by name what is slow now, as the run told.
    """

    phase: str = "starting"
    step: int = 0
    num_steps: int = 0
    epoch: int = 0
    num_epochs: int = 0
    samples_per_s: float = 0.0
    loss: float | None = None
    quality: float | None = None
    segment: int = 0
    seconds_per_step: float = 0.0
    target_quality: float | None = None
    parts_ns: dict[str, int] = field(default_factory=dict)
    slow: dict[str, StragglerNote] = field(default_factory=dict)

    @property
    def eta_s(self) -> float | None:
        """Seconds of training left at the speed of the last window; None while nothing is known."""
        if not self.num_steps or not self.seconds_per_step:
            return None
        return (self.num_steps - self.step) * self.seconds_per_step

    def describe_time(self) -> str:
        """Quality against the target, and where rank 0's time went, the most first; empty before the first window."""
        total_ns = sum(self.parts_ns.values())
        if not total_ns:
            return ""
        ordered = sorted(self.parts_ns, key=lambda name: -self.parts_ns[name])
        shares = {name.replace("_", " "): 100 * self.parts_ns[name] / total_ns for name in ordered}
        parts = [f"{name} {share:.0f} %" for name, share in shares.items() if share > 0]
        quality = "none yet" if self.quality is None else f"{self.quality:.4f}"
        target = "" if self.target_quality is None else f" of {self.target_quality:g}"
        return f"quality {quality}{target}; time: {', '.join(parts)}"

    def describe(self) -> str:
        """The state in a few words; short, since a terminal of 80 columns cuts what does not fit."""
        parts = [] if self.phase == "training" else [self.phase]
        if self.num_epochs:
            parts.append(f"epoch {min(self.epoch + 1, self.num_epochs)}/{self.num_epochs}")
        if self.loss is not None:
            parts.append(f"{self.samples_per_s:.1f} images/s, loss {self.loss:.3f}")
        if self.quality is not None:
            parts.append(f"quality {self.quality:.4f}")
        if self.segment:
            parts.append(f"resumed {self.segment}x")
        if self.slow:
            parts.append(f"slow: {', '.join(list(self.slow)[:2])}{' and others' if len(self.slow) > 2 else ''}")
        return ", ".join(parts)


def _whole_lines(path: Path, offset: int) -> bytes:
    """The lines of a file from an offset on, without one that is still being written; none if there is no file."""
    if not path.exists():
        return b""
    with path.open("rb") as file:
        file.seek(offset)
        text = file.read()
    return text[: text.rfind(b"\n") + 1]


class RunFollower:
    """Reads what a run has written since the last look.

    Args:
        run_folder: folder of the run; it need not exist yet.
        num_epochs: epochs it will train.
        num_ranks: its ranks as configured, each of which does the same number of steps.
        target_quality: that it should reach, if that is known.
    """

    def __init__(
        self, run_folder: Path, *, num_epochs: int, num_ranks: int, target_quality: float | None = None
    ) -> None:
        self.state = RunState(num_epochs=num_epochs, target_quality=target_quality)
        self._run_folder = run_folder
        self._num_ranks = num_ranks
        self._segment = self._offset = self._notes_offset = 0
        self._steps_per_epoch = 0

    def poll(self) -> RunState:
        """Take in the new lines of all segments; a line that is still being written is left for the next time."""
        self._read_new_lines()
        while ledger_path(self._run_folder, self._segment + 1, node=0).parent.exists():
            self._segment, self._offset = self._segment + 1, 0
            self._read_new_lines()
        self._read_new_notes()
        return self.state

    def _read_new_notes(self) -> None:
        whole = _whole_lines(self._run_folder / STRAGGLERS_NAME, self._notes_offset)
        self._notes_offset += len(whole)
        for note in read_notes(whole):
            if note.is_slow and note.segment == self.state.segment:
                self.state.slow[note.name] = note
            else:
                self.state.slow.pop(note.name, None)

    def _read_new_lines(self) -> None:
        whole = _whole_lines(ledger_path(self._run_folder, self._segment, node=0), self._offset)
        self._offset += len(whole)
        for line in whole.splitlines():
            at = line.rfind(RANK_0)
            if at < 0:
                continue  # of another rank of the node, or a line that a full disk cut
            entry = json.loads(line[at:])
            self._take(entry["event"], entry["value"])

    def _take(self, event: str, value: dict[str, Any]) -> None:
        state = self.state
        if event == "run_open":
            state.segment, state.phase = value["segment"], "starting"
            state.slow.clear()  # the segment's ranks may be on other nodes
            self._num_ranks = value["num_ranks"]
        elif event == "resume":
            state.epoch = value["epoch"]
            state.step = value["epoch"] * self._steps_per_epoch + value["step"]
        elif event == "data_open":
            state.phase = "building the model"
            self._steps_per_epoch = value["steps_per_epoch"]
            state.num_steps = self._steps_per_epoch * state.num_epochs
        elif event == "clock_start":
            state.phase = "training"
        elif event == "window":
            state.phase, state.epoch = "training", value["epoch"]
            done_in_epoch = value["first_step"] + value["num_steps"]
            state.step = value["epoch"] * self._steps_per_epoch + done_in_epoch
            state.loss = value["loss_sum"] / value["num_steps"]
            duration_s = value["duration_ns"] / 1e9
            state.samples_per_s = value["samples"] * self._num_ranks / duration_s
            state.seconds_per_step = duration_s / value["num_steps"]
            for part in TIME_PARTS:
                self._spend(part, value[f"{part}_ns"])
        elif event == "epoch_part" and value["first_step"] + value["steps"] == self._steps_per_epoch:
            state.phase = "evaluating"
        elif event == "evaluation":
            state.phase, state.quality = "training", value["quality"]
            self._spend("evaluation", value["duration_ns"])
        elif event in ("evaluation_shard", "checkpoint"):
            self._spend(event.removesuffix("_shard"), value["duration_ns"])
        elif event == "run_close":
            state.phase = value["status"]

    def _spend(self, part: str, duration_ns: int) -> None:
        self.state.parts_ns[part] = self.state.parts_ns.get(part, 0) + duration_ns


class ProgressDisplay:
    """Shows a run while it goes on: a bar on a terminal, a line every ten seconds elsewhere.

    Used as a context manager around the call that waits for the run.
    """

    def __init__(self, follower: RunFollower, *, title: str, console: Console | None = None) -> None:
        self._follower, self._title = follower, title
        self._console = console or Console(stderr=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def __enter__(self) -> ProgressDisplay:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _show(self) -> None:
        if self._console.is_terminal:
            self._show_bar()
        else:
            self._show_lines()

    def _show_bar(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, TextColumn("{task.fields[details]}"), console=self._console) as progress:
            task = progress.add_task(self._title, total=None, details="starting")
            while not self._stop.wait(0.25):
                self._update(progress, task)
            self._update(progress, task)

    def _update(self, progress: Progress, task: Any) -> None:
        state = self._follower.poll()
        progress.update(task, total=state.num_steps or None, completed=state.step, details=state.describe())

    def _show_lines(self) -> None:
        shown, shown_at_s = "", 0.0
        while True:
            stopping = self._stop.wait(0.25)
            state = self._follower.poll()
            line = f"{self._title}: step {state.step}/{state.num_steps or '?'}, {state.describe()}"
            if line != shown and (stopping or time.monotonic() - shown_at_s >= PLAIN_PERIOD_S):
                self._console.print(line, highlight=False, soft_wrap=True)
                shown, shown_at_s = line, time.monotonic()
            if stopping:
                return
