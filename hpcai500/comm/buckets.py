"""Gradients packed into buckets that travel while the backward pass computes the next ones.

As torch's DistributedDataParallel does (Li et al., "PyTorch Distributed", VLDB 2020, section 3.2): parameters are
packed in reverse order of registration, about the order in which backward finishes them; a full bucket is handed over
at once, always bucket 0 first, so that all ranks hand over in the same order whatever their timing. Each ``.grad``
becomes a view into its bucket, so gradients take no memory twice, and the means need no copying back.

Behind its gradients a bucket carries one number per parameter: 1 if this rank had a gradient, else 0. Its sum tells
which parameters no rank used, without a message of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from hpcai500.comm.calls import Calls, collective
from hpcai500.comm.communicator import GradientExchange
from hpcai500.errors import UsageError

BUCKET_BYTES = 25 * 2**20  # DistributedDataParallel's bucket_cap_mb
SUMMED_BY_ALL = (torch.float32, torch.float64)  # what MPI and Horovod have a sum for
FIRST_BUCKET_BYTES = 2**20  # its first bucket is small, so that communication starts early


class Bucket:
    """Some parameters and one flat tensor for their gradients, on the device of the parameters.

    Attributes:
        flat: (sum of elements + number of parameters,) gradients, then the marks of use.
        host: the same in host memory; ``flat`` itself unless the parameters are on a GPU.
    """

    def __init__(self, index: int, parameters: list[nn.Parameter], *, pin_host: bool = False) -> None:
        self.index = index
        self.parameters = parameters
        num_elements = sum(parameter.numel() for parameter in parameters)
        self.flat = parameters[0].new_zeros(num_elements + len(parameters), requires_grad=False)
        self.host = torch.zeros_like(self.flat, device="cpu", pin_memory=True) if pin_host else self.flat
        self.marks = self.flat[num_elements:]
        self.views: list[Tensor] = []
        offset = 0
        for parameter in parameters:
            part = self.flat[offset : offset + parameter.numel()]
            # The layout of the parameter itself (channels_last), which is what the optimizer reads fastest.
            dense = parameter.is_contiguous() or parameter.is_contiguous(memory_format=torch.channels_last)
            self.views.append(
                part.as_strided(parameter.shape, parameter.stride()) if dense else part.view_as(parameter)
            )
            offset += parameter.numel()
        self.num_missing = len(parameters)
        self.filled = [False] * len(parameters)

    def reset(self) -> None:
        self.num_missing = len(self.parameters)
        self.filled = [False] * len(self.parameters)

    def fill(self, position: int, num_ranks: int) -> None:
        """Take in this rank's part of one parameter's mean; from now on ``.grad`` is the view into the bucket.

        The division costs nothing here, where the gradient is copied anyway, and is hidden behind backward.
        """
        parameter, view = self.parameters[position], self.views[position]
        gradient = parameter.grad
        assert gradient is not None
        assert not self.filled[position], "one backward pass, then finish: gradients may not be accumulated over passes"
        if gradient.data_ptr() != view.data_ptr():
            torch.div(gradient, num_ranks, out=view)
            parameter.grad = view
        else:
            view.div_(num_ranks)
        self.filled[position] = True
        self.num_missing -= 1

    @torch.no_grad()
    def seal(self) -> None:
        """Make the bucket ready to go: parameters without gradient in this pass count as 0, and the marks say which."""
        if self.num_missing == 0:
            self.marks.fill_(1.0)
            return
        for position, view in enumerate(self.views):
            if not self.filled[position]:
                view.zero_()
        self.marks.copy_(torch.tensor(self.filled))

    @torch.no_grad()
    def release(self) -> None:
        """After the exchange: parameters that others used get their mean; those nobody used are left alone."""
        if all(self.filled):
            return
        for position, num_ranks in enumerate(self.marks.tolist()):
            if not self.filled[position] and num_ranks > 0:
                self.parameters[position].grad = self.views[position]


def pack(
    parameters: Iterable[nn.Parameter],
    *,
    bucket_bytes: int,
    pin_host: bool = False,
    dtypes: Sequence[torch.dtype] | None = SUMMED_BY_ALL,
) -> list[Bucket]:
    """Buckets of parameters in reverse order, each of one data type, the first small; equal on all ranks.

    Args:
        parameters: of a module; those that need no gradient are left out.
        bucket_bytes: a bucket is full when it has at least so many bytes of gradients.
        pin_host: give every bucket a copy in host memory.
        dtypes: what the library can sum; None if anything.

    Raises:
        UsageError: a parameter is of another data type.
    """
    buckets: list[Bucket] = []
    current: list[nn.Parameter] = []
    num_bytes = 0
    for parameter in reversed([parameter for parameter in parameters if parameter.requires_grad]):
        if dtypes is not None and parameter.dtype not in dtypes:
            raise UsageError(
                f"gradients of dtype {parameter.dtype} cannot be summed by MPI or Horovod; "
                "keep parameters in float32 (bf16 autocast does) or choose communicator torchdist"
            )
        limit = min(FIRST_BUCKET_BYTES, bucket_bytes) if not buckets else bucket_bytes
        if current and (num_bytes >= limit or current[0].dtype != parameter.dtype):
            buckets.append(Bucket(len(buckets), current, pin_host=pin_host))
            current, num_bytes = [], 0
        current.append(parameter)
        num_bytes += parameter.numel() * parameter.element_size()
    if current:
        buckets.append(Bucket(len(buckets), current, pin_host=pin_host))
    return buckets


class BucketExchange(GradientExchange):
    """The half of a bucketed exchange that does not depend on the library; subclasses move one bucket at a time.

    Calls of ``_start`` come from hooks inside backward, in the order of buckets; ``_wait`` from ``finish``.

    Attributes:
        dtypes: of gradients that the library can sum; None if any.
    """

    dtypes: Sequence[torch.dtype] | None = SUMMED_BY_ALL

    def __init__(
        self,
        module: nn.Module,
        calls: Calls,
        *,
        num_ranks: int,
        bucket_bytes: int = BUCKET_BYTES,
        pin_host: bool = False,
    ) -> None:
        self.module, self.calls, self._num_ranks = module, calls, num_ranks
        self.buckets = pack(module.parameters(), bucket_bytes=bucket_bytes, pin_host=pin_host, dtypes=self.dtypes)
        self._num_started = 0
        for bucket in self.buckets:
            for position, parameter in enumerate(bucket.parameters):
                parameter.register_post_accumulate_grad_hook(self._hook(bucket, position))  # type: ignore[no-untyped-call]

    def _hook(self, bucket: Bucket, position: int) -> Callable[[Tensor], None]:
        def take(_: Tensor) -> None:
            bucket.fill(position, self._num_ranks)
            while self._num_started < len(self.buckets) and self.buckets[self._num_started].num_missing == 0:
                self._start_next()

        return take

    def _start_next(self) -> None:
        bucket = self.buckets[self._num_started]
        self._num_started += 1
        bucket.seal()
        self._start(bucket)

    @collective("exchange of gradients")
    def finish(self) -> None:
        while self._num_started < len(self.buckets):
            self._start_next()
        for bucket in self.buckets:
            self._wait(bucket)
            bucket.release()
            bucket.reset()
        self._num_started = 0

    @abstractmethod
    def _start(self, bucket: Bucket) -> None:
        """Hand over a full bucket; must return soon."""

    @abstractmethod
    def _wait(self, bucket: Bucket) -> None:
        """Return when ``bucket.flat`` holds its sum over ranks, which is the mean of the gradients."""
