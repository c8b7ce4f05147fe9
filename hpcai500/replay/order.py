"""replay.json: what the verifier tells the ranks of a replay (``python -m hpcai500.train FOLDER --replay``)."""

from __future__ import annotations

import msgspec

from hpcai500.events import Count, Positive

ORDER_NAME = "replay.json"


class ReplayOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to go on and for how many steps; an empty ``path`` is the beginning of the run, else a checkpoint."""

    epoch: Count
    step: Count
    path: str
    sha256: str
    num_steps: Positive
