"""What a check says when something is not as it should be."""

from __future__ import annotations

import msgspec

from hpcai500.rulebook import RULEBOOK, Severity

MAX_TEXT = 1000  # characters; somebody else's text in a finding may have any length
MAX_FINDINGS = 20_000  # that a process keeps of a submission with all their words
_made = 0


def begin_findings() -> None:
    """Count the findings of a submission from here on; of those beyond MAX_FINDINGS only the rule is kept.

    A large run in which every line is wrong would else fill memory with findings that nobody reads.
    """
    global _made  # noqa: PLW0603, checks make findings everywhere, and know of no others
    _made = 0


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong; texts longer than MAX_TEXT are cut, but for the place.

    Attributes:
        rule: id of the rule that is broken, for example ``"counts.epoch_samples"``.
        place: file, line and field it was found in.
        expected: what the rule demands, in words or as a value.
        found: what stands there.
    """

    rule: str
    place: str
    expected: str
    found: str

    def __post_init__(self) -> None:
        """Cut long texts, and drop all of them where there are too many findings."""
        global _made  # noqa: PLW0603
        _made += 1
        for name in ("place", "expected", "found"):
            text = getattr(self, name)
            if _made > MAX_FINDINGS:
                msgspec.structs.force_setattr(self, name, "one of many findings")
            elif len(text) > MAX_TEXT and name != "place":
                msgspec.structs.force_setattr(self, name, f"{text[:MAX_TEXT]}... ({len(text)} characters)")

    @property
    def severity(self) -> Severity:
        """That of its rule: an error makes the submission invalid, a warning does not."""
        return RULEBOOK[self.rule].severity

    def __str__(self) -> str:
        return f"{self.rule} at {self.place}: expected {self.expected}, found {self.found}"
