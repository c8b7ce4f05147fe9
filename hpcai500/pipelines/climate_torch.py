"""The torch pipeline of climate fields: threads that read and normalise, and the reference for other pipelines.

Threads, not processes: preadv and torch's operations let go of the interpreter, and nothing has to be copied between
processes. A sample is read right into its place in the batch and normalised there; batches are memory that is used
again once no tensor refers to it. For a GPU each thread reads into a pinned sample of its own, which goes to the device
and is normalised there into its place.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from hpcai500.pipelines.climate import ClimateSplit
from hpcai500.pipelines.climate_pipeline import (
    BatchPlan,
    BoxBatch,
    ClimatePipeline,
    ClimatePipelineConfig,
    planned_boxes,
)
from hpcai500.pipelines.climate_transform import Transform, Turn
from hpcai500.pipelines.normalise import BufferPool


class GpuWorkspace:
    """What one thread needs besides to bring samples to a GPU: a raw one on the host and on the device, a stream."""

    def __init__(self, shape: tuple[int, int, int], device: torch.device) -> None:
        self.raw = torch.empty(shape, dtype=torch.float32, pin_memory=True)
        self.on_device = torch.empty(shape, dtype=torch.float32, device=device)
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Workspace:
    """What one thread works with."""

    def __init__(self, transform: Transform, shape: tuple[int, int, int], device: torch.device) -> None:
        self.scratch = transform.scratch()
        self.gpu = GpuWorkspace(shape, device) if device.type == "cuda" else None


class InWork(NamedTuple):
    """A batch that threads are filling."""

    plan: BatchPlan
    images: torch.Tensor
    samples: list[Future[None]]
    """One for each sample; done when it is in place and checked."""


class SampleThreads:
    """Reads and normalises the samples of one split's files into batches on the device.

    Args:
        config: of the pipeline.
        split: any split, for the statistics and the shape.
    """

    def __init__(self, config: ClimatePipelineConfig, split: ClimateSplit) -> None:
        self.config = config
        self.device = torch.device(config.device)
        self.shape = split.shape
        self.transform = Transform(split.statistics, split.shape, self.device)
        self._pool = BufferPool()
        self._local = threading.local()
        self._executor: ThreadPoolExecutor | None = None
        if config.num_workers > 0:
            self._executor = ThreadPoolExecutor(config.num_workers, thread_name_prefix="read-climate")
            started = threading.Barrier(config.num_workers)
            for future in [self._executor.submit(_start_thread, started) for _ in range(config.num_workers)]:
                future.result()
            # What a thread sets holds for itself and for threads to come, the latter of which are not its affair.
            torch.set_num_threads(torch.get_num_threads())

    def batches(
        self, split: ClimateSplit, plans: Iterator[BatchPlan]
    ) -> Generator[tuple[BatchPlan, torch.Tensor], None, None]:
        """Each plan with its images, float32 (n, 16, height, width), contiguous, on the device."""
        if self._executor is None:
            for plan in plans:
                images = self._take(len(plan.ids))
                free = self._freed_event()
                for index, turn, out in zip(plan.ids, plan.turns, images, strict=True):
                    self._make(split, int(index), turn, out, free)
                yield plan, images
            return
        pending: deque[InWork] = deque()
        try:
            for plan in plans:
                pending.append(self._submit(self._executor, split, plan))
                if len(pending) > self.config.prefetch:
                    yield self._finish(pending)
            while pending:
                yield self._finish(pending)
        finally:
            for batch in pending:
                for future in batch.samples:
                    if not future.cancel():
                        future.exception()  # waits, so that nobody writes into the batch later

    def _submit(self, executor: ThreadPoolExecutor, split: ClimateSplit, plan: BatchPlan) -> InWork:
        images = self._take(len(plan.ids))
        free = self._freed_event()
        work = zip(plan.ids, plan.turns, images, strict=True)
        return InWork(
            plan, images, [executor.submit(self._make, split, int(index), turn, out, free) for index, turn, out in work]
        )

    @staticmethod
    def _finish(pending: deque[InWork]) -> tuple[BatchPlan, torch.Tensor]:
        for future in pending[0].samples:
            future.result()
        batch = pending.popleft()
        return batch.plan, batch.images

    def _take(self, num_samples: int) -> torch.Tensor:
        shape = (num_samples, *self.shape)
        if self.device.type != "cpu":
            return torch.empty(shape, dtype=torch.float32, device=self.device)
        return self._pool.take(num_samples * self.shape[0] * self.shape[1] * self.shape[2]).view(shape)

    def _freed_event(self) -> torch.cuda.Event | None:
        """On a GPU: after which the memory just taken is free, for its last user may still be at work."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _make(
        self, split: ClimateSplit, index: int, turn: Turn, out: torch.Tensor, free: torch.cuda.Event | None
    ) -> None:
        """Read, normalise and check one sample; when this returns it lies in ``out``, also on a GPU."""
        work = self._workspace()
        if work.gpu is None:
            split.read(index, out.numpy())
            means = self.transform(out, out, turn, work.scratch).tolist()
        else:
            assert free is not None
            split.read(index, work.gpu.raw.numpy())
            with torch.cuda.stream(work.gpu.stream):
                work.gpu.on_device.copy_(work.gpu.raw, non_blocking=True)
                work.gpu.stream.wait_event(free)
                means = self.transform(work.gpu.on_device, out, turn, work.scratch).tolist()  # waits for the stream
        split.check_means(index, means, mirrored=turn.mirror)

    def _workspace(self) -> Workspace:
        if not hasattr(self._local, "workspace"):
            self._local.workspace = Workspace(self.transform, self.shape, self.device)
        workspace: Workspace = self._local.workspace
        return workspace

    def in_format(self, images: torch.Tensor) -> torch.Tensor:
        """The batch in the memory format of the settings; channels last costs a transposed copy, once a batch."""
        if not self.config.channels_last:
            return images
        if self.device.type != "cpu":
            return images.contiguous(memory_format=torch.channels_last)
        n, channels, height, width = images.shape
        out = self._pool.take(images.numel()).view(n, height, width, channels).permute(0, 3, 1, 2)
        return out.copy_(images)

    def close(self) -> None:
        """End the threads."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)


def _start_thread(started: threading.Barrier) -> None:
    """Threads read side by side; each works alone, or they would wait for one another's teams."""
    torch.set_num_threads(1)
    started.wait()


class TorchClimatePipeline(ClimatePipeline):
    """Batches by threads of this process."""

    def __init__(self, config: ClimatePipelineConfig) -> None:
        super().__init__(config)
        self._threads = SampleThreads(config, self.train)

    def _load(self, split: ClimateSplit, plans: Iterator[BatchPlan]) -> Generator[BoxBatch, None, None]:
        for plan, images in self._threads.batches(split, plans):
            boxes, labels = planned_boxes(split, plan, self.device)
            yield BoxBatch(self._threads.in_format(images), boxes, labels, plan.ids)

    def close(self) -> None:
        """End the threads."""
        super().close()
        self._threads.close()
