"""Names slow nodes while the run goes on: rank 0 keeps quantiles of every rank's own step time.

What is slow shows in a rank's own time, without communication: the others wait for it in their communication. Of each
rank the last NUM_WINDOWS windows are kept, 8 bytes each, so that memory does not grow; of a window 32 bytes a rank
arrive, and 64 bytes a rank hold its host: under 256 bytes a rank altogether.

A network that became slow slows all ranks alike. It shows in the communication of the rank that waits least for others,
against the first windows of the same segment; which link it is cannot be told from that, so it is said of the job.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hpcai500.metrics import STRAGGLER_RATIO
from hpcai500.record import Position
from hpcai500.step_files import STEP_PHASES
from hpcai500.straggler_record import StragglerNote

NUM_WINDOWS = 9  # [ours] odd, so that the median is one of them
MIN_WINDOWS = 5  # [ours] before anything is said; the first window of a segment warms up and never counts
RECOVERED_RATIO = 1 + (STRAGGLER_RATIO - 1) / 2  # [ours] half of what names it, so that nothing flickers
MIN_LOST_S = 1e-3  # [ours] less in a step is the operating system's doing
MAX_NAMED = 10  # at once; more is a job in which everything is slow
MAX_NOTES = 1000  # of a segment
HOST_BYTES = 64  # Linux, HOST_NAME_MAX

DATA_WAIT, COMMUNICATION = STEP_PHASES.index("data_wait"), STEP_PHASES.index("communication")
Subject = tuple[Literal["node", "rank"], int]  # number of the node, or the rank


class StragglerWatch:
    """Takes in window after window of all ranks and says who became slow.

    Args:
        hosts: names of the ranks' hosts as bytes, (num_ranks, HOST_BYTES) of uint8, filled up with zeros.
        segment: of the run.
    """

    def __init__(self, hosts: NDArray[np.uint8], *, segment: int = 0) -> None:
        self._hosts = np.ascontiguousarray(hosts).view(f"S{HOST_BYTES}")[:, 0]
        self._segment = segment
        _, self._nodes = np.unique(self._hosts, return_inverse=True)
        self._node_sizes = np.bincount(self._nodes)
        self._own_s = np.zeros((len(hosts), NUM_WINDOWS), dtype=np.float32)
        self._data_s = np.zeros_like(self._own_s)
        self._num_windows = -1  # the first is not counted
        self._named: set[Subject] = set()
        self._network = _NetworkWatch()
        self._num_notes = 0

    def take(self, window_ns: NDArray[np.int64], num_steps: int, position: Position) -> list[StragglerNote]:
        """Take in a window; what is new, in an order that is worth reading.

        Args:
            window_ns: time by phase, (num_ranks, num_phases).
            num_steps: of the window.
            position: at its end.
        """
        self._num_windows += 1
        if self._num_windows == 0:
            return []
        at = (self._num_windows - 1) % NUM_WINDOWS
        scale = 1e9 * num_steps
        self._data_s[:, at] = window_ns[:, DATA_WAIT] / scale
        self._own_s[:, at] = (window_ns.sum(axis=1) - window_ns[:, COMMUNICATION]) / scale
        filled = min(self._num_windows, NUM_WINDOWS)
        ordered_s = np.sort(self._own_s[:, :filled], axis=1)
        own_s = ordered_s[:, filled // 2]
        usual_s = float(np.median(own_s))
        least_s = float(window_ns[:, COMMUNICATION].min() / scale)
        judged = _Judged(position, ordered_s, own_s, usual_s)
        slow_network = self._network.take(least_s, float(np.median(self._own_s[:, at])))
        if filled < MIN_WINDOWS:
            return []
        notes = self._follow_ranks(judged)
        if slow_network is not None:
            notes.append(self._note_network(judged, is_slow=slow_network))
        notes = notes[: MAX_NOTES - self._num_notes]
        self._num_notes += len(notes)
        return notes

    def _follow_ranks(self, judged: _Judged) -> list[StragglerNote]:
        notes = []
        for subject in sorted(self._named):
            if float(np.median(judged.own_s[self._ranks_of(subject)])) < RECOVERED_RATIO * judged.usual_s:
                self._named.remove(subject)
                notes.append(self._note(subject, judged, is_slow=False))
        new = self._new_subjects(judged)
        new.sort(key=lambda subject: -float(np.median(judged.own_s[self._ranks_of(subject)])))
        for subject in new:
            if len(self._named) >= MAX_NAMED:
                break
            self._named.add(subject)
            notes.append(self._note(subject, judged, is_slow=True))
        return notes

    def _new_subjects(self, judged: _Judged) -> list[Subject]:
        """Slow nodes and ranks that are not named yet; the ranks of a node that is wholly slow are named no longer."""
        slow = judged.slow
        if not slow.any():
            return []
        slow_of_node = np.bincount(self._nodes[slow], minlength=len(self._node_sizes))
        whole = (slow_of_node == self._node_sizes) & (self._node_sizes > 1)
        named_nodes = {number for what, number in self._named if what == "node"}
        new: list[Subject] = [("node", int(node)) for node in np.flatnonzero(whole) if int(node) not in named_nodes]
        self._named -= {(what, rank) for what, rank in self._named if what == "rank" and whole[self._nodes[rank]]}
        for rank in map(int, np.flatnonzero(slow & ~whole[self._nodes])):
            if ("rank", rank) not in self._named and int(self._nodes[rank]) not in named_nodes:
                new.append(("rank", rank))
        return new

    def _ranks_of(self, subject: Subject) -> NDArray[np.int64]:
        what, number = subject
        return np.flatnonzero(self._nodes == number) if what == "node" else np.array([number])

    def _note(self, subject: Subject, judged: _Judged, *, is_slow: bool) -> StragglerNote:
        ranks = self._ranks_of(subject)
        filled = judged.ordered_s.shape[1]
        data_s, own_s = self._data_s[:, :filled], self._own_s[:, :filled]
        lost_data_s = float(np.median(data_s[ranks]) - np.median(data_s))
        lost_compute_s = float(np.median((own_s - data_s)[ranks]) - np.median(own_s - data_s))
        by_data = lost_data_s > lost_compute_s
        return StragglerNote(
            time_ns=time.time_ns(),
            segment=self._segment,
            epoch=judged.position.epoch,
            step=judged.position.step,
            what=subject[0],
            host=self._hosts[ranks[0]].decode(errors="replace"),
            rank=int(ranks[0]),
            num_ranks=len(ranks),
            is_slow=is_slow,
            evidence="data" if by_data else "compute",
            step_s=_quartiles(judged.ordered_s[ranks]),
            usual_s=judged.usual_s,
            lost_s=max(0.0, lost_data_s if by_data else lost_compute_s),
            num_slow=int(judged.slow.sum()),
        )

    def _note_network(self, judged: _Judged, *, is_slow: bool) -> StragglerNote:
        before_s, now_s = self._network.before_s, sorted(self._network.last_s)
        return StragglerNote(
            time_ns=time.time_ns(),
            segment=self._segment,
            epoch=judged.position.epoch,
            step=judged.position.step,
            what="job",
            host="",
            rank=0,
            num_ranks=len(self._hosts),
            is_slow=is_slow,
            evidence="network",
            step_s=_quartiles(np.array([now_s])),
            usual_s=before_s,
            lost_s=max(0.0, statistics.median(now_s) - before_s),
            num_slow=int(judged.slow.sum()),
        )


class _Judged:
    """The ranks as they stand after a window.

    Attributes:
        ordered_s: own time of a step in the last windows, ascending, (num_ranks, num_windows).
        own_s: its median, by rank.
        usual_s: the median of those.
        slow: which ranks are slow.
    """

    def __init__(
        self, position: Position, ordered_s: NDArray[np.float32], own_s: NDArray[np.float32], usual_s: float
    ) -> None:
        self.position, self.ordered_s, self.own_s, self.usual_s = position, ordered_s, own_s, usual_s
        self.slow = own_s > max(STRAGGLER_RATIO * usual_s, usual_s + MIN_LOST_S)


def _quartiles(ordered_s: NDArray[np.float32]) -> tuple[float, float, float]:
    """Over windows, of some ranks the median of each."""
    last = ordered_s.shape[1] - 1
    first, middle, third = (float(np.median(ordered_s[:, round(part * last)])) for part in (0.25, 0.5, 0.75))
    return first, middle, third


class _NetworkWatch:
    """Compares the communication of the rank that waits least with that of the first windows."""

    def __init__(self) -> None:
        self.before_s = 0.0
        self.last_s: deque[float] = deque(maxlen=NUM_WINDOWS)
        self._own_s: deque[float] = deque(maxlen=NUM_WINDOWS)
        self._own_before_s: float | None = None
        self._is_slow = False

    def take(self, least_s: float, own_s: float) -> bool | None:
        """Take in a window; whether the network is slow now, or None if that is nothing new.

        Args:
            least_s: the least communication of a step on any rank.
            own_s: the median over the ranks of their own time of a step.
        """
        self.last_s.append(least_s)
        self._own_s.append(own_s)
        if len(self.last_s) < NUM_WINDOWS:
            return None
        now_s, own_now_s = statistics.median(self.last_s), statistics.median(self._own_s)
        if self._own_before_s is None:
            self.before_s, self._own_before_s = now_s, own_now_s
            return None
        limit_s = max(MIN_LOST_S, (STRAGGLER_RATIO - 1) * (self.before_s + self._own_before_s))
        lost_s = now_s - self.before_s
        is_slow = lost_s > limit_s if not self._is_slow else lost_s > limit_s / 2
        if is_slow == self._is_slow or (is_slow and own_now_s - self._own_before_s > limit_s / 2):
            return None
        self._is_slow = is_slow
        return is_slow
