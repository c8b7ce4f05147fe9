"""``stragglers.jsonl`` of a run folder: who was slow while the run went on, and by what it showed.

Written by rank 0 (hpcai500/stragglers.py). It is for who watches the run; nothing that is verified rests on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

STRAGGLERS_NAME = "stragglers.jsonl"
MAX_LINE_BYTES = 4096  # a line has under 600

Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


class StragglerNote(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A line: something became slow, or is so no longer.

    Attributes:
        what: "node", of which all ranks are slow; "rank"; or "job", whose network is.
        host: of the node or rank; "" for the job.
        rank: the lowest that is meant; 0 for the job.
        num_ranks: how many are meant.
        is_slow: false if it is so no longer.
        evidence: where most of the time went that is lost.
        step_s: a step's time without communication, or of the job its communication: quartiles over the last windows.
        usual_s: of it the median of all ranks, or of the job the time that it took in the first windows.
        lost_s: of that the part that ``evidence`` explains, above what is usual.
        num_slow: how many ranks are slow now.
    """

    time_ns: Count
    segment: Count
    epoch: Count
    step: Count
    what: Literal["node", "rank", "job"]
    host: Annotated[str, msgspec.Meta(max_length=255)]
    rank: Count
    num_ranks: Count
    is_slow: bool
    evidence: Literal["compute", "data", "network"]
    step_s: tuple[Seconds, Seconds, Seconds]
    usual_s: Seconds
    lost_s: Seconds
    num_slow: Count

    @property
    def name(self) -> str:
        """What is meant, in words."""
        if self.what == "job":
            return "the network"
        return f"node {self.host}" if self.what == "node" else f"rank {self.rank} on {self.host}"

    def describe(self) -> str:
        """The line as a sentence."""
        middle_ms, usual_ms, lost_ms = 1000 * self.step_s[1], 1000 * self.usual_s, 1000 * self.lost_s
        since = f"(epoch {self.epoch}, step {self.step})"
        if not self.is_slow:
            return f"{self.name} is no longer slow {since}"
        if self.what == "job":
            return (
                f"the network is slow: of a step, communication takes all ranks {middle_ms:.1f} ms and not "
                f"{usual_ms:.1f} ms as at the beginning, while they compute as fast as then {since}"
            )
        ratio = f", {middle_ms / usual_ms:.2f} times the median of all ranks" if usual_ms else ""
        ranks = f"each of its {self.num_ranks} ranks takes" if self.what == "node" else "it takes"
        cause = {"compute": "spent computing", "data": "waiting for data", "network": "in the network"}[self.evidence]
        return (
            f"{self.name} is slow: {ranks} {middle_ms:.1f} ms a step without communication{ratio}; "
            f"{lost_ms:.1f} ms more than usual are {cause} {since}"
        )


def read_notes(lines: bytes) -> Iterator[StragglerNote]:
    """The notes of some whole lines; what is no note is passed over, since the file may be a stranger's or cut."""
    decoder = msgspec.json.Decoder(StragglerNote)
    for line in lines.splitlines():
        if len(line) <= MAX_LINE_BYTES:
            try:
                yield decoder.decode(line)
            except (msgspec.DecodeError, msgspec.ValidationError):
                continue
