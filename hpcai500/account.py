"""The account a rank keeps while it trains: where each nanosecond went, what it lost, which samples it used.

``PhaseTimer`` splits time, ``EpochAccount`` turns it into ledger lines: one a window of steps, one an epoch or part
of it.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcai500.collector import StepRecorder
from hpcai500.errors import DivergedError
from hpcai500.ledger import LedgerWriter
from hpcai500.pipelines.pipeline import Batch
from hpcai500.record import Position
from hpcai500.sample_order import sample_digest
from hpcai500.step_files import STEP_PHASES


class PhaseTimer:
    """Splits the passing time into phases and loses none: a lap gives all time since the last lap to a phase."""

    def __init__(self) -> None:
        self.phase_ns = dict.fromkeys(STEP_PHASES, 0)
        self._last_ns = time.perf_counter_ns()

    def lap(self, phase: str) -> None:
        """Give the time since the last lap to ``phase``."""
        now_ns = time.perf_counter_ns()
        self.phase_ns[phase] += now_ns - self._last_ns
        self._last_ns = now_ns

    def skip(self) -> None:
        """Forget the time since the last take: it is accounted for elsewhere, or between two steps."""
        self.take()
        self._last_ns = time.perf_counter_ns()

    def take(self) -> dict[str, int]:
        """Return the time of each phase since the last take, in ns, and begin anew."""
        taken, self.phase_ns = self.phase_ns, dict.fromkeys(STEP_PHASES, 0)
        return taken


class DeviceWait:
    """For how long a CUDA device waits until the gradients of all ranks are there.

    The host runs ahead of the device, so its own times do not tell: at the end of a window the hosts of all ranks have
    waited alike for their devices. Events on the device's stream before and behind the exchange do.
    """

    def __init__(self) -> None:
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._num_steps = 0

    def begin(self) -> None:
        """Note that the backward pass is over, once the device has come that far."""
        if self._num_steps == len(self._events):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            self._events.append((begin, end))
        self._events[self._num_steps][0].record()

    def end(self) -> None:
        """Note that the gradients are there, once the device has come that far."""
        self._events[self._num_steps][1].record()
        self._num_steps += 1

    def take(self) -> int:
        """Return the time between begin and end of all steps since the last take, in ns; waits for the device."""
        waited_ms = 0.0
        for begin, end in self._events[: self._num_steps]:
            end.synchronize()
            waited_ms += begin.elapsed_time(end)
        self._num_steps = 0
        return int(waited_ms * 1e6)


class EpochAccount:
    """The account of one epoch on one rank, from its first step or from where the run is resumed.

    A window of ``report_steps`` steps is one ledger line. Losses are looked at in every step on a CPU; on a CUDA
    device a look waits for the device, so they are looked at when the window is full.
    """

    def __init__(
        self,
        ledger: LedgerWriter,
        recorder: StepRecorder,
        *,
        rank: int,
        position: Position,
        report_steps: int,
        on_cuda: bool,
    ) -> None:
        self._ledger, self._recorder = ledger, recorder
        self._rank, self._report_steps, self._on_cuda = rank, report_steps, on_cuda
        self._epoch, self._first_step = position
        self._losses: list[Tensor] = []
        self._ids: list[NDArray[np.int64]] = []
        self._window_ns = dict.fromkeys(STEP_PHASES, 0)
        self._device_wait = DeviceWait() if on_cuda else None
        self._num_checked = 0
        self._window_first_step = self._first_step
        self._loss_sum = 0.0
        self._begin_part()

    def _begin_part(self) -> None:
        self._steps = self._samples = self._digest = 0
        self._first_learning_rate = self._learning_rate = math.nan

    def begin_exchange(self) -> None:
        """Call it between the backward pass and waiting for the gradients of all ranks."""
        if self._device_wait is not None:
            self._device_wait.begin()

    def end_exchange(self) -> None:
        """Call it once that was waited for."""
        if self._device_wait is not None:
            self._device_wait.end()

    def enter_step(self, batch: Batch, loss: Tensor, learning_rate: float, timer: PhaseTimer) -> None:
        """Enter a finished step.

        Raises:
            DivergedError: its loss is not finite, or one of the window's on a CUDA device.
            RecordError: the ledger cannot be written.
        """
        if self._steps == 0:
            self._first_learning_rate = learning_rate
        self._steps += 1
        self._learning_rate = learning_rate
        self._losses.append(loss)
        self._ids.append(batch.ids)
        window_is_full = len(self._losses) == self._report_steps
        if window_is_full or not self._on_cuda:
            self._check_losses()
        timer.lap("forward_backward")  # on a CUDA device looking at the losses waited for forward and backward
        phase_ns = timer.take()
        for phase, amount_ns in phase_ns.items():
            self._window_ns[phase] += amount_ns
        self._recorder.add(phase_ns)
        if window_is_full:
            self._close_window()
            timer.lap("communication")  # of the next step: the ranks have met

    def close_part(self, *, skipped: int, epoch_digest: int | None = None) -> None:
        """Write the last window and the line of the steps since the epoch or its last part began.

        Args:
            skipped: pictures of these steps that this rank left out because they do not decode.
            epoch_digest: digest over the samples of all ranks in the whole epoch, as the seed implies it; rank 0 gives
                it with the epoch's last part.
        """
        if self._losses:
            self._check_losses()
            self._close_window()
        value: dict[str, object] = {"epoch": self._epoch, "first_step": self._first_step, "steps": self._steps}
        value |= {"samples": self._samples, "skipped": skipped, "sample_digest": str(self._digest)}
        value |= {"learning_rate_first": self._first_learning_rate, "learning_rate_last": self._learning_rate}
        if epoch_digest is not None:
            value["epoch_digest"] = str(epoch_digest)
        self._ledger.write("epoch_part", value)
        self._first_step += self._steps
        self._begin_part()

    def _check_losses(self) -> None:
        for offset in range(self._num_checked, len(self._losses)):
            value = float(self._losses[offset])
            if not math.isfinite(value):
                raise DivergedError(
                    f"the loss of rank {self._rank} is {value} at epoch {self._epoch}, step "
                    f"{self._window_first_step + offset}; try a lower learning rate, a longer warm-up or precision fp32"
                )
            self._loss_sum += value
        self._num_checked = len(self._losses)

    def _close_window(self) -> None:
        if self._device_wait is not None:  # what the device waited, the host has waited for in the passes
            hidden_ns = max(0, self._device_wait.take() - self._window_ns["communication"])
            hidden_ns = min(hidden_ns, self._window_ns["forward_backward"])
            self._window_ns["communication"] += hidden_ns
            self._window_ns["forward_backward"] -= hidden_ns
        ids = np.concatenate(self._ids)  # one digest of many samples takes a tenth of the time of many of few
        self._samples += len(ids)
        self._digest = (self._digest + sample_digest(ids)) % 2**64
        value: dict[str, object] = {"epoch": self._epoch, "first_step": self._window_first_step}
        value |= {"num_steps": len(self._losses), "samples": len(ids), "loss_sum": self._loss_sum}
        value |= {"learning_rate": self._learning_rate, "duration_ns": sum(self._window_ns.values())}
        value |= {f"{phase}_ns": amount_ns for phase, amount_ns in self._window_ns.items()}
        self._ledger.write("window", value)
        position = Position(self._epoch, self._window_first_step + len(self._losses))
        self._recorder.close_window(self._window_ns, len(self._losses), position)
        self._window_first_step += len(self._losses)
        self._losses, self._ids, self._num_checked, self._loss_sum = [], [], 0, 0.0
        self._window_ns = dict.fromkeys(STEP_PHASES, 0)
