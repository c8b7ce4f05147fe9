"""submit and the job templates on a real cluster: from one command to a verified submission."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from virtual_cluster import RunningCluster

from hpcai500.launches import read_launches
from hpcai500.ledger_reader import read_ledger
from hpcai500.verify import verify_submission

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
# One step an epoch: what is tested is how runs are started.
SMALL = ["--size", "smoke", "--device", "cpu", "--set", "batch_size_per_rank=64", "--no-selfcheck"]
SMALL_DETECTOR = ["--size", "smoke", "--device", "cpu", "--no-selfcheck"]
PATIENCE_S = 400.0


@pytest.fixture(scope="module")
def environ(cluster: RunningCluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user on the login node, with a site file that lets several jobs share a node."""
    home = tmp_path_factory.mktemp("home")
    (home / "site.toml").write_text("exclusive = false\n")
    return cluster.env | {"HPCAI500_SITE": str(home / "site.toml"), "XDG_STATE_HOME": str(home / "state")}


def submit(
    cluster: RunningCluster, environ: dict[str, str], *words: object, **options: Any
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpcai500.submit", *SMALL, *map(str, words)]
    return cluster.run(command, env=environ, timeout=PATIENCE_S, **options)


def first_events(run: Path) -> list[Any]:
    entries = [entry for path in sorted((run / "ledger").iterdir()) for entry in read_ledger(path) if entry.seq == 0]
    return [entry.value for entry in sorted(entries, key=lambda entry: entry.rank)]


@pytest.fixture(scope="module")
def waited(
    cluster: RunningCluster, environ: dict[str, str], smoke_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Two runs on two nodes whose management controllers are programs: node1 draws 201 W, node2 202 W and so on."""
    home = tmp_path_factory.mktemp("waited")
    ipmitool = home / "bin/ipmitool"
    ipmitool.parent.mkdir()
    reading = "printf '    Instantaneous power reading:    %d Watts\\n' $((200 + ${HOST#node}))"
    ipmitool.write_text(f"#!/bin/sh\nHOST=$(uname -n)\n{reading}\n")
    ipmitool.chmod(0o755)
    site = home / "site.toml"
    site.write_text(
        f"exclusive = false\nsetup = ['export PATH={ipmitool.parent}:$PATH']\nipmi_accuracy = 0.03\n", encoding="utf-8"
    )
    where = ("--nodes", 2, "--ranks-per-node", 1, "--gpus-per-node", 1, "--runs", 2, "--runs-at-once", 1)
    words = ("--data", smoke_data, "--output", home / "out", *where, "--time", 10, "--wait")
    return home / "out", submit(cluster, environ | {"HPCAI500_SITE": str(site)}, *words)


def test_two_runs_are_an_array_and_whoever_waits_sees_the_verdict(
    waited: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = waited
    logs = "".join(path.read_text() for path in folder.glob("log/slurm-*.out"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    assert re.search(r"run 2: in the queue \(job \d+_1\), waiting for another run of this submission", done.stdout)
    assert len(re.findall(r"run \d: completed, quality 0\.\d+ in \d+ s, \d+\.\d images/s", done.stdout)) == 2
    assert "VALID resnet50, free level, size smoke" in done.stdout
    assert verify_submission(folder / "submission.json").findings == []
    opened = [first_events(folder / f"run-{number}") for number in (1, 2)]
    job = re.search(r"submitted runs 1 to 2 as job (\d+)", done.stdout)
    assert job is not None
    assert len({event.job for events in opened for event in events}) == 2
    for events in opened:
        assert len({event.host for event in events}) == 2
        assert {event.host for event in events} <= {"node1", "node2", "node3"}
    assert read_launches(folder)[0].job == job[1]
    system = json.loads((folder / "run-1/system.json").read_text())
    assert len(system["nodes"]) == 2


def test_the_power_supplies_of_all_nodes_are_read_and_a_meter_may_follow(
    waited: tuple[Path, subprocess.CompletedProcess[str]], environ: dict[str, str], cluster: RunningCluster
) -> None:
    folder, _ = waited
    opened = first_events(folder / "run-1")
    hosts = [event.host for event in opened]
    (told,) = energy_of(folder / "run-1", "ipmi")
    drawn_w = [200 + int(host.removeprefix("node")) for host in hosts]
    assert (told["num_nodes"], told["lacks"], told["plugin"]) == (2, [], "ipmitool")
    # A node's readings are cut at its own clock, which starts and stops some milliseconds beside that of rank 0.
    assert told["power_w"] == pytest.approx(sum(drawn_w), rel=0.01)
    span_s = told["energy_j"] / told["power_w"]
    each_j = [min(drawn_w) * span_s, sum(drawn_w) / 2 * span_s, max(drawn_w) * span_s]
    assert told["node_j"] == pytest.approx(each_j, rel=0.01)

    begin_s = opened[0].wall_ns / 1e9 - 60
    times = [f"{begin_s + number / 10:.1f},{host},250\n" for number in range(6000) for host in hosts]
    meter = folder.parent / "pdu.csv"
    meter.write_text("# accuracy: 1 %\ntime,node,power_w\n" + "".join(times))
    added = cluster.run([sys.executable, "-m", "hpcai500", "meter", str(folder), str(meter)], env=environ)
    assert added.returncode == 0, added.stdout + added.stderr
    (told,) = energy_of(folder / "run-1", "meter")
    assert (told["label"], told["power_w"]) == ("measured", pytest.approx(500))
    assert verify_submission(folder / "submission.json").findings == []


def energy_of(run: Path, source: str) -> list[dict[str, Any]]:
    return [one for one in json.loads((run / "result.json").read_text())["energy"] if one["source"] == source]


@pytest.mark.parametrize(
    ("workload", "level", "chosen", "sbatch_words"),
    [
        pytest.param("resnet50", "hardware", {}, ["--nodes=2"], marks=pytest.mark.horovod),
        ("fasterrcnn", "system", {"COMM": "torchdist"}, ["--nodes=1", "--ntasks-per-node=2"]),
        pytest.param("resnet50", "free", {"COMM": "mpi", "LAUNCHER": "mpirun"}, ["--nodes=2"], marks=pytest.mark.mpi),
    ],
)
def test_a_template_trains_from_any_folder(
    workload: str,
    level: str,
    chosen: dict[str, str],
    sbatch_words: list[str],
    cluster: RunningCluster,
    environ: dict[str, str],
    smoke_data: Path,
    smoke_weather: Path,
    tmp_path: Path,
) -> None:
    command = ["sbatch", "--parsable", "--time=10", *sbatch_words, str(ROOT / f"jobs/{workload}_{level}.sbatch")]
    user = {name: value for name, value in environ.items() if name != "VIRTUAL_ENV"}
    user |= {"HPCAI500_PYTHON": sys.executable} | chosen
    data, words = (smoke_data, SMALL) if workload == "resnet50" else (smoke_weather, SMALL_DETECTOR)
    done = cluster.run([*command, *words, "--data", str(data)], env=user, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    ended = cluster.wait_for_job(job, within_s=PATIENCE_S)
    output = (tmp_path / f"hpcai500-{workload}-{level}-{job}.out").read_text()
    assert ended["JobState"] == "COMPLETED", output
    assert f"VALID {workload}, {level} level, size smoke" in output
    folder = tmp_path / f"runs/{workload}-smoke-{level}-job{job}"
    assert verify_submission(folder / "submission.json").valid
    config = json.loads((folder / "run-1/config.json").read_text())
    assert config["settings"]["communicator"] == chosen.get("COMM", "horovod")
    assert {event.job for event in first_events(folder / "run-1")} == {job}
    launch = json.loads((folder / "launch.json").read_text())
    assert launch["launcher"] == chosen.get("LAUNCHER", "srun")


def test_sbatch_learns_of_the_site_file(
    cluster: RunningCluster, environ: dict[str, str], smoke_data: Path, tmp_path: Path
) -> None:
    """The partition of the site file is where the job goes; a job that is elsewhere is refused."""
    site = tmp_path / "site.toml"
    site.write_text(f'partition = "low"\ntime_limit = "7:00"\nexclusive = true\n[data]\nresnet50 = "{smoke_data}"\n')
    script = 'eval "$("$PYTHON" -m hpcai500 site --shell)"; sbatch --parsable --hold "$SCRIPT" --size smoke'
    user = environ | {"HPCAI500_SITE": str(site), "PYTHON": sys.executable}
    user |= {"SCRIPT": str(ROOT / "jobs/resnet50_free.sbatch"), "HPCAI500_PYTHON": sys.executable}
    done = cluster.run(["bash", "-c", script], env=user, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = cluster.job(done.stdout.strip())
    assert (told["Partition"], told["TimeLimit"]) == ("low", "00:07:00")
    cluster.run(["scancel", done.stdout.strip()])

    command = ["sbatch", "--parsable", "--partition=main", user["SCRIPT"], "--size", "smoke", "--device", "cpu"]
    job = cluster.run(command, env=user, cwd=tmp_path).stdout.strip()
    assert cluster.wait_for_job(job)["ExitCode"] == "2:0"
    output = (tmp_path / f"hpcai500-resnet50-free-{job}.out").read_text()
    assert "this job runs in partition 'main' and site.toml says 'low'" in output


def test_ranks_run_in_the_container_that_the_site_file_names(
    cluster: RunningCluster, environ: dict[str, str], smoke_data: Path, tmp_path: Path
) -> None:
    """A program that stands for apptainer: it notes how it was called and runs the command without any container."""
    apptainer = tmp_path / "apptainer"
    apptainer.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        f"open({str(tmp_path / 'called')!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        f"os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[sys.argv.index('python3') + 1:]])\n"
    )
    apptainer.chmod(0o755)
    image = tmp_path / "hpcai500.sif"
    site = tmp_path / "site.toml"
    site.write_text(f'exclusive = false\ncontainer_image = "{image}"\ncontainer_command = "{apptainer}"\n')
    folder = tmp_path / "out"
    words = ("--nodes", 1, "--data", smoke_data, "--output", folder, "--wait")
    done = submit(cluster, environ | {"HPCAI500_SITE": str(site)}, *words)
    logs = "".join(path.read_text() for path in folder.glob("log/slurm-*.out"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    (call,) = (tmp_path / "called").read_text().splitlines()
    assert call.startswith("exec ")
    assert f" {image} python3 -m hpcai500.train {folder}/run-1" in call
    assert f"--bind {folder}" in call


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", 4], "--nodes 4 is more than the 3 nodes of partition 'main'"),
        (["--nodes", 1, "--partition", "mian"], "unknown partition 'mian' (did you mean 'main'?); known: low, main"),
        (["--nodes", 1, "--gpus-per-node", 3], "--gpus-per-node 3 is more than the 2 GPUs that a node of partition"),
        (["--nodes", 1, "--ranks-per-node", 3, "--set", "batch_size_per_rank=16"], "Slurm refuses the job: "),
    ],
)
def test_what_the_cluster_cannot_do_is_refused(
    words: list[object],
    message: str,
    cluster: RunningCluster,
    environ: dict[str, str],
    smoke_data: Path,
    tmp_path: Path,
) -> None:
    done = submit(cluster, environ, "--data", smoke_data, "--output", tmp_path / "out", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_without_slurm_the_same_command_says_so(smoke_data: Path, tmp_path: Path) -> None:
    environ = os.environ | {"PATH": str(tmp_path)}
    command = [sys.executable, "-m", "hpcai500.submit", *SMALL, "--nodes", "1", "--data", str(smoke_data)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no Slurm here (sbatch is not on PATH)" in done.stderr
