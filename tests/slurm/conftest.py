"""A Slurm cluster of three virtual nodes for the tests of this folder, started once, when the first test needs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from virtual_cluster import RunningCluster, owned_folder, remove_leftovers

_running: list[RunningCluster] = []


@pytest.fixture(scope="session")
def cluster() -> Iterator[RunningCluster]:
    """Three nodes of 2 cores and 2 pretended GPUs, partitions main and low, accounting."""
    parent = Path("/tmp")  # sockets lie below: the path must be short
    remove_leftovers(parent)
    with owned_folder(parent) as folder:
        running = RunningCluster(folder / "c")
        running.up()
        try:
            _running.append(running)
            yield running
        finally:
            _running.clear()
            running.down()


@pytest.fixture(scope="module", autouse=True)
def _cleared() -> Iterator[None]:
    """No module's jobs or dead nodes are left to the next one."""
    yield
    for running in _running:
        running.clear()
