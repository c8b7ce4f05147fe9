"""Digest of the workload's code: what hardware level keeps as released, and what other levels may change.

Run as ``python -m hpcai500.code_digest`` to print it, for a line of rules/releases.toml.

Workload code (layer 7 of the rules) is what decides what a step computes, on which samples, and what an evaluation
counts: the packages ``models``, ``workloads`` and ``pipelines``, and the single modules of CODE_FILES. The rest is glue
and may differ: starting ranks, reading clocks, writing ledgers and checkpoints, and ``comm``, which hands gradients to
a communication library (layer 3, open at every level; tests/mpi/conformance.py says what it has to do).

The digest is over names, lengths and bytes as shipped, so it is the same in a checkout, an editable install and a
wheel. It says which code was meant to run: somebody who changes this module too can print any digest.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

PACKAGE_FOLDER = Path(__file__).parent
CODE_FOLDERS = ("models", "pipelines", "workloads")
CODE_FILES = ("engine.py", "learning_rate.py", "qualities.py", "sample_order.py")


def code_files(folder: Path = PACKAGE_FOLDER) -> list[str]:
    """Names of the workload's code beneath the package's folder, sorted."""
    names = [path.relative_to(folder).as_posix() for part in CODE_FOLDERS for path in (folder / part).rglob("*.py")]
    return sorted([*names, *CODE_FILES])


@functools.cache
def code_sha256(folder: Path = PACKAGE_FOLDER) -> str:
    """sha256 over names, lengths and bytes of the workload's code; computed once a process.

    Raises:
        OSError: the package is not whole, or not in a folder.
    """
    return files_sha256(folder, code_files(folder))


def files_sha256(folder: Path, names: Iterable[str]) -> str:
    """sha256 over names, lengths and bytes of files beneath a folder, in the order of the names.

    Raises:
        OSError: one cannot be read.
    """
    digest = hashlib.sha256()
    for name in names:
        content = (folder / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


if __name__ == "__main__":
    sys.stdout.write(f"{code_sha256()}\n")
