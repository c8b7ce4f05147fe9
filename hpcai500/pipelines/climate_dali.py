"""The DALI pipeline of climate fields: batches go through the queue of NVIDIA DALI, from its external source.

DALI has no reader of HDF5 (NVIDIA/DALI issue 1252) and no operator that rolls columns, so the threads of the torch
pipeline read and normalise, on the CPU or the GPU, and DALI's external source takes whole batches as they lie in memory
(batch mode, without its input copy). On a CPU the queue still copies each batch once into memory of its own, which
costs more than it saves for samples of 57 MB: benchmarks/weather_reading.rst has the figures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import torch

from hpcai500.errors import HpcAi500Error, RunError
from hpcai500.pipelines.climate import ClimateSplit
from hpcai500.pipelines.climate_pipeline import (
    BatchPlan,
    BoxBatch,
    ClimatePipeline,
    ClimatePipelineConfig,
    planned_boxes,
)
from hpcai500.pipelines.climate_torch import SampleThreads
from hpcai500.pipelines.dali import import_dali


class Source:
    """What DALI's external source calls for each batch.

    Attributes:
        plans: of the batches that DALI has taken and not yet given back.
        error: what ended the batches early, for DALI may not pass it on.
    """

    def __init__(self, batches: Iterator[tuple[BatchPlan, torch.Tensor]], depth: int) -> None:
        self.plans: deque[BatchPlan] = deque()
        self.error: HpcAi500Error | None = None
        self._batches = batches
        # Without an input copy the memory must last until DALI has worked on it: the depth of its queue, and one.
        self._lent: deque[torch.Tensor] = deque(maxlen=depth + 1)

    def __call__(self) -> Any:
        try:
            plan, images = next(self._batches)  # its StopIteration is how a source says that it has ended
        except HpcAi500Error as error:
            self.error = error
            raise StopIteration from None
        self.plans.append(plan)
        self._lent.append(images)
        return images if images.is_cuda else images.numpy()


def build_graph(config: ClimatePipelineConfig, source: Source, max_batch_size: int) -> Any:
    """DALI's pipeline that takes batches of up to ``max_batch_size`` from ``source`` and gives them out."""
    dali = import_dali()
    device = torch.device(config.device)
    on_gpu = device.type == "cuda"
    graph = dali.Pipeline(
        batch_size=max_batch_size,
        num_threads=max(1, config.num_workers),
        device_id=(device.index or 0) if on_gpu else None,
        prefetch_queue_depth=config.prefetch,
    )
    with graph:
        images = dali.fn.external_source(
            source=source,
            batch=True,
            no_copy=True,
            device="gpu" if on_gpu else "cpu",
            dtype=dali.types.FLOAT,
            ndim=3,
        )
        graph.set_outputs(images)
    graph.build()
    return graph


class DaliClimatePipeline(ClimatePipeline):
    """Batches by NVIDIA DALI."""

    def __init__(self, config: ClimatePipelineConfig) -> None:
        import_dali()
        super().__init__(config)
        # DALI's queue holds what is ready; before it only the batch that is being made.
        self._threads = SampleThreads(replace(config, prefetch=1), self.train)

    def _load(self, split: ClimateSplit, plans: Iterator[BatchPlan]) -> Generator[BoxBatch, None, None]:
        config = self.config
        batches = self._threads.batches(split, plans)
        source = Source(batches, config.prefetch)
        graph = build_graph(config, source, max(config.batch_size_per_rank, config.validation_batch_size))
        try:
            while True:
                try:
                    (images,) = graph.run()
                except StopIteration:
                    break
                except RuntimeError as error:
                    raise RunError("DALI cannot make a batch; try the pipeline 'torch'") from error
                plan = source.plans.popleft()
                # No copy: DALI's memory lives as long as the tensor that refers to it.
                tensor = torch.utils.dlpack.from_dlpack(images.as_tensor())
                boxes, labels = planned_boxes(split, plan, self.device)
                yield BoxBatch(self._threads.in_format(tensor), boxes, labels, plan.ids)
            if source.error is not None:
                raise source.error
        finally:
            batches.close()

    def close(self) -> None:
        """End the threads."""
        super().close()
        self._threads.close()
