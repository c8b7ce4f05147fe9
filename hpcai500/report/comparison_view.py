"""What the page says of several subjects side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from hpcai500.report import amounts
from hpcai500.report.compare import Comparison, Ratio
from hpcai500.report.curves import draw_scaling
from hpcai500.report.subject import Subject
from hpcai500.report.svg import About

MAX_VALUE = 120  # characters of a setting side by side


def comparison_view(comparison: Comparison, subjects: Sequence[Subject]) -> dict[str, Any]:
    """All that the template needs."""
    return {
        "names": [subject.name for subject in subjects],
        "warnings": comparison.warnings,
        "rows": _figure_rows(subjects),
        "ratios": [
            (name, [("1", "")] + [_ratio_texts(ratio) for ratio in ratios]) for name, ratios in comparison.ratios
        ],
        "differences": [
            (difference.kind, difference.name, [value[:MAX_VALUE] for value in difference.values])
            for difference in comparison.differences
        ],
        "scaling": _scaling_view(comparison),
    }


def _ratio_texts(ratio: Ratio | None) -> tuple[str, str]:
    if ratio is None:
        return amounts.NOTHING, ""
    return amounts.ratio_text(ratio.value), f"{ratio.low:.3g} to {ratio.high:.3g}"


def _figure_rows(subjects: Sequence[Subject]) -> list[tuple[str, list[str]]]:
    """The figures of each subject, one a column."""
    summaries = [subject.summary for subject in subjects]

    def row(name: str, texts: list[str]) -> tuple[str, list[str]]:
        return name, texts

    return [
        row("Verdict", [_word(subject) for subject in subjects]),
        row("VFLOPS", [amounts.flops_text(one.vflops) if one else amounts.NOTHING for one in summaries]),
        row("95 % interval", [_interval(one.vflops_interval) if one else amounts.NOTHING for one in summaries]),
        row("FLOPS", [amounts.flops_text(one.flops) if one else amounts.NOTHING for one in summaries]),
        row("Quality", [amounts.quality_text(one.achieved_quality) if one else amounts.NOTHING for one in summaries]),
        row("Ranked clock", [amounts.seconds_text(one.wall_s if one else None) for one in summaries]),
        row("Training alone", [amounts.seconds_text(one.train_s if one else None) for one in summaries]),
        row("Devices", [f"{one.machine.num_devices:,}" if one.machine else amounts.NOTHING for one in subjects]),
        row("VFLOPS a device", [_per_device(subject) for subject in subjects]),
    ]


def _word(subject: Subject) -> str:
    if subject.verdict is None:
        return "not judged"
    return "VALID" if subject.verdict.valid else "INVALID"


def _interval(interval: tuple[float, float]) -> str:
    low, high = map(amounts.flops_text, interval)
    return f"{low} to {high}"


def _per_device(subject: Subject) -> str:
    if subject.summary is None or subject.machine is None:
        return amounts.NOTHING
    return amounts.flops_text(subject.summary.vflops / subject.machine.num_devices)


def _scaling_view(comparison: Comparison) -> dict[str, Any] | None:
    points = comparison.scaling
    if not points:
        return None
    first, last = points[0], points[-1]
    sentence = (
        f"Each of {last.num_devices:,} devices reaches {amounts.share_text(last.efficiency)} of what each of "
        f"{first.num_devices:,} reaches."
    )
    drawing: Markup = draw_scaling(
        About("scaling", "Scaling", f"VFLOPS over the number of devices. {sentence}"), points
    )
    return {"sentence": sentence, "drawing": drawing, "points": points}
