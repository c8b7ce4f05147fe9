"""The DALI pipeline: decoding, resizing and normalising by NVIDIA DALI, on the CPU or on a GPU, from one definition.

DALI has no reader of HDF5 (NVIDIA/DALI issue 1252), so the encoded pictures come through its external source: a thread
reads them ahead, and DALI takes them, with their windows and flips, as inputs. Only the window of a picture is decoded.
"""

from __future__ import annotations

import importlib
import itertools
import logging
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpcai500.errors import BackendUnavailableError, RunError
from hpcai500.pipelines.decode import picture_buffer, render_batch
from hpcai500.pipelines.hdf5 import ImageSplit
from hpcai500.pipelines.image_pipeline import BatchPlan, ImageBatch, ImagePipeline, ImagePipelineConfig, plan_batch

LOG = logging.getLogger(__name__)

Packed = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Bytes of the samples of a batch, end to end, and offsets, as ``ImageSplit.read`` returns them."""


class ReadAhead:
    """Reads the bytes of coming batches in a thread, into buffers that are used again and again."""

    def __init__(self, split: ImageSplit, depth: int) -> None:
        self.split = split
        self.depth = depth
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"read-{split.split}")
        self._buffers: list[NDArray[np.uint8] | None] = [None] * (depth + 1)  # one more: that of the batch in use

    def read(self, todo: list[NDArray[np.int64]]) -> Generator[Packed, None, None]:
        """The bytes of each batch; they stay as they are until the next one is asked for."""
        pending: deque[Future[Packed]] = deque()
        try:
            for step in range(len(todo) + self.depth):
                if step >= self.depth:
                    packed = pending.popleft().result()
                if step < len(todo):
                    pending.append(self._executor.submit(self._read, step % len(self._buffers), todo[step]))
                if step >= self.depth:
                    yield packed
        finally:
            for future in pending:
                if not future.cancel():
                    future.exception()  # waits, so that nobody writes into the buffers later

    def _read(self, slot: int, ids: NDArray[np.int64]) -> Packed:
        packed, offsets = self.split.read(ids, self._buffers[slot])
        self._buffers[slot] = packed if packed.base is None else packed.base
        return packed, offsets

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)


class Graph:
    """DALI's pipeline for one split: encoded pictures and plans in, normalised pictures out."""

    def __init__(self, config: ImagePipelineConfig, split: str) -> None:
        dali = import_dali()
        device = torch.device(config.device)
        training = split == "train"
        self.channels_last = config.channels_last
        self._inputs: Iterator[tuple[Any, ...]] = iter(())
        self._graph = dali.Pipeline(
            batch_size=config.batch_size_per_rank if training else config.validation_batch_size,
            num_threads=max(1, config.num_workers),
            device_id=(device.index or 0) if device.type == "cuda" else None,
            prefetch_queue_depth=config.prefetch,
        )
        with self._graph:
            self._graph.set_outputs(self._define(dali, config, on_gpu=device.type == "cuda", training=training))
        self._graph.build()

    def _define(self, dali: Any, config: ImagePipelineConfig, *, on_gpu: bool, training: bool) -> Any:
        """The graph itself: decode the window, resize, crop, mirror, normalise; as decode.render does."""
        fn, types = dali.fn, dali.types
        encoded, anchors, shapes, resized, top, left, flips = fn.external_source(
            source=lambda: next(self._inputs),
            num_outputs=7,
            batch=True,
            dtype=[types.UINT8, types.INT32, types.INT32, types.FLOAT, types.FLOAT, types.FLOAT, types.INT32],
            ndim=[1, 1, 1, 1, 0, 0, 0],
        )
        images = fn.decoders.image_slice(
            encoded,
            anchors,
            shapes,
            axis_names="HW",
            normalized_anchor=False,
            normalized_shape=False,
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,  # as Pillow; the sizes in the file are those of the header
            jpeg_fancy_upsampling=True,  # as libjpeg-turbo by default, also on the GPU
        )
        images = fn.resize(images, size=resized, interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.crop_mirror_normalize(
            images,
            crop=(config.train_image_size,) * 2 if training else (config.validation_image_size,) * 2,
            crop_pos_y=top,
            crop_pos_x=left,
            mirror=flips,
            mean=[255 * value for value in config.mean],
            std=[255 * value for value in config.std],
            dtype=types.FLOAT,
            output_layout="HWC" if config.channels_last else "CHW",
        )

    def run(self, batches: Iterator[tuple[BatchPlan, Packed]]) -> Iterator[torch.Tensor]:
        """Normalised pictures of each batch: float32, shape (n, 3, side, side), on the device."""
        self._inputs = (graph_inputs(plan, packed) for plan, packed in batches)
        while True:
            try:
                (images,) = self._graph.run()
            except StopIteration:
                self._graph.reset()
                return
            # No copy: DALI's memory lives as long as the tensor that refers to it.
            tensor = torch.utils.dlpack.from_dlpack(images.as_tensor())
            yield tensor.permute(0, 3, 1, 2) if self.channels_last else tensor


def graph_inputs(plan: BatchPlan, packed: Packed) -> tuple[Any, ...]:
    """What the external source hands to DALI for a batch."""
    data, offsets = packed
    bounds = offsets.tolist()
    encoded = [data[first:last] for first, last in itertools.pairwise(bounds)]
    space = plan.resized - plan.side
    # DALI wants the corner as a share of the free space; it rounds share * space to whole pixels.
    corners = (plan.corners / np.maximum(space, 1)).astype(np.float32)
    top, left = np.ascontiguousarray(corners.T)
    windows = np.ascontiguousarray(plan.windows[:, :2]), np.ascontiguousarray(plan.windows[:, 2:])
    return encoded, *windows, plan.resized.astype(np.float32), top, left, plan.flips.astype(np.int32)


class DaliPipeline(ImagePipeline):
    """Batches by NVIDIA DALI.

    DALI gives up a whole batch, and its graph, when one picture does not decode. Then Pillow decodes that batch, names
    or leaves out what is damaged, and a new graph goes on with the next batch.
    """

    def __init__(self, config: ImagePipelineConfig) -> None:
        import_dali()
        super().__init__(config)
        self._readers = {split.split: ReadAhead(split, config.prefetch) for split in (self.train, self.validation)}
        self._graphs: dict[str, Graph] = {}

    def _load(self, split: ImageSplit, epoch: int | None, todo: list[NDArray[np.int64]]) -> Iterator[ImageBatch]:
        done = 0
        while done < len(todo):
            graph = self._graphs.pop(split.split, None) or Graph(self.config, split.split)
            packed = self._readers[split.split].read(todo[done:])
            plans = (plan_batch(self.config, split, epoch, ids) for ids in todo[done:])
            try:
                for images in graph.run(zip(plans, packed, strict=True)):
                    yield self._batch(split, images, todo[done])
                    done += 1
                self._graphs[split.split] = graph  # only a graph that came to its end can be used again
            except RuntimeError as error:
                if "fn.decoders" not in str(error):
                    raise RunError("DALI cannot make a batch; try the pipeline 'torch'") from error
            finally:
                packed.close()
            if done < len(todo):
                yield self._decoded_by_pillow(split, plan_batch(self.config, split, epoch, todo[done]))
                done += 1

    def _batch(self, split: ImageSplit, images: torch.Tensor, ids: NDArray[np.int64]) -> ImageBatch:
        labels = torch.from_numpy(split.labels[ids].astype(np.int64))
        return ImageBatch(images, labels.to(self.device, non_blocking=True), ids)

    def _decoded_by_pillow(self, split: ImageSplit, plan: BatchPlan) -> ImageBatch:
        """A batch that DALI gave up; raises SampleError or leaves samples out, as the settings say."""
        LOG.warning("DALI does not decode a batch of %s; Pillow tries", split.path)
        packed, offsets = split.read(plan.ids)
        pictures = picture_buffer((len(plan.ids),), plan.side, channels_last=self.config.channels_last)
        ids = render_batch(split, plan, packed, offsets, pictures, decode_errors=self.config.decode_errors)
        return self._batch(split, self.normalise(pictures[: len(ids)]), ids)

    def close(self) -> None:
        """End the threads."""
        super().close()
        self._graphs.clear()
        for reader in self._readers.values():
            reader.close()


def import_dali() -> Any:
    """The module nvidia.dali; raises BackendUnavailableError, saying how to get DALI, if it does not import."""
    try:
        dali = importlib.import_module("nvidia.dali")
        importlib.import_module("nvidia.dali.fn")
    except ImportError as error:
        raise BackendUnavailableError(
            "the pipeline 'dali' needs NVIDIA DALI, which does not import here; get it with "
            "`pip install 'hpcai500[dali]'`, or use the pipeline 'torch'"
        ) from error
    return dali
