"""Amounts as people read them: a number with its unit, four digits at most, and a dash for what is not known."""

from __future__ import annotations

from hpcai500.verdict import format_flops

NOTHING = "-"


def flops_text(value: float | None, unit: str = "FLOPS") -> str:
    """A rate with an SI prefix."""
    if value is None:
        return NOTHING
    return (format_flops(value).removesuffix("FLOPS") + unit).rstrip()


def prefixed(value: float | None, unit: str) -> str:
    """Any amount with an SI prefix, as "1.234 kJ"."""
    return NOTHING if value is None else format_flops(value).removesuffix("FLOPS") + unit


def seconds_text(value: float | None) -> str:
    """A time: "12.34 ms", "42.1 s", "12 min 05 s" or "3 h 05 min"."""
    if value is None:
        return NOTHING
    if abs(value) < 0.9995:
        return f"{1000 * value:.3g} ms" if value else "0 s"
    if abs(value) < 300:
        return f"{value:.1f} s" if abs(value) >= 10 else f"{value:.2f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 180:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours:,} h {minutes:02d} min"


def quality_text(value: float | None) -> str:
    """A quality, a fraction of 1."""
    return NOTHING if value is None else f"{value:.4f}"


def share_text(value: float | None) -> str:
    """A fraction of 1 as percent."""
    if value is None:
        return NOTHING
    percent = 100 * value
    return (
        f"{percent:.0f} %"
        if abs(percent) >= 9.95
        else f"{percent:.1f} %"
        if abs(percent) >= 0.0995
        else f"{percent:.2g} %"
    )


def rate_text(value: float | None, unit: str) -> str:
    """A rate, as "1,234 images/s"."""
    return NOTHING if value is None else f"{value:,.4g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def ratio_text(value: float | None) -> str:
    """How many times as much."""
    return NOTHING if value is None else f"{value:.3g} x" if value < 100 else f"{value:,.0f} x"


def bytes_text(value: float | None) -> str:
    """Bytes of memory with a binary prefix."""
    if value is None:
        return NOTHING
    power = 0
    while value >= 1024 and power < 5:
        value, power = value / 1024, power + 1
    return f"{value:.3g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')[power]}"
