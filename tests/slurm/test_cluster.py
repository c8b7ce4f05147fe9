"""The cluster of virtual nodes itself: it is one, parts of it die and return, and nothing of it is left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import slurm_cluster
from processes import is_alive
from virtual_cluster import TOOL, RunningCluster, owned_folder, remove_leftovers, wait_until

pytestmark = pytest.mark.slurm


def test_nodes_are_machines_of_their_own(cluster: RunningCluster) -> None:
    script = (
        "hostname; hostname -i; touch /dev/shm/$(hostname) $1/$(hostname); ls /dev/shm $1; echo $CUDA_VISIBLE_DEVICES"
    )
    command = ["srun", "--nodes=3", "--gpus-per-node=2", "sh", "-c", script, "sh", str(cluster.local)]
    done = cluster.run(command)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    for number in (1, 2, 3):
        assert lines.count(f"node{number}") == 3  # host name and its two files, but no other node's
        assert f"10.77.0.{10 + number}" in lines
    assert lines.count("0,1") == 3


def test_more_than_there_is_is_refused(cluster: RunningCluster) -> None:
    for words in (["--nodes=4"], ["--gpus-per-node=3"]):
        done = cluster.run(["srun", "--immediate=5", *words, "true"])
        assert done.returncode != 0
        assert "not available" in done.stderr or "More processors requested" in done.stderr or "Invalid" in done.stderr


def test_accounting_remembers_a_job(cluster: RunningCluster) -> None:
    job_id = cluster.sbatch("--output=/dev/null", "--wrap", "exit 3")
    assert cluster.wait_for_job(job_id)["JobState"] == "FAILED"
    command = ["sacct", "-j", job_id, "--noheader", "--parsable2", "--allocations", "--format=State,ExitCode"]
    wait_until(lambda: cluster.run(command).stdout.strip() == "FAILED|3:0", "sacct's view", 20)


def test_job_of_low_gives_way(cluster: RunningCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = (
        f"echo begun >> {log}; trap 'echo asked >> {log}; scontrol requeue $SLURM_JOB_ID; sleep 30' USR2; "
        "for i in $(seq 600); do sleep 0.1; done"
    )
    options = ["--partition=low", "--nodes=3", "--exclusive", "--signal=B:USR2@30", "--output=/dev/null"]
    job_id = cluster.sbatch(*options, "--wrap", script)
    wait_until(log.exists, "the job's begin", 30)
    done = cluster.run(["srun", "-p", "main", "-N3", "--exclusive", "true"])
    assert done.returncode == 0, done.stderr
    assert "asked" in log.read_text(encoding="utf-8")
    assert cluster.job(job_id)["Restarts"] == "1"
    cluster.run(["scancel", job_id])


def test_killed_node_is_noticed_and_comes_back(cluster: RunningCluster) -> None:
    cluster.kill_node("node3")

    def state() -> str:
        return cluster.run(["sinfo", "-hN", "-n", "node3", "-p", "main", "-o", "%t"]).stdout.strip()

    wait_until(lambda: state().startswith("down"), "the node's death", 60)
    cluster.revive()
    assert state() == "idle"
    done = cluster.run(["srun", "-w", "node3", "hostname"])
    assert done.stdout == "node3\n", done.stderr


def test_command_says_what_is_wrong(cluster: RunningCluster) -> None:
    def refusal(*words: str) -> str:
        done = subprocess.run([sys.executable, TOOL, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        return done.stderr

    root = str(cluster.root)
    assert "boxes are: ctl, node1, node2, node3" in refusal("--folder", root, "kill", "node9")
    assert "take it down first" in refusal("--folder", root, "up", "--nodes", "2")
    assert "choose another with --folder" in refusal("--folder", "/tmp/" + 60 * "x", "up")
    assert "no cluster is up" in refusal("--folder", "/tmp/hpcai500-no-such-folder", "revive")
    assert "holds other files" in refusal("--folder", str(TOOL.parent), "up")


def test_cluster_ends_with_its_owner_and_leaves_nothing(tmp_path: Path) -> None:
    """Its owner is killed, so that nobody takes it down; another run of the tests removes what is left."""
    with owned_folder(Path("/tmp")) as parent:
        (parent / "left").mkdir()
        owner = f"""
import sys, time
sys.path[:0] = [{str(Path(__file__).parent)!r}]
from virtual_cluster import RunningCluster, owned_folder, Path
with owned_folder(Path({str(parent / "left")!r})) as folder:
    running = RunningCluster(folder / "c")
    running._tool("up", "--nodes", "1", "--no-accounting", "--tether")
    print(folder, flush=True)
    time.sleep(600)
"""
        process = subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        left = slurm_cluster.Cluster(folder / "c")
        pids = [left.pid("ctl"), left.pid("node1")]
        assert remove_leftovers(parent / "left") == []  # it is in use
        process.kill()
        process.wait()
        process.stdout.close()
        wait_until(lambda: not any(map(is_alive, pids)), "the end of the nodes", 10)
        assert remove_leftovers(parent / "left") == [folder]
        assert not folder.exists()
