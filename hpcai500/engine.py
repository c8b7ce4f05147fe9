"""The training loop. Every timed region is visible in ``_train_epoch``, and every nanosecond belongs to one phase.

A step's phases, in their order: waiting for data, forward and backward, communication that backward did not hide,
optimizer. Evaluation and checkpoints are timed apart. Every few seconds the ranks look up from their steps together
(hpcai500/pauses.py), to write a checkpoint or to stop; a run that is resumed goes on to the bit as if it had never
stopped. On a CUDA device the phases are those of the host, which runs
ahead of the device; the end of a window waits for it, so the duration of a window is the device's, and events on the
device tell how much of it was communication.

Normalisation statistics are those of a rank's own batch, as in the reference recipe; their running averages are
averaged over the ranks before each evaluation.
"""

from __future__ import annotations

import functools
import time
import traceback
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hpcai500.account import EpochAccount, PhaseTimer
from hpcai500.checkpoint import Checkpoints, State
from hpcai500.collector import StepRecorder
from hpcai500.comm.communicator import Communicator
from hpcai500.errors import RecordError, RunError, StoppedError
from hpcai500.ledger import LedgerWriter
from hpcai500.out_of_memory import is_out_of_memory, largest_batch
from hpcai500.pauses import LOOK_PERIOD_S, JointLook, StopRequests
from hpcai500.pipelines.pipeline import Batch, Pipeline
from hpcai500.qualities import quality_named
from hpcai500.record import Position
from hpcai500.sample_order import epoch_order, sample_digest
from hpcai500.workloads.workload import Evaluation, Shard, Workload


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long to train, how often to look, and from which seed.

    Attributes:
        num_epochs: epochs to train.
        evaluation_period_epochs: an evaluation follows every so many epochs, and always the last.
        report_steps: steps of a window, for which one ledger line is written.
        seed: of the initial weights, the order of samples and their augmentation.
        quality: the measure, as the workload's rules name it.
    """

    num_epochs: int
    evaluation_period_epochs: int
    report_steps: int
    seed: int
    quality: str


class Engine:
    """Trains a workload on the ranks of a communicator and writes down what happened."""

    def __init__(
        self,
        schedule: Schedule,
        *,
        workload: Workload,
        pipeline: Pipeline,
        comm: Communicator,
        ledger: LedgerWriter,
        recorder: StepRecorder,
        checkpoints: Checkpoints,
        stop_requests: StopRequests | None = None,
    ) -> None:
        self.schedule = schedule
        self.position = Position(0, 0)
        self.evaluation: Evaluation | None = None  # the last one
        self.workload, self.pipeline, self.comm = workload, pipeline, comm
        self.ledger, self.recorder, self.checkpoints = ledger, recorder, checkpoints
        torch.manual_seed(schedule.seed)
        self.model = workload.build_model()
        comm.broadcast_module(self.model)
        self.optimizer = workload.build_optimizer(self.model)
        compression = workload.settings["gradient_compression"]
        self.exchange = comm.exchange(self.model, self.optimizer, compression=compression)
        self.scaler = torch.amp.GradScaler("cuda", enabled=workload.settings["precision"] == "fp16")
        # A look is what notices that a checkpoint is due, so it comes at least as often.
        period_s = min(LOOK_PERIOD_S, checkpoints.every_s or LOOK_PERIOD_S)
        self.look = JointLook(comm, stop_requests, period_s=period_s)

    def train(self) -> None:
        """Train what is left; the ranked clock runs from before the first batch is read to after the last evaluation.

        Raises:
            StoppedError: the ranks were asked to stop; a checkpoint is written.
            DivergedError: the loss is no longer finite; the message names the step.
            SampleError: a sample cannot be read and the settings do not allow to skip it.
            RunError: a rank was left without a single sample in a step.
            RecordError: the ledger or a checkpoint cannot be written.
        """
        num_epochs, period = self.schedule.num_epochs, self.schedule.evaluation_period_epochs
        self.ledger.write("clock_start", {"wall_ns": time.time_ns()})
        for epoch in range(self.position.epoch, num_epochs):
            self._train_epoch()
            completed = epoch + 1
            if completed % period == 0 or completed == num_epochs:
                self._evaluate(completed)
            if completed < num_epochs:
                self._pause()
        self.ledger.write("clock_stop", {"wall_ns": time.time_ns()})

    def replay(self, num_steps: int) -> None:
        """Train so many steps of the epoch under way and write what they lost: no evaluation, no checkpoint.

        Raises: as ``train``.
        """
        self.ledger.write("clock_start", {"wall_ns": time.time_ns()})
        self._train_epoch(num_steps)
        self.ledger.write("clock_stop", {"wall_ns": time.time_ns()})

    def _train_epoch(self, num_steps: int | None = None) -> None:
        """Train what is left of the epoch under way, or only so many of its steps."""
        epoch, first_step = self.position
        end = self.pipeline.num_steps_per_epoch
        if num_steps is not None:
            end = min(end, first_step + num_steps)
        account = EpochAccount(
            self.ledger,
            self.recorder,
            rank=self.comm.rank,
            position=self.position,
            report_steps=self.schedule.report_steps,
            on_cuda=self.workload.device.startswith("cuda"),
        )
        self._num_skipped = self.pipeline.num_skipped
        self.model.train()
        timer = PhaseTimer()
        batches = self.pipeline.train_batches(epoch, first_step)
        for step in range(first_step, end):
            batch = next(batches)
            timer.lap("data_wait")

            learning_rate = self._set_learning_rate(epoch, step)
            loss = self._forward_backward(batch)
            timer.lap("forward_backward")

            account.begin_exchange()
            self.exchange.finish()
            account.end_exchange()
            timer.lap("communication")

            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            timer.lap("optimizer")

            account.enter_step(batch, loss, learning_rate, timer)
            self.position = Position(epoch, step + 1)
            if self.look.is_due() and step + 1 < end:
                self._pause(account)
                timer.skip()
        account.close_part(skipped=self._newly_skipped(), epoch_digest=self._epoch_digest(epoch))
        self.recorder.close_epoch(epoch)
        self.position = Position(epoch + 1, 0)

    def _pause(self, account: EpochAccount | None = None) -> None:
        """Look up from the steps with all ranks: write a checkpoint if one is due, stop if one was asked to.

        Args:
            account: of the epoch under way; None between two epochs.
        """
        decision = self.look.look(checkpoint_is_due=self.comm.rank == 0 and self.checkpoints.is_due())
        if not decision.checkpoint:
            return
        if account is not None:
            account.close_part(skipped=self._newly_skipped())
        self._save()
        if decision.stop:
            if account is not None:
                self.recorder.close_epoch(self.position.epoch)
            raise StoppedError(decision.stop, epoch=self.position.epoch, step=self.position.step)

    def _newly_skipped(self) -> int:
        before, self._num_skipped = self._num_skipped, self.pipeline.num_skipped
        return self._num_skipped - before

    def _save(self) -> None:
        """Write a checkpoint on rank 0, with what each rank has of its own."""
        begin_ns = time.perf_counter_ns()
        own = {"buffers": dict(self.model.named_buffers()), "rng": torch.get_rng_state()}
        if self.workload.device.startswith("cuda"):
            own["cuda_rng"] = torch.cuda.get_rng_state(self.workload.device)
        ranks = self.comm.gather({name: _to_host(value) for name, value in own.items()})
        saved: dict[str, str] = {}
        if ranks is not None:
            state: State = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            state |= {"scaler": self.scaler.state_dict(), "ranks": ranks}
            saved = self.checkpoints.save(self.position, state)
        saved = self.comm.broadcast(saved)
        duration_ns = time.perf_counter_ns() - begin_ns
        self.ledger.write("checkpoint", {**self.position._asdict(), **saved, "duration_ns": duration_ns})

    def restore(self, position: Position, state: State) -> None:
        """Go on from a checkpoint. With another number of ranks than it was made on, no rank's own state fits.

        Then normalisation statistics are the mean over the ranks it was made on, as an evaluation would take them, and
        the random generators stay as the seed made them.

        Raises:
            RecordError: the state is not one of this model and these settings.
        """
        try:
            self._restore(position, state)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            words = str(error).partition("\n")[0]
            message = f"the checkpoint of epoch {position.epoch}, step {position.step} is none of this run: {words}"
            raise RecordError(f"{message}; use another, or begin the run again") from None

    def _restore(self, position: Position, state: State) -> None:
        self.position = position
        self.model.load_state_dict(state["model"])
        options = _options(self.optimizer)
        self.optimizer.load_state_dict(state["optimizer"])
        if _options(self.optimizer) != options:
            raise ValueError("its optimizer has other momentum or weight decay than the run's settings")
        for parameter, kept in self.optimizer.state.items():
            if any(value is not None and value.shape != parameter.shape for value in kept.values()):
                raise ValueError("what its optimizer remembers has not the shape of the parameters")
        self.scaler.load_state_dict(state["scaler"])
        ranks = state["ranks"]
        same = len(ranks) == self.comm.size
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                values = [ranks[self.comm.rank]] if same else ranks
                stacked = torch.stack([value["buffers"][name] for value in values])
                buffer.copy_(stacked.mean(0) if buffer.is_floating_point() else stacked[0])
        if same:
            torch.set_rng_state(ranks[self.comm.rank]["rng"])
            if "cuda_rng" in ranks[self.comm.rank] and self.workload.device.startswith("cuda"):
                torch.cuda.set_rng_state(ranks[self.comm.rank]["cuda_rng"], self.workload.device)

    def _set_learning_rate(self, epoch: int, step: int) -> float:
        steps_per_epoch = self.pipeline.num_steps_per_epoch
        learning_rate = self.workload.learning_rate(
            epoch * steps_per_epoch + step, steps_per_epoch=steps_per_epoch, num_epochs=self.schedule.num_epochs
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        return learning_rate

    def _forward_backward(self, batch: Batch) -> Tensor:
        """Loss of a batch, without its graph; the gradients are in the parameters, or on their way to the other ranks.

        Raises:
            RunError: memory ran out; the message names the largest batch that fits.
        """
        try:
            loss = self._loss(batch)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold what the step had allocated
            words = str(error).partition("\n")[0]
        self.optimizer.zero_grad(set_to_none=True)
        fits = largest_batch(self._loss, list(self.model.parameters()), batch)
        what_to_do = (
            f"{fits} is the largest that fits: use --set batch_size_per_rank={fits}"
            if fits
            else "not even one sample fits: use a device with more memory, or a smaller precision or size"
        )
        raise RunError(
            f"rank {self.comm.rank} runs out of memory with batch_size_per_rank = {len(batch.ids)} ({words}); "
            + what_to_do
        )

    def _loss(self, batch: Batch) -> Tensor:
        if len(batch.ids) == 0:
            raise RunError(
                f"rank {self.comm.rank} is left without a sample in a step, since all of its batch was skipped; "
                "`hpcai500 data check` lists the damaged ones"
            )
        return self.workload.loss(self.exchange.module, batch)

    def _epoch_digest(self, epoch: int) -> int | None:
        """Digest of all samples that seed and epoch give to the ranks; only rank 0 computes it."""
        if self.comm.rank != 0:
            return None
        num_samples = self.pipeline.num_train_samples
        order = epoch_order(self.schedule.seed, epoch, num_samples)
        return sample_digest(order[: num_samples - self.pipeline.num_dropped_per_epoch])

    def _evaluate(self, completed_epochs: int) -> None:
        """Evaluate exactly: each validation sample counts once, whatever the number of ranks."""
        begin_ns = time.perf_counter_ns()
        self.comm.average_buffers(self.model)
        self.model.eval()
        self.evaluation = self.workload.begin_evaluation()
        for batch in self.pipeline.validation_batches():
            with torch.inference_mode():  # not round the pipeline, whose buffers would be of no use in training
                self.evaluation.add(self.model, batch)
        shard = self.evaluation.shard()
        value = {"epoch": completed_epochs, **shard._asdict(), "duration_ns": time.perf_counter_ns() - begin_ns}
        self.ledger.write("evaluation_shard", value)
        parts = self.comm.gather((shard, self.evaluation.detail()))
        if parts is not None:
            self._judge(completed_epochs, parts)

    def _judge(self, completed_epochs: int, parts: list[tuple[Shard, Any]]) -> None:
        """On rank 0: the quality, from the shards of all ranks."""
        begin_ns = time.perf_counter_ns()
        assert self.evaluation is not None
        total = functools.reduce(Shard.plus, (shard for shard, _ in parts))
        curves = self.evaluation.curves(total, [detail for _, detail in parts])
        value: dict[str, object] = {"epoch": completed_epochs, "samples": total.samples, "counts": total.counts}
        value |= {"curves": curves}
        value |= {"quality": quality_named(self.schedule.quality).compute(total.samples, total.counts, curves)}
        value |= {"loss": None if total.loss_sum is None else total.loss_sum / total.samples}
        self.ledger.write("evaluation", value | {"duration_ns": time.perf_counter_ns() - begin_ns})


def _options(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What the settings say of each group of parameters; the learning rate is set at each step, fused at the first."""
    return [
        {name: value for name, value in group.items() if name not in ("params", "lr", "initial_lr", "fused")}
        for group in optimizer.param_groups
    ]


def _to_host(value: object) -> object:
    """Copies in host memory of a tensor or a table of tensors, which other ranks can be sent."""
    if isinstance(value, dict):
        return {name: _to_host(part) for name, part in value.items()}
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value
