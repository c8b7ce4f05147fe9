"""Staging on three nodes with local disks of their own: each copies once, and a full one reads the original."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from virtual_cluster import RunningCluster

from hpcai500.staging import copy_name

pytestmark = pytest.mark.slurm

RANK = Path(__file__).with_name("stage.py")
NUM_BYTES = 3_000_000


def test_each_node_copies_once_and_a_full_one_reads_the_original(cluster: RunningCluster, tmp_path: Path) -> None:
    source = tmp_path / "data.h5"
    source.write_bytes(bytes(range(250)) * (NUM_BYTES // 250))
    full = cluster.run(["sh", "-c", f"cat /dev/zero > {cluster.local}/filler"], node="node2")
    assert "No space left" in full.stderr
    srun = ["srun", "--nodes=3", "--ntasks-per-node=2", sys.executable, str(RANK)]
    for number in range(2):
        output = tmp_path / str(number)
        output.mkdir()
        done = cluster.run([*srun, str(source), str(cluster.local), str(output)])
        assert done.returncode == 0, done.stderr
        ranks = [json.loads((output / str(rank)).read_text(encoding="utf-8")) for rank in range(6)]
        copy = str(cluster.local / copy_name(source))
        assert [rank["path"] for rank in ranks] == [copy, copy, str(source), str(source), copy, copy]
        assert [rank["host"] for rank in ranks] == ["node1", "node1", "node2", "node2", "node3", "node3"]
        assert all(rank["first_bytes"] == list(range(5)) for rank in ranks)
        events = [rank["event"] for rank in ranks[::2]]
        assert [event["reused"] for event in events] == [number == 1, False, number == 1]
        assert f"{NUM_BYTES:,} bytes are needed and 0 are free" in events[1]["fell_back"]
        assert [rank["event"] for rank in ranks[1::2]] == [None] * 3
    cluster.run(["rm", f"{cluster.local}/filler"], node="node2")
