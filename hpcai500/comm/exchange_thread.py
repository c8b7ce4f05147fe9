"""Exchanges of gradients that run in a thread of their own while backward goes on, in full precision or as bfloat16.

As bfloat16 a bucket takes half the bytes. No library here sums bfloat16 on processors as it should: MPI and Horovod
have no such type, and a sum that is rounded to 8 bits at every hop stands still where many ranks agree (256 + 1 = 256).
So ranks only ever send bfloat16 and add in float32: an all-to-all gives each rank its part of the bucket from all
others, the rank adds them in the order of ranks, and an all-gather spreads the sums. This is an all-reduce by
reduce-scatter and all-gather (Thakur, Rabenseifner, Gropp, IJHPCA 19(1), 2005, section 4.5), and a gradient is rounded
twice, however many ranks there are: off its float32 mean by at most 2**-8 times the mean of magnitudes, and 2**-8 of
itself.
"""

from __future__ import annotations

import queue
import threading
from abc import abstractmethod

import torch
from torch import Tensor, nn

from hpcai500.comm.buckets import Bucket, BucketExchange
from hpcai500.comm.calls import Calls


class ExchangeThread(BucketExchange):
    """Sums full buckets one after the other, in the order of buckets, in a thread; subclasses say how one is summed."""

    def __init__(
        self, module: nn.Module, calls: Calls, *, num_ranks: int, device: str, stages_on_host: bool = False
    ) -> None:
        super().__init__(module, calls, num_ranks=num_ranks, pin_host=stages_on_host and device.startswith("cuda"))
        # A stream of its own: on the default one a copy would queue behind the whole backward pass.
        self._stream = torch.cuda.Stream(device) if device.startswith("cuda") else None  # type: ignore[no-untyped-call]
        self._ready: queue.SimpleQueue[tuple[Bucket, torch.cuda.Event | None] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="hpcai500-exchange", daemon=True)
        self._thread.start()

    def _start(self, bucket: Bucket) -> None:
        filled = None
        if self._stream is not None:
            filled = torch.cuda.current_stream(bucket.flat.device).record_event()
        self._ready.put((bucket, filled))

    def _wait(self, bucket: Bucket) -> None:
        error = self._done.get()  # in the order of buckets
        if error is not None:
            raise error

    def _serve(self) -> None:
        while (job := self._ready.get()) is not None:
            bucket, filled = job
            try:
                if self._stream is None or filled is None:
                    self._sum(bucket)
                else:
                    with torch.cuda.stream(self._stream):
                        self._stream.wait_event(filled)
                        self._sum(bucket)
                        self._stream.synchronize()
                self._done.put(None)
            except Exception as error:
                self._done.put(error)

    @abstractmethod
    def _sum(self, bucket: Bucket) -> None:
        """Overwrite ``bucket.flat`` with its sum over ranks; on a GPU by work of the current stream."""

    def close(self) -> None:
        """End the thread."""
        self._ready.put(None)
        self._thread.join()


class CompressedExchange(ExchangeThread):
    """Buckets travel as bfloat16 and are added in float32; subclasses move the bytes."""

    def __init__(
        self, module: nn.Module, calls: Calls, *, rank: int, num_ranks: int, device: str, stages_on_host: bool = False
    ) -> None:
        self._rank = rank
        super().__init__(module, calls, num_ranks=num_ranks, device=device)
        longest = max((bucket.flat.numel() for bucket in self.buckets), default=0)
        length = -(-longest // num_ranks) * num_ranks
        pin = stages_on_host and device.startswith("cuda")
        # One pair for all buckets, since one bucket is on its way at a time.
        self._sent = torch.zeros(
            length, dtype=torch.bfloat16, device="cpu" if stages_on_host else device, pin_memory=pin
        )
        self._received = torch.zeros_like(self._sent, pin_memory=pin)

    def _sum(self, bucket: Bucket) -> None:
        num_elements = bucket.flat.numel()
        part = -(-num_elements // self._num_ranks)
        sent, received = self._sent[: part * self._num_ranks], self._received[: part * self._num_ranks]
        sent[:num_elements].copy_(bucket.flat)
        self._all_to_all(received, sent)
        own = sent[part * self._rank : part * (self._rank + 1)]
        own.copy_(torch.sum(received.view(self._num_ranks, part), 0, dtype=torch.float32))
        self._all_gather(received, own)
        bucket.flat.copy_(received[:num_elements])

    @abstractmethod
    def _all_to_all(self, received: Tensor, sent: Tensor) -> None:
        """Part k of ``sent`` goes to rank k; part k of ``received`` comes from rank k. Parts are of equal length."""

    @abstractmethod
    def _all_gather(self, received: Tensor, own: Tensor) -> None:
        """Part k of ``received`` is what rank k has as ``own``."""
