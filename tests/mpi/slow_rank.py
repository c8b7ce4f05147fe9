"""A rank of a run, of which rank 1 is slow or dies in its second epoch: python slow_rank.py WHAT RUN_FOLDER."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from hpcai500.comm.communicator import end_process
from hpcai500.comm.launchers import find_place
from hpcai500.pipelines.image_pipeline import ImagePipeline
from hpcai500.train import main
from hpcai500.workloads.resnet50 import ResNet50Workload

DELAY_S = float(os.environ.get("SLOW_RANK_DELAY_S", "0.7"))


def slow_loss(loss: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*words: Any) -> Any:
        time.sleep(DELAY_S)
        return loss(*words)

    return slow


def slow_batches(batches: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def slow(*words: Any) -> Iterator[Any]:
        for batch in batches(*words):
            time.sleep(DELAY_S)
            yield batch

    return slow


def mortal_batches(batches: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def mortal(self: Any, epoch: int, *words: Any) -> Iterator[Any]:
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return batches(self, epoch, *words)

    return mortal


if __name__ == "__main__":
    if find_place().rank == 1 and sys.argv[1] == "compute":
        ResNet50Workload.loss = slow_loss(ResNet50Workload.loss)
    if find_place().rank == 1 and sys.argv[1] == "data":
        ImagePipeline.train_batches = slow_batches(ImagePipeline.train_batches)
    if find_place().rank == 1 and sys.argv[1] == "die":
        ImagePipeline.train_batches = mortal_batches(ImagePipeline.train_batches)
    end_process(main(sys.argv[2:]))
