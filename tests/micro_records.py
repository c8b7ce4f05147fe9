"""Records of an invented machine, whose figures are round enough to compute with by head."""

from __future__ import annotations

from typing import Any

from hpcai500.micro_record import Kernel, MicroRecord, RankLimits, Rate, Spread, TrainingStep

PEAK, MEMORY, NETWORK, READING, DECODING = 1e12, 1e11, 1e9, 4e6, 8e6
SAMPLE_BYTES = 1e5


def spread(value: float) -> Spread:
    """A measurement whose median and mean are the value."""
    return Spread(median=value, mean=value, least=value / 2, most=value * 2, num_repeats=3)


def rate(name: str, subject: str, value: float) -> Rate:
    return Rate(
        name=name, subject=subject, unit="flop/s" if name == "matrix product" else "bytes/s", value=spread(value)
    )


def kernel(name: str, kind: str, **changes: Any) -> Kernel:
    words: dict[str, Any] = {"phase": "forward", "operands": "float32 8x3x32x32", "dtype": "float32", "num_calls": 1}
    return Kernel(name=name, kind=kind, **{**words, "flop": 0, "num_bytes": 1, **changes})


# At the roof: 50 convolutions of 10^9 flop at 10^12 flop/s, 50 ms, and 10 sums of 10^8 bytes at 10^11 bytes/s, 10 ms.
KERNELS = [
    kernel("aten.convolution", "convolution", num_calls=50, flop=10**9, num_bytes=10**6, seconds=spread(2e-3)),
    kernel("aten.add", "elementwise", num_calls=10, num_bytes=10**8, seconds=spread(2e-3)),
]


def step(**changes: Any) -> TrainingStep:
    """One whose kernels take 120 ms, and 60 ms at the roof; 100 MB of gradients."""
    words: dict[str, Any] = {
        "workload": "resnet50",
        "size": "smoke",
        "precision": "fp32",
        "batch_size": 16,
        "input_shape": [3, 32, 32],
        "gradient_bytes": 10**8,
        "sample_bytes": SAMPLE_BYTES,
        "seconds": spread(0.125),
        "kernels": KERNELS,
    }
    return TrainingStep(**{**words, **changes})


def rank(number: int, *, has_network: bool = True, has_input: bool = True, **changes: Any) -> RankLimits:
    rates = [rate("matrix product", "fp32, 64 x 64", PEAK), rate("triad", "fp64, three arrays", MEMORY)]
    if has_network:
        rates += [rate("all-reduce", "1 MB", NETWORK / 4), rate("all-reduce", "100 MB", NETWORK)]
    if has_input:
        rates += [rate("HDF5 read", "pictures", READING), rate("JPEG decode", "pictures", DECODING)]
    words: dict[str, Any] = {"host": f"node{number + 1}", "device": "A processor", "step_s": [0.12], "errors": {}}
    return RankLimits(rank=number, rates=rates, **{**words, **changes})


def record(*, num_ranks: int = 2, steps: list[TrainingStep] | None = None, **of_ranks: Any) -> MicroRecord:
    return MicroRecord(
        version="0",
        created=0,
        is_quick=False,
        communicator="mpi",
        num_threads=1,
        ranks=[rank(number, **of_ranks) for number in range(num_ranks)],
        steps=[step()] if steps is None else steps,
    )
