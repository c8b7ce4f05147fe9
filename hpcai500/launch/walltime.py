"""Time limits as Slurm writes them: ``MINUTES``, ``HOURS:MINUTES:SECONDS``, ``DAYS-HOURS:MINUTES:SECONDS``, ..."""

from __future__ import annotations

import re

from hpcai500.errors import UsageError

FORMS = "90 (minutes), 1:30:00 or 1-12:00:00"
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400
# The forms of sbatch(1), --time: what follows a number of days starts with hours; "M:S" has no hours.
_UNITS_S = {
    (False, 1): (MINUTE_S,),
    (False, 2): (MINUTE_S, 1),
    (False, 3): (HOUR_S, MINUTE_S, 1),
    (True, 1): (HOUR_S,),
    (True, 2): (HOUR_S, MINUTE_S),
    (True, 3): (HOUR_S, MINUTE_S, 1),
}


def parse_walltime(text: str) -> int:
    """Seconds of a time limit.

    Raises:
        UsageError: it is none; the caller says whose it is.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+(?::\d+){0,2})", text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no time limit; write for example {FORMS}")
    numbers = [int(word) for word in match[2].split(":")]
    units_s = _UNITS_S[match[1] is not None, len(numbers)]
    seconds = int(match[1] or 0) * DAY_S + sum(number * unit_s for number, unit_s in zip(numbers, units_s, strict=True))
    if seconds < 1:
        raise UsageError(f"{text!r} is no time at all; write for example {FORMS}")
    return seconds


def format_walltime(seconds: float) -> str:
    """A time limit in words that sbatch takes: ``1:30:00`` or ``1-12:00:00``."""
    days, rest_s = divmod(round(seconds), DAY_S)
    hours, rest_s = divmod(rest_s, HOUR_S)
    minutes, rest_s = divmod(rest_s, MINUTE_S)
    clock = f"{hours:02d}:{minutes:02d}:{rest_s:02d}" if days else f"{hours}:{minutes:02d}:{rest_s:02d}"
    return f"{days}-{clock}" if days else clock
