"""The training loop. Every timed region is visible in ``_train_epoch``, and every nanosecond belongs to one phase.

A step's phases, in their order: waiting for data, forward and backward, communication that backward did not hide,
optimizer. Evaluation and checkpoints are timed apart. On a CUDA device the phases are those of the host, which runs
ahead of the device; the end of a window waits for it, so the duration of a window is the device's.

Normalisation statistics are those of a rank's own batch, as in the reference recipe; their running averages are
averaged over the ranks before each evaluation.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcai500.account import EpochAccount, PhaseTimer
from hpcai500.checkpoint import Checkpoints
from hpcai500.collector import StepRecorder
from hpcai500.comm.communicator import Communicator
from hpcai500.errors import RunError
from hpcai500.ledger import LedgerWriter
from hpcai500.pipelines.pipeline import Batch, Pipeline
from hpcai500.pipelines.sampling import epoch_order, sample_digest
from hpcai500.workloads.workload import ShardCounts, Workload


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long to train, how often to look, and from which seed.

    Attributes:
        num_epochs: epochs to train.
        evaluation_period_epochs: an evaluation follows every so many epochs, and always the last.
        report_steps: steps of a window, for which one ledger line is written.
        seed: of the initial weights, the order of samples and their augmentation.
    """

    num_epochs: int
    evaluation_period_epochs: int
    report_steps: int
    seed: int


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
    ) -> None:
        self.schedule = schedule
        self.workload, self.pipeline, self.comm = workload, pipeline, comm
        self.ledger, self.recorder, self.checkpoints = ledger, recorder, checkpoints
        torch.manual_seed(schedule.seed)
        self.model = workload.build_model()
        comm.broadcast_module(self.model)
        self.optimizer = workload.build_optimizer(self.model)
        self.exchange = comm.exchange(self.model, self.optimizer)
        self.scaler = torch.amp.GradScaler("cuda", enabled=workload.settings["precision"] == "fp16")

    def train(self) -> None:
        """Train all epochs; the ranked clock runs from before the first batch is read to after the last evaluation.

        Raises:
            DivergedError: the loss is no longer finite; the message names the step.
            SampleError: a picture does not decode and the settings do not allow to skip it.
            RunError: a rank was left without a single picture in a step.
            RecordError: the ledger or a checkpoint cannot be written.
        """
        num_epochs, period = self.schedule.num_epochs, self.schedule.evaluation_period_epochs
        self.comm.barrier()
        self.ledger.write("clock_start", {"wall_ns": time.time_ns()})
        for epoch in range(num_epochs):
            self._train_epoch(epoch)
            completed = epoch + 1
            if completed % period == 0 or completed == num_epochs:
                self._evaluate(completed)
            if self.checkpoints.is_due(completed) and self.comm.rank == 0:
                self.ledger.write("checkpoint", self.checkpoints.save(completed, self.model, self.optimizer))
        self.ledger.write("clock_stop", {"wall_ns": time.time_ns()})

    def _train_epoch(self, epoch: int) -> None:
        account = EpochAccount(
            self.ledger,
            self.recorder,
            rank=self.comm.rank,
            epoch=epoch,
            report_steps=self.schedule.report_steps,
            on_cuda=self.workload.device.startswith("cuda"),
        )
        skipped_before = self.pipeline.num_skipped
        self.model.train()
        timer = PhaseTimer()
        batches = self.pipeline.train_batches(epoch)
        for step in range(self.pipeline.num_steps_per_epoch):
            batch = next(batches)
            timer.lap("data_wait")

            learning_rate = self._set_learning_rate(epoch, step)
            loss = self._loss(batch)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            timer.lap("forward_backward")

            self.exchange.finish()
            timer.lap("communication")
            timer.move("forward_backward", "communication", self.exchange.exposed_in_backward_ns)

            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            timer.lap("optimizer")

            account.enter_step(batch, loss.detach(), learning_rate, timer)
        account.close(skipped=self.pipeline.num_skipped - skipped_before, epoch_digest=self._epoch_digest(epoch))
        self.recorder.close_epoch(epoch, self.comm)

    def _set_learning_rate(self, epoch: int, step: int) -> float:
        steps_per_epoch = self.pipeline.num_steps_per_epoch
        learning_rate = self.workload.learning_rate(
            epoch * steps_per_epoch + step, steps_per_epoch=steps_per_epoch, num_epochs=self.schedule.num_epochs
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        return learning_rate

    def _loss(self, batch: Batch) -> Tensor:
        if len(batch.ids) == 0:
            raise RunError(
                f"rank {self.comm.rank} is left without a picture in a step, since all of its batch was skipped; "
                "`hpcai500 data check` lists the damaged pictures"
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
        shard = ShardCounts(0, 0, 0.0)
        with torch.inference_mode():
            for batch in self.pipeline.validation_batches():
                shard = shard.plus(self.workload.evaluate(self.model, batch))
        duration_ns = time.perf_counter_ns() - begin_ns
        value = {"epoch": completed_epochs, **shard._asdict(), "duration_ns": duration_ns}
        self.ledger.write("evaluation_shard", value)
        total = ShardCounts(0, 0, 0.0)
        for shard_of_rank in self.comm.allgather(shard):
            total = total.plus(shard_of_rank)
        if self.comm.rank == 0:
            quality, loss = total.correct / total.samples, total.loss_sum / total.samples
            counts = {"epoch": completed_epochs, "samples": total.samples, "correct": total.correct}
            self.ledger.write("evaluation", {**counts, "quality": quality, "loss": loss})
