"""How fast a training step can be on a machine of which ``hpcai500 micro`` measured the limits, and what limits it.

The roofline (Williams, Waterman and Patterson, CACM 52(4), 2009) says that work of F flop that moves Q bytes takes at
least max(F / peak, Q / bandwidth). Here it is applied to each operation of a training step, and the sum over all is
what the device allows. Of the other limits each is one of its own, since network and input work while the device
computes: the longest of all decides.

::

    device     sum over operations of  calls x max(flop / peak, bytes / triad)
    network    2 (n - 1) / n x gradient bytes / bus bandwidth       of a ring, as nccl-tests define it
    storage    samples x stored bytes / rate of reading
    decoding   samples x stored bytes / rate of decoding

Another sum, of calls x the measured time of each operation, predicts the step itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from hpcai500.micro_record import TRIAD, Kernel, MicroRecord, RankLimits, Rate, TrainingStep

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
PRODUCT, ALL_REDUCE = "matrix product", "all-reduce"
READ, DECODE = "HDF5 read", "JPEG decode"
GENERATED = "generated"  # begins the subject of what was read from files made for the measurement: no limit of a run
INPUT_SUBJECTS = {"resnet50": "pictures", "fasterrcnn": "fields"}


class Limit(NamedTuple):
    """Something that a step cannot be faster than: its name, and seconds of a step if there were nothing else."""

    name: str
    step_s: float


class KindShare(NamedTuple):
    """All operations of one kind in a step.

    Attributes:
        kind: their name.
        num_calls: in a step.
        seconds: of all calls together.
        share: of the sum over all kinds.
        flops: that they reach.
        bytes_per_s: that they move at least.
        bound_s: what the roofline allows.
    """

    kind: str
    num_calls: int
    seconds: float
    share: float
    flops: float
    bytes_per_s: float
    bound_s: float


@dataclass(frozen=True)
class StepRoofline:
    """A training step beneath the limits of the machine; all of one rank, and of the median rank.

    Attributes:
        step: that it is of.
        num_ranks: that exchange gradients.
        peak_flops: by number format, the best that a large product or any operation of the record reached.
        memory_bytes_per_s: of the triad.
        network_bytes_per_s: bus bandwidth of the all-reduce; None where one rank measured alone.
        limits: the longest first.
    """

    step: TrainingStep
    num_ranks: int
    peak_flops: dict[str, float]
    memory_bytes_per_s: float
    network_bytes_per_s: float | None
    limits: tuple[Limit, ...]

    @property
    def flop(self) -> int:
        """Of a step."""
        return sum(kernel.num_calls * kernel.flop for kernel in self.step.kernels)

    @property
    def num_bytes(self) -> int:
        """That a step moves to and from memory at least, operation by operation."""
        return sum(kernel.num_calls * kernel.num_bytes for kernel in self.step.kernels)

    @property
    def sent_bytes(self) -> float:
        """That a rank sends in a step."""
        return sent_bytes(self.step.gradient_bytes, self.num_ranks)

    @property
    def predicted_s(self) -> float:
        """Seconds of a step: the sum over its operations as they were measured."""
        return sum(map(kernel_seconds, self.step.kernels))

    @property
    def agreement(self) -> float:
        """The prediction as a share of the measured step, mean by mean, so that what disturbs both counts in both."""
        return self.predicted_s / self.step.seconds.mean

    @property
    def allowed_samples_per_s(self) -> float:
        """Of a rank, if nothing but the limits counted."""
        return self.step.batch_size / self.limits[0].step_s

    @property
    def flop_per_sample(self) -> float:
        """Of training."""
        return self.flop / self.step.batch_size

    @property
    def allowed_flops(self) -> float:
        """Of a rank, in flop/s."""
        return self.flop / self.limits[0].step_s

    @property
    def precision(self) -> str:
        """Number format of most of its flop."""
        return DTYPES.get(max(self.step.kernels, key=lambda one: one.num_calls * one.flop).dtype, "fp32")


def roofline_of(record: MicroRecord, step: TrainingStep, *, num_ranks: int | None = None) -> StepRoofline:
    """The limits of a step.

    Args:
        record: of the machine.
        step: one of the record's.
        num_ranks: that exchange gradients; the record's by default.
    """
    size = num_ranks or len(record.ranks)
    peaks = _peaks(record)
    memory = median_rate(record.ranks, TRIAD)
    assert memory is not None, "a record without a triad is never written"
    network = median_rate(record.ranks, ALL_REDUCE)
    limits = [Limit("device", sum(_bound_s(kernel, peaks, memory) for kernel in step.kernels))]
    if network and size > 1:
        limits.append(Limit("network", sent_bytes(step.gradient_bytes, size) / network))
    subject = INPUT_SUBJECTS.get(step.workload, "")
    for name, rate in (("storage", READ), ("decoding", DECODE)):
        value = median_rate(record.ranks, rate, subject)
        if value and step.sample_bytes:
            limits.append(Limit(name, step.batch_size * step.sample_bytes / value))
    limits.sort(key=lambda limit: -limit.step_s)
    return StepRoofline(step, size, peaks, memory, network, tuple(limits))


def sent_bytes(gradient_bytes: int, num_ranks: int) -> float:
    """What each of the ranks sends to sum gradients in a ring: 2 (n - 1) / n times them.

    Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", JPDC 69(2), 2009: no
    algorithm sends less.
    """
    return 2 * (num_ranks - 1) / num_ranks * gradient_bytes


def median_rate(ranks: Sequence[RankLimits], name: str, subject: str = "") -> float | None:
    """Of the median rank, the best of what has the name and a subject that begins so; None if nothing has."""
    best = [max(found) for rank in ranks if (found := list(_values(rank.rates, name, subject)))]
    return median(best) if best else None


def _values(rates: Iterable[Rate], name: str, subject: str) -> Iterable[float]:
    return (rate.value.median for rate in rates if rate.name == name and rate.subject.startswith(subject))


def kernel_seconds(kernel: Kernel) -> float:
    """Of all calls in a step: of so many the mean is what adds up, whatever disturbs some."""
    return kernel.num_calls * kernel.seconds.mean


def _peaks(record: MicroRecord) -> dict[str, float]:
    """By number format, the best of the square products and of all operations of all steps."""
    kernels = [kernel for step in record.steps for kernel in step.kernels if kernel.flop]
    peaks: dict[str, float] = {}
    for dtype, precision in DTYPES.items():
        rates = [kernel.flop / kernel.seconds.median for kernel in kernels if kernel.dtype == dtype]
        product = median_rate(record.ranks, PRODUCT, precision)
        if rates or product:
            peaks[precision] = max([*rates, product or 0.0])
    return peaks


def _bound_s(kernel: Kernel, peaks: dict[str, float], memory_bytes_per_s: float) -> float:
    """All calls of an operation at the roof; as measured where that is less, since small operands lie in caches."""
    peak = peaks.get(DTYPES.get(kernel.dtype, ""))
    compute_s = kernel.flop / peak if peak and kernel.flop else 0.0
    roof_s = max(compute_s, kernel.num_bytes / memory_bytes_per_s)
    return min(kernel.num_calls * roof_s, kernel_seconds(kernel))


def kind_shares(roofline: StepRoofline) -> list[KindShare]:
    """The kinds of operations in a step, the longest first."""
    kinds: dict[str, list[Kernel]] = {}
    for kernel in roofline.step.kernels:
        kinds.setdefault(kernel.kind, []).append(kernel)
    total_s = roofline.predicted_s
    shares = [_share(kind, kernels, roofline, total_s) for kind, kernels in kinds.items()]
    return sorted(shares, key=lambda share: -share.seconds)


def _share(kind: str, kernels: Sequence[Kernel], roofline: StepRoofline, total_s: float) -> KindShare:
    seconds = sum(map(kernel_seconds, kernels))
    return KindShare(
        kind,
        sum(kernel.num_calls for kernel in kernels),
        seconds,
        seconds / total_s,
        sum(kernel.num_calls * kernel.flop for kernel in kernels) / seconds,
        sum(kernel.num_calls * kernel.num_bytes for kernel in kernels) / seconds,
        sum(_bound_s(kernel, roofline.peak_flops, roofline.memory_bytes_per_s) for kernel in kernels),
    )


def matching_step(
    record: MicroRecord, *, workload: str, precision: str, input_shape: Sequence[int], batch_size: int
) -> TrainingStep | None:
    """The measured step most like a run's: of the same workload, precision and shape, with the nearest batch size."""
    same = [
        step
        for step in record.steps
        if (step.workload, step.precision, step.input_shape) == (workload, precision, list(input_shape))
    ]
    return min(same, key=lambda step: abs(step.batch_size - batch_size), default=None)
