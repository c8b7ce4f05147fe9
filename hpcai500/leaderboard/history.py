"""The ranking that was published in 2020, before there was a board.

The rows of 2020 are of rules/data/hpcai500_ranking_2020.csv: unverified, and never ranked beside what a board verified.
"""

from __future__ import annotations

import csv
import functools

import msgspec

from hpcai500.edition import RULES_FOLDER, load_edition
from hpcai500.metrics import flops_2020, vflops

RANKING_2020 = RULES_FOLDER / "data/hpcai500_ranking_2020.csv"
PUBLISHED_EXPONENT, STATED_EXPONENT = 10, 5  # the table reproduces with the first; the benchmark's text says the second
PETA = 1e15


class Row2020(msgspec.Struct, frozen=True, kw_only=True):
    """A row as published, and its score recomputed from its own time and quality, in 1e15 flop/s.

    ``is_quality_assumed`` where no quality can be read; the target is taken then, which reproduces the score.
    """

    rank: int
    system: str
    published_pflops: float
    recomputed_pflops_n10: float
    recomputed_pflops_n5: float
    minutes: float
    top1_percent: float | None
    is_quality_assumed: bool
    hardware: str
    num_accelerators: int
    framework: str
    remark: str


@functools.cache
def ranking_of_2020() -> tuple[Row2020, ...]:
    """The published ranking, with the errors that are known of it."""
    lines = [line for line in RANKING_2020.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return tuple(_row_of(cells) for cells in csv.DictReader(lines))


def _row_of(cells: dict[str, str]) -> Row2020:
    size = load_edition().workload("resnet50").size("official")
    assert size.flop_per_sample_2020 is not None
    top1_percent = float(cells["top1_percent"]) if cells["top1_percent"] else None
    minutes = float(cells["minutes"])
    rate = flops_2020(size.flop_per_sample_2020, size.epochs, size.num_train_samples, minutes * 60)
    quality = size.target_quality if top1_percent is None else top1_percent / 100
    scores = {n: vflops(rate, quality, size.target_quality, n) / PETA for n in (PUBLISHED_EXPONENT, STATED_EXPONENT)}
    return Row2020(
        rank=int(cells["rank"]),
        system=cells["system"],
        published_pflops=float(cells["vpflops_published"]),
        recomputed_pflops_n10=scores[PUBLISHED_EXPONENT],
        recomputed_pflops_n5=scores[STATED_EXPONENT],
        minutes=minutes,
        top1_percent=top1_percent,
        is_quality_assumed=top1_percent is None,
        hardware=cells["hardware_as_printed"],
        num_accelerators=int(cells["num_accelerators_as_printed"]),
        framework=cells["framework_as_printed"],
        remark=cells["remark"],
    )
