"""The software comes to three nodes as one file, ranks start from it, and nothing of it is left on the nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from environments import make_environment
from virtual_cluster import RunningCluster

pytestmark = pytest.mark.slurm

BRING = Path(__file__).with_name("bring.py")


def bring(cluster: RunningCluster, python: Path, archive: Path, folder: Path, output: Path) -> dict[str, Any]:
    words = [str(word) for word in (python, BRING, archive, folder, output)]
    options = ["--nodes=3", "--ntasks-per-node=2", "--exclusive", "--output=/dev/null"]
    cluster.wait_for_job(cluster.sbatch(*options, "--wrap", " ".join(words)))
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return found


def test_ranks_of_all_nodes_start_from_an_archive_that_was_read_once(cluster: RunningCluster, tmp_path: Path) -> None:
    python, archive = make_environment(tmp_path / "e"), tmp_path / "software.tar"
    done = cluster.run([str(python), "-m", "hpcai500.software", str(archive)], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before = list_nodes(cluster)

    found = bring(cluster, python, archive, Path("/dev/shm"), tmp_path / "good.json")
    assert "error" not in found, found
    where = f"{found['root']}/lib/python{'.'.join(json.loads(read_record(archive))['python'].split('.')[:2])}"
    line = f"{where}/site-packages/hpcai500/__init__.py {found['root']}"
    assert found["ranks"] == [f"node{number} {line}" for number in (1, 1, 2, 2, 3, 3)]

    too_small = bring(cluster, python, archive, cluster.local, tmp_path / "full.json")
    assert f"bytes are needed for it in {cluster.local} of node" in too_small["error"], too_small

    shared = tmp_path / "shared"
    shared.mkdir()
    of_all = bring(cluster, python, archive, shared, tmp_path / "shared.json")
    assert "File exists" in of_all["error"], of_all
    assert list(shared.iterdir()) == []

    assert list_nodes(cluster) == before


def list_nodes(cluster: RunningCluster) -> list[str]:
    """What lies in the folders of the nodes' own."""
    return [
        cluster.run(["ls", "-A", "/dev/shm", str(cluster.local)], node=node).stdout
        for node in ("node1", "node2", "node3")
    ]


def read_record(archive: Path) -> str:
    return archive.with_name(f"{archive.name}.json").read_text(encoding="utf-8")
