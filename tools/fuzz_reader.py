#!/usr/bin/env python3
"""Fuzz the verifier with atheris: its readers, or with --judge whole submissions in which one file is made up.

    python tools/fuzz_reader.py -max_total_time=60 -rss_limit_mb=1024 -timeout=10
    python tools/fuzz_reader.py --judge -max_total_time=60 -rss_limit_mb=1024 -timeout=10
    python tools/fuzz_reader.py crash-...

Other words are libFuzzer's (-help=1 lists them); without a folder of its own it begins with the files of
tests/golden/format-1. Needs atheris. What libFuzzer finds is a bug: whatever they are given, readers answer with
findings or a RecordError, and the verifier with a verdict or a RecordError, within 10 s and a gigabyte.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["hpcai500"]):
    from hpcai500.equivalence.proof import Proof
    from hpcai500.errors import RecordError
    from hpcai500.formats import RunConfig, RunResult, SignedTicket, Submission, System, decode
    from hpcai500.ledger_reader import scan_ledger
    from hpcai500.signature import Signature
    from hpcai500.verify import verify_submission

ODD = [
    0,
    -1,
    2**63 - 1,
    2**63,
    10**400,
    1.7e308,
    5e-324,
    "",
    " ",
    "x",
    "\0",
    "\u202e",
    "..",
    "0" * 64,
    True,
    None,
    [],
    {},
]
GOLDEN = Path(__file__).parents[1] / "tests/golden/format-1"
FORMS = (Submission, RunConfig, RunResult, System, SignedTicket, Signature, Proof)
LEDGER = len(FORMS)
FILES = {
    "submission.json": 0,
    "run-1/config.json": 1,
    "run-1/result.json": 2,
    "run-1/system.json": 3,
    "run-1/ledger/node-00000.jsonl": LEDGER,
}


def read(folder: Path, content: bytes) -> None:
    """Let the reader that the first byte chooses read the rest."""
    chosen = content[0] % (len(FORMS) + 1)
    if chosen == LEDGER:
        path = folder / "node-00000.jsonl"
        path.write_bytes(content[1:])
        for item in scan_ledger(path):
            str(item)
    else:
        decode(content[1:], FORMS[chosen])


def judge(folder: Path, content: bytes) -> None:
    """Judge the golden submission with the rest in the place of the file that the first byte chooses."""
    name = list(FILES)[content[0] % len(FILES)]
    path = folder / "format-1" / name
    path.write_bytes(content[1:])
    try:
        verify_submission(path.parents[len(Path(name).parts) - 1] / "submission.json")
    finally:
        shutil.copyfile(GOLDEN / name, path)


def write_seeds(folder: Path, *, whole: bool) -> None:
    """The files of the golden submission, each behind the byte that chooses it."""
    folder.mkdir()
    for number, (name, reader) in enumerate(FILES.items()):
        (folder / f"{number}").write_bytes(bytes([number if whole else reader]) + (GOLDEN / name).read_bytes())


def mutate(content: bytes, max_size: int, seed: int) -> bytes:
    """Alter a value of the JSON in one line, or else bytes as libFuzzer does."""
    chance = random.Random(seed)
    lines = content[1:].splitlines() if content[:1] in (bytes([LEDGER]), b"\x05") else [content[1:]]
    number = chance.randrange(len(lines)) if lines else 0
    try:
        value = json.loads(lines[number]) if chance.random() < 0.7 else None
    except (ValueError, IndexError, RecursionError):
        value = None
    ways = [way for way in places(value) if way]
    if not ways:
        mutated: bytes = atheris.Mutate(content, max_size)
        return mutated
    *way, last = chance.choice(ways)
    holder = value
    for key in way:
        holder = holder[key]
    if chance.random() < 0.2:
        del holder[last]
    else:
        holder[last] = chance.choice([*ODD, chance.getrandbits(64), chance.uniform(-1, 1), holder[last]])
    lines[number] = json.dumps(value).encode()
    return (content[:1] + b"\n".join(lines) + b"\n")[:max_size]


def places(value: object, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way, *(place for key, part in inner for place in places(part, (*way, key)))]


def fuzz(folder: Path, words: list[str], *, whole: bool) -> None:
    """Fuzz until libFuzzer ends the process."""
    target: Callable[[Path, bytes], None] = judge if whole else read

    def test_one_input(content: bytes) -> None:
        try:
            if content:
                target(folder, content)
        except RecordError as error:
            str(error)

    atheris.Setup([sys.argv[0], *words], test_one_input, custom_mutator=mutate)
    atheris.Fuzz()


def main() -> int:
    """Fuzz until libFuzzer is told to stop or has found something."""
    words = [word for word in sys.argv[1:] if word != "--judge"]
    whole = "--judge" in sys.argv
    with tempfile.TemporaryDirectory(prefix="hpcai500-fuzz-") as name:
        folder = Path(name)
        shutil.copytree(GOLDEN, folder / "format-1")
        if all(word.startswith("-") for word in words):
            write_seeds(folder / "seeds", whole=whole)
            words.append(f"{folder / 'seeds'}")
        child = os.fork()  # libFuzzer ends its process without a word to Python
        if child == 0:
            fuzz(folder, words, whole=whole)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
