"""How many altered submissions the verifier rejects: all mutants of tests/mutants.py, and which survive, with reasons.

Exits with 1 if a mutant survives that no table of tests/mutation_tables.py has, if one that a table has no longer does,
or if the verifier raised.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from mutants import TABLES, Outcome, judge, stale
from mutation_bases import make_bases
from report import figure


def main() -> int:
    began_s = time.monotonic()
    memory = Path("/dev/shm")  # thousands of small files are written
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        outcome = judge(make_bases(Path(folder)))
    seconds = time.monotonic() - began_s
    number = sum(outcome.rejected.values()) + sum(map(len, outcome.survivors.values()))
    print(f"{number:,} mutants in {seconds:.0f} s, {1000 * seconds / number:.0f} ms each")
    figure("mutants that keep the form, rejected", [100 * outcome.rate], "%", better="more", bar=99)
    figure("judging a mutant", [1000 * seconds / number], "ms")
    for word, count in describe(outcome).items():
        print(f"  {count:>6,}  {word}")
    print(f"  {100 * outcome.rate:.2f} % of those that keep the form and change the meaning are rejected,")
    print(f"  {100 * outcome.rate_with_form:.2f} % of all that break the form or change the meaning")
    for table in TABLES:
        print(f"\n{table}: number, mutants, reason")
        for pattern, count in survivors_by_pattern(outcome, table).items():
            print(f"  {count:>4}  {pattern}: {TABLES[table][pattern]}")
    problems = [*outcome.crashed, *outcome.survivors.get("", [])]
    problems += [f"no longer survives: {pattern}" for table in TABLES for pattern in stale(outcome, table)]
    for problem in problems:
        print(f"PROBLEM: {problem}")
    return 1 if problems else 0


def describe(outcome: Outcome) -> dict[str, int]:
    """Numbers of mutants by what became of them."""
    return {
        "break the form, rejected": outcome.rejected["form"],
        "keep the form and change the meaning, rejected": outcome.rejected["meaning"] + outcome.rejected["survivors"],
        "keep the form and change the meaning, survive": outcome.num_survivors,
        "change less than honest runs differ by, of which are rejected": outcome.rejected["tolerated"],
        "... and survive": len(outcome.survivors.get("tolerated", [])),
        "change nothing from which anything follows, of which are rejected": outcome.rejected["descriptive"],
        "... and survive ": len(outcome.survivors.get("descriptive", [])),
    }


def survivors_by_pattern(outcome: Outcome, table: str) -> dict[str, int]:
    """How many survive of each pattern of a table; one that fits several counts with the first."""
    names = outcome.survivors.get(table, [])
    counts = Counter(next(pattern for pattern in TABLES[table] if fnmatchcase(name, pattern)) for name in names)
    return {pattern: counts[pattern] for pattern in TABLES[table]}


if __name__ == "__main__":
    sys.exit(main())
