"""Freed memory stays in the process."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, resource
from hpcai500.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def touch():
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(word: str) -> int:
    command = [sys.executable, "-c", PROGRAM, word]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_a_block_that_is_used_again_costs_no_page_faults() -> None:
    assert page_faults("plain") > 10_000  # 64 MiB are 16,384 pages
    assert page_faults("keep") < 2_000
