"""micro.json: what ``hpcai500 micro`` measured of a machine, as typed records; hpcai500/roofline.py reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from hpcai500.errors import RecordError
from hpcai500.events import Count, NotNegative, Positive, Text
from hpcai500.formats import read_record

TRIAD = "triad"  # name of the memory's rate
MICRO_NAME = "micro.json"  # beside a submission or in a run's folder it is drawn in the report
Phase = Literal["forward", "backward", "optimizer"]
Measured = Annotated[float, Meta(gt=1e-12, lt=1e21)]  # seconds, bytes/s and flop/s of anything there is


class Spread(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Median, mean, least and most of some repeats of one measurement, in the unit of what holds them."""

    median: Measured
    mean: Measured
    least: Measured
    most: Measured
    num_repeats: Positive


class Kernel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One operation of a training step with the shapes it has there.

    Attributes:
        name: of the operation, such as "aten.convolution".
        kind: what it counts as, such as "convolution".
        phase: where in a step it was first called.
        operands: its tensors, as "f32 16x3x224x224".
        dtype: of its largest tensor of floats; "" if it has none.
        num_calls: in a step.
        flop: of one call; 2 a multiply-add, convolutions and matrix products only.
        num_bytes: that one call must move at least: each operand is read once and each result written once.
        seconds: of one call, with operands that no cache holds.
    """

    name: Text
    kind: Text
    phase: Phase
    operands: str
    dtype: str
    num_calls: Positive
    flop: Count
    num_bytes: Count
    seconds: Spread


class TrainingStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A training step of one workload on one rank, without communication and input.

    Attributes:
        size: of the rules, whose input shape it has.
        batch_size: samples of a rank.
        gradient_bytes: that the ranks sum in a step.
        sample_bytes: of one sample as it is stored, so what a step must read for each; null if that is not known.
        seconds: of whole steps, measured in turns with the kernels.
        kernels: what it is made of.
    """

    workload: Text
    size: Text
    precision: Text
    batch_size: Positive
    input_shape: list[Positive]
    gradient_bytes: Positive
    sample_bytes: NotNegative | None
    seconds: Spread
    kernels: list[Kernel]


class Rate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rate of one rank.

    Attributes:
        name: what was measured, such as "triad".
        subject: number format, file or size of message.
        unit: flop/s or bytes/s.
        value: in that unit.
    """

    name: Text
    subject: str
    unit: Literal["flop/s", "bytes/s"]
    value: Spread


class RankLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one rank measured while all others did.

    Attributes:
        device: its name.
        rates: alone and with the others.
        step_s: seconds of a step of each of the record's steps, in their order: the sum over its kernels.
        errors: what could not be measured, and why.
    """

    rank: Count
    host: Text
    device: Text
    rates: list[Rate]
    step_s: list[Measured]
    errors: dict[str, str]


class MicroRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """micro.json.

    Attributes:
        created: Unix time in s.
        is_quick: short measurements of small shapes, which say nothing of the official size.
        ranks: in their order.
        steps: kernels with the median over ranks.
    """

    format: Literal[1] = 1
    version: Text
    created: Count
    is_quick: bool
    communicator: Text
    num_threads: Positive
    ranks: list[RankLimits]
    steps: list[TrainingStep]

    @property
    def num_nodes(self) -> int:
        """Machines of different names."""
        return len({rank.host for rank in self.ranks})


def spread_of(values: Sequence[float]) -> Spread:
    """Of repeats, at least one."""
    mean = sum(values) / len(values)
    return Spread(median=median(values), mean=mean, least=min(values), most=max(values), num_repeats=len(values))


def joined(spreads: Sequence[Spread]) -> Spread:
    """Of the same measurement on several ranks: the median rank, and the extremes of all."""
    return Spread(
        median=median(one.median for one in spreads),
        mean=sum(one.mean for one in spreads) / len(spreads),
        least=min(one.least for one in spreads),
        most=max(one.most for one in spreads),
        num_repeats=sum(one.num_repeats for one in spreads),
    )


def read_micro(path: Path) -> MicroRecord:
    """Read a micro.json.

    Raises:
        RecordError: it cannot be read or is none, or a rank has no triad or a step no work.
    """
    record = read_record(path, MicroRecord)
    if not record.ranks or not all(any(rate.name == TRIAD for rate in rank.rates) for rank in record.ranks):
        raise RecordError(f"{str(path)!r} has not the memory's rate of every rank; measure again with `hpcai500 micro`")
    for step in record.steps:
        if not any(kernel.flop and kernel.num_bytes for kernel in step.kernels):
            raise RecordError(f"{str(path)!r} has a step of {step.workload} without work; measure it again")
    return record
