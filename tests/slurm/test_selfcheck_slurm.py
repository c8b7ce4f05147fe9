"""The self-check on three nodes at once: healthy ones pass, and each sick one is named with what it lacks."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from machines import make_nvidia_smi
from virtual_cluster import RunningCluster

pytestmark = [pytest.mark.slurm, pytest.mark.mpi]

# On node1 nvidia-smi fails, on node2 another version of a library is found first; node3 has no data file.
SICKEN = """
case $(hostname) in
node1) export PATH=$1/bin:$PATH ;;
node2) export PYTHONPATH=$1/site-packages ;;
esac
shift
exec "$@"
"""


def put_data(cluster: RunningCluster, source: Path, *nodes: str) -> Path:
    """Copy a file to the local disk of these nodes; its path is the same on all."""
    target = cluster.local / "data.h5"
    for node in nodes:
        done = cluster.run(["cp", str(source), str(target)], node=node)
        assert done.returncode == 0, done.stderr
    return target


@pytest.mark.parametrize(("communicator", "ranks_per_node"), [("torchdist", 2), ("mpi", 1)])
def test_healthy_nodes_pass(
    cluster: RunningCluster, smoke_data: Path, tmp_path: Path, communicator: str, ranks_per_node: int
) -> None:
    file = tmp_path / "check.json"
    words = ["--communicator", communicator, "--quick", "--data", str(smoke_data), "--json", str(file)]
    srun = ["srun", "--nodes=3", f"--ntasks-per-node={ranks_per_node}", "--mpi=pmix", "--kill-on-bad-exit"]
    env = cluster.env | {"OMPI_MCA_mpi_yield_when_idle": "1", "OMP_NUM_THREADS": "1"}  # all nodes share two cores
    done = cluster.run([*srun, sys.executable, "-m", "hpcai500.selfcheck", *words], env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "pass: 3 nodes are fit"
    found = json.loads(file.read_text(encoding="utf-8"))
    assert [node["host"] for node in found["nodes"]] == ["node1", "node2", "node3"]
    assert found["is_one_machine"]
    for node in found["nodes"]:
        assert node["figures"].keys() >= {"fp32", "memory", "link_latency", "link_bandwidth", "read"}
        assert len(node["ranks"]) == ranks_per_node


def test_each_sick_node_is_named_with_what_it_lacks(cluster: RunningCluster, smoke_data: Path, tmp_path: Path) -> None:
    make_nvidia_smi(tmp_path / "bin", [], exit_code=9)
    metadata = tmp_path / "site-packages" / "h5py-0.0.1.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: h5py\nVersion: 0.0.1\n", encoding="utf-8")
    data, file = put_data(cluster, smoke_data, "node1", "node2"), tmp_path / "check.json"
    check = [sys.executable, "-m", "hpcai500.selfcheck", "--quick", "--data", str(data), "--json", str(file)]
    srun = ["srun", "--nodes=3", "--ntasks-per-node=1", "--mpi=pmix"]
    done = cluster.run([*srun, shutil.which("bash") or "bash", "-c", SICKEN, "bash", str(tmp_path), *check])
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "fail: 3 of 3 nodes (node1, node2, node3)"
    problems = json.loads(file.read_text(encoding="utf-8"))["problems"]
    reasons = {problem["host"]: problem["text"] for problem in problems if problem["fails"]}
    assert "nvidia-smi failed" in reasons["node1"]
    assert reasons["node2"].startswith("rank 1 has h5py 0.0.1, the others ")
    assert f"cannot open '{data}'" in reasons["node3"]
