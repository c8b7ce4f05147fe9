"""What differs from the reference in a run, and which level allows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from hpcai500.edition import Workload

CODE_LAYER = 7  # workload implementation


class Deviation(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is not the reference's.

    Attributes:
        what: name of the setting, or what else it is.
        layer: of the rules.
        reference: its value in the reference, as text.
        found: its value in the run, as text.
        allowed_from: the strictest level that allows it; null where none does.
    """

    what: str
    layer: int
    reference: str
    found: str
    allowed_from: str | None

    def __str__(self) -> str:
        allowed = f"allowed from {self.allowed_from} level" if self.allowed_from else "allowed at no level"
        return f"{self.what} = {self.found} instead of {self.reference} (layer {self.layer}; {allowed})"


def list_deviations(workload: Workload, size: str, settings: Mapping[str, object]) -> list[Deviation]:
    """All settings that differ from the reference's; those that are missing or unknown are findings, and none of these.

    Raises:
        UnknownNameError: unknown size.
    """
    workload.size(size)
    return [
        Deviation(
            what=key,
            layer=setting.layer,
            reference=_show(setting.default_at(size)),
            found=_show(settings[key]),
            allowed_from=next((name for name, level in workload.levels.items() if setting.is_open_at(level)), None),
        )
        for key, setting in workload.settings.items()
        if key in settings and not _is_same(settings[key], setting.default_at(size))
    ]


def code_deviations(workload: Workload, reference: str | None, found: Iterable[str | None]) -> list[Deviation]:
    """What of the code that ran is not the reference's.

    Args:
        workload: its levels.
        reference: digest of the released code; None where it is not known.
        found: digests of the code that ran; None where it is not known.
    """
    allowed_from = next((name for name, level in workload.levels.items() if CODE_LAYER in level.open_layers), None)
    return [
        Deviation(
            what="workload code",
            layer=CODE_LAYER,
            reference=reference or "that of a release",
            found=one or "unknown",
            allowed_from=allowed_from,
        )
        for one in dict.fromkeys(found)
        if one is None or one != reference
    ]


def _is_same(value: object, default: object) -> bool:
    """Equal and of the same type: 1 is not 1.0, nor True."""
    return type(value) is type(default) and value == default


def _show(value: object) -> str:
    return value if isinstance(value, str) else repr(value)
