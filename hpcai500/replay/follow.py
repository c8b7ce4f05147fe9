"""Shows how far a replay is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hpcai500.progress import RunFollower, RunState
from hpcai500.replay.stretch import Stretch


class ReplayFollower(RunFollower):
    """Reads what the ranks of a replay have written, and counts the steps of the stretch only."""

    def __init__(self, folder: Path, stretch: Stretch) -> None:
        super().__init__(folder, num_epochs=0, num_ranks=stretch.segment.num_ranks)
        self._stretch = stretch

    def poll(self) -> RunState:
        """See RunFollower; a bar begins at the first step that is replayed."""
        state = super().poll()
        first = self._stretch.start.epoch * self._steps_per_epoch + self._stretch.start.step
        num_steps = self._stretch.num_steps
        step = max(0, state.step - first)
        phase = "done" if step >= num_steps else state.phase
        return dataclasses.replace(state, step=step, num_steps=num_steps, phase=phase)
