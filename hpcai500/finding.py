"""What a check says when something is not as it should be."""

from __future__ import annotations

import msgspec

from hpcai500.rulebook import RULEBOOK, Severity


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong.

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

    @property
    def severity(self) -> Severity:
        """That of its rule: an error makes the submission invalid, a warning does not."""
        return RULEBOOK[self.rule].severity

    def __str__(self) -> str:
        return f"{self.rule} at {self.place}: expected {self.expected}, found {self.found}"
