"""Plans for Slurm, without a cluster: small programs stand for sinfo, sbatch and squeue. The real ones: tests/slurm."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hpcai500.errors import RecordError, UnknownNameError, UsageError
from hpcai500.launch.launch_config import LaunchConfig, read_launch_config, write_launch_config
from hpcai500.launch.slurm import Partition, check_request, count_gpus, read_partitions
from hpcai500.launches import read_launches
from hpcai500.submit import main

ROOT = Path(__file__).parent.parent
LEVELS = ("hardware", "system", "free")
# Two kinds of nodes in "main", as sinfo shows them: one line each.
SINFO = "main*|2|gpu:2|1:00:00|2-00:00:00\nmain*|1|gpu:a100:4(S:0-1)|1:00:00|2-00:00:00\nlow|5|(null)|n/a|infinite\n"
LAUNCH = LaunchConfig(cluster="slurm", num_nodes=1, ranks_per_node=1, gpus_per_node=0, python="python")


class FakeSlurm:
    """A folder on PATH with programs that answer like Slurm's.

    Attributes:
        scripts: what sbatch was given, one a call.
        environ: of the last call of sbatch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.program("sinfo", f"cat <<'END'\n{SINFO}END\n")
        self.program("srun", "exit 1\n")
        self.program("squeue", "exit 0\n")
        self.program("sacct", "exit 1\n")
        self.program("sbatch", f'cat "$1" >> {folder}/scripts; env > {folder}/environ; echo Submitted batch job 42\n')

    def program(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}", encoding="utf-8")
        path.chmod(0o755)

    @property
    def script(self) -> str:
        return (self.folder / "scripts").read_text(encoding="utf-8")

    @property
    def environ(self) -> dict[str, str]:
        lines = (self.folder / "environ").read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fake.folder}:{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH"))]:
        monkeypatch.delenv(name)
    return fake


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "site.toml"
    path.touch()
    monkeypatch.setenv("HPCAI500_SITE", str(path))
    return path


Answer = tuple[int, str, str]


@pytest.fixture
def submit(smoke_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], site: Path) -> Any:
    """Calls submit with the smoke size, its data and an output folder; gives exit code, stdout and stderr."""

    def call(*words: object) -> Answer:
        begin = ["--size", "smoke", "--data", str(smoke_data), "--output", str(tmp_path / "out")]
        code = main([*begin, *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_plan_tells_nodes_ranks_time_and_cost(slurm: FakeSlurm, submit: Any, tmp_path: Path, site: Path) -> None:
    code, output, _ = submit("--nodes", 3, "--ranks-per-node", 2, "--runs", 2, "--time", "0:30:00", "--dry-run")
    assert code == 0
    plan = output.split("#!/bin/bash")[0]
    for words in (
        "2 (seeds 1, 2), one after the other",
        "6 (3 nodes x 2) in the default partition, started with srun, device cpu, torchdist communicator",
        "at most 0:30:00 a run, so at most 3.0 node-hours in all",
        "all settings have their defaults; at free level any setting may be changed",
        "smoke.h5 (generated), read there by all nodes",
        f"site:     {site}",
    ):
        assert words in re.sub(r"\n +", " ", plan)
    assert not (tmp_path / "out").exists()


def test_without_a_limit_the_partitions_own_counts(slurm: FakeSlurm, submit: Any) -> None:
    _, output, _ = submit("--nodes", 3, "--dry-run")
    assert "at most 1:00:00 a run, the partition's own limit, so at most 3.0 node-hours" in output
    _, output, _ = submit("--nodes", 3, "--dry-run", "--partition", "low")
    assert "time:     no limit" in output


def test_a_plan_tells_what_the_level_allows(slurm: FakeSlurm, submit: Any) -> None:
    _, output, _ = submit("--nodes", 1, "--level", "hardware", "--set", "precision=bf16", "--dry-run")
    plan = re.sub(r"\n +", " ", output)
    assert "hardware allows what was changed, precision = bf16 (not fp32)" in plan
    assert "may be changed too: batch_size_per_rank, " in plan
    assert "momentum" not in plan


def test_a_dry_run_prints_the_very_script_that_is_submitted(slurm: FakeSlurm, submit: Any, tmp_path: Path) -> None:
    words = ("--nodes", 2, "--ranks-per-node", 2, "--time", 10, "--partition", "main")
    _, output, _ = submit(*words, "--dry-run")
    script = "#!/bin/bash" + output.split("#!/bin/bash")[1]
    assert submit(*words)[0] == 0
    assert slurm.script == script
    lines = script.splitlines()
    for option in (
        "exclusive",
        "job-name=hpcai500-resnet50-smoke-free",
        "nodes=2",
        "ntasks-per-node=2",
        "open-mode=append",
        f"output={tmp_path}/out/log/slurm-%j.out",
        "partition=main",
        "requeue",
        "signal=B:USR2@120",
        "time=0:10:00",
    ):
        assert f"#SBATCH --{option}" in lines
    assert not [line for line in lines if "gpus" in line or "array" in line or "error=" in line]
    assert lines[-1].startswith("exec ")  # the driver takes the shell's place, to which the signal goes


@pytest.mark.parametrize(("words", "throttle"), [((), 1), (("--runs-at-once", 2), 2)])
def test_several_runs_are_an_array(
    words: tuple[object, ...], throttle: int, slurm: FakeSlurm, submit: Any, tmp_path: Path
) -> None:
    assert submit("--nodes", 1, "--runs", 3, *words)[0] == 0
    assert f"#SBATCH --array=0-2%{throttle}\n" in slurm.script
    assert "/log/slurm-%A_%a.out\n" in slurm.script
    (launch,) = read_launches(tmp_path / "out")
    assert (launch.job, launch.runs) == ("42", {"0": [1], "1": [2], "2": [3]})


def test_the_folder_keeps_how_runs_are_started(slurm: FakeSlurm, submit: Any, tmp_path: Path) -> None:
    code, output, _ = submit("--nodes", 2, "--gpus-per-node", 2, "--stage", "/scratch", "--no-selfcheck")
    assert code == 0
    assert "submitted run 1 as job 42" in output
    assert "hpcai500 watch" in output
    launch = read_launch_config(tmp_path / "out")
    assert (launch.num_nodes, launch.ranks_per_node, launch.gpus_per_node) == (2, 2, 2)
    assert (launch.stage_dir, launch.on_full_disk, launch.selfcheck) == ("/scratch", "fallback", "off")
    config = json.loads((tmp_path / "out/run-1/config.json").read_text())
    assert (config["device"], config["num_ranks"], config["num_nodes"]) == ("cuda", 4, 2)
    assert "copied to /scratch of each node (if that is full, it is read there)" in re.sub(r"\n +", " ", output)


def test_the_site_file_decides_what_was_not_typed(
    slurm: FakeSlurm, submit: Any, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write_text(
        'partition = "low"\naccount = "physics"\nqos = "long"\nconstraint = "ib"\nreservation = "r1"\nmem = "0"\n'
        'exclusive = false\ntime_limit = "2:00:00"\nsignal_before_end_s = 300\nrequeue = false\nranks_per_node = 2\n'
        'cpus_per_rank = 8\nmodules = ["gcc/13"]\nsetup = ["export X=1"]\nlauncher = "mpirun"\n'
    )
    monkeypatch.setenv("SBATCH_PARTITION", "other")  # Slurm would obey these before its script
    monkeypatch.setenv("SBATCH_REQUEUE", "1")
    monkeypatch.setenv("SBATCH_ACCTG_FREQ", "10")
    code, output, _ = submit("--nodes", 2, "--account", "chemistry")
    assert code == 0
    lines = slurm.script.splitlines()
    for option in (
        "partition=low",
        "account=chemistry",
        "qos=long",
        "constraint=ib",
        "reservation=r1",
        "mem=0",
        "time=2:00:00",
        "signal=B:USR2@300",
        "no-requeue",
        "ntasks-per-node=2",
        "cpus-per-task=8",
    ):
        assert f"#SBATCH --{option}" in lines
    assert "#SBATCH --exclusive" not in lines
    assert lines.index("module load gcc/13") + 1 == lines.index("export X=1") < lines.index(lines[-1])
    assert "started with mpirun" in re.sub(r"\n +", " ", output)
    assert "SBATCH_PARTITION" not in slurm.environ
    assert "SBATCH_REQUEUE" not in slurm.environ
    assert slurm.environ["SBATCH_ACCTG_FREQ"] == "10"
    assert os.environ["SBATCH_PARTITION"] == "other"


def test_the_site_file_knows_where_data_lies(
    slurm: FakeSlurm, smoke_data: Path, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--size", "smoke", "--nodes", "1"]) == 2
    error = capsys.readouterr().err
    assert "no data file for resnet50, size smoke: --data is not given and site file" in error
    site.write_text(f'output = "subs"\n[data]\nresnet50-smoke = "{smoke_data}"\n')
    assert main(["--size", "smoke", "--nodes", "1", "--dry-run"]) == 0
    assert f"output:   {site.parent}/subs/resnet50-smoke-free-" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", 0], "--nodes 0 is not possible; give at least 1"),
        (["--nodes", 4], "--nodes 4 is more than the 3 nodes of partition 'main'; ask for fewer or for another "),
        (["--nodes", 4], "(nodes of each: main 3, low 5)"),
        (["--nodes", 1, "--partition", "lo"], "unknown partition 'lo' (did you mean 'low'?); known: low, main"),
        (["--nodes", 1, "--gpus-per-node", 5], "--gpus-per-node 5 is more than the 4 GPUs that a node of partition"),
        (["--nodes", 1, "--gpus-per-node", -1], "--gpus-per-node -1 is not possible"),
        (["--nodes", 1, "--time", "3-00"], "--time 3-00:00:00 is more than partition 'main' allows, which is 2-00:00"),
        (["--nodes", 1, "--time", "long"], "--time is not possible: 'long' is no time limit; write for example 90"),
        (["--nodes", 1, "--time", 2], "--time 0:02:00 is too short for a job that is told to stop 120 s before its"),
        (["--nodes", 2, "--ranks", 3], "--ranks 3 cannot be shared evenly by 2 nodes; give a multiple of 2"),
        (["--nodes", 2, "--ranks", 4, "--ranks-per-node", 1], "--ranks 4 is not 2 nodes x --ranks-per-node 1"),
        (["--nodes", 1, "--ranks-per-node", 0], "--ranks-per-node 0 is not possible"),
        (["--nodes", 1, "--ranks-per-node", 3, "--gpus-per-node", 2], "is more than the 2 GPUs of a node, and each"),
        (["--nodes", 1, "--device", "cuda"], "--device 'cuda' needs GPUs; say how many with --gpus-per-node"),
        (["--nodes", 2, "--cluster", "local"], "--nodes 2 with --cluster local is not possible; this machine is one"),
        (["--cluster", "local", "--runs-at-once", 2], "--runs-at-once 2 needs a queue"),
        (["--cluster", "allocation"], "there is no Slurm job here (SLURM_JOB_ID is not set); submit one with `sbatch"),
        (["--nodes", 1, "--site", "gone.toml"], "--site names 'gone.toml', which is no file"),
        (["--nodes", 1, "--runs-at-once", 0], "--runs-at-once 0 is not possible; give at least 1"),
    ],
)
def test_what_the_cluster_cannot_do_is_refused_in_a_sentence(
    words: list[object], message: str, slurm: FakeSlurm, submit: Any, tmp_path: Path
) -> None:
    code, output, error = submit("--device", "cpu", *words) if "--cluster" in words else submit(*words)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert output == ""
    assert not (tmp_path / "out").exists()


def test_without_slurm_the_way_out_is_said(submit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, error = submit("--nodes", 1)
    assert code == 2
    assert "there is no Slurm here (sbatch is not on PATH); log in to the cluster, or use --cluster local" in error


def test_a_controller_that_does_not_answer_is_said(slurm: FakeSlurm, submit: Any) -> None:
    slurm.program("sinfo", "echo first >&2; echo 'load_partitions: Unable to contact slurm controller' >&2; exit 1\n")
    _, _, error = submit("--nodes", 1)
    assert "Slurm does not answer sinfo (load_partitions: Unable to contact slurm controller); use a login" in error
    assert len(error.strip().splitlines()) == 1


def test_what_sbatch_refuses_is_quoted_and_leaves_nothing(slurm: FakeSlurm, submit: Any, tmp_path: Path) -> None:
    slurm.program("sbatch", "echo 'sbatch: error: Batch job submission failed: Invalid account' >&2; exit 1\n")
    code, _, error = submit("--nodes", 1)
    assert code == 2
    assert error.endswith("Slurm refuses the job: Batch job submission failed: Invalid account\n")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_partitions_of_several_kinds_of_nodes_are_added_up(slurm: FakeSlurm) -> None:
    partitions = read_partitions()
    assert partitions["main"] == Partition("main", True, 3, 4, 3600, 172800)
    assert partitions["low"] == Partition("low", False, 5, 0, None, None)
    either = msgspec.structs.replace(LAUNCH, partition="main,low", num_nodes=5)
    assert check_request(either, partitions).name == "main"
    with pytest.raises(UsageError, match="the cluster has no default partition; name one"):
        check_request(LAUNCH, {"low": partitions["low"]})
    with pytest.raises(UnknownNameError):
        check_request(msgspec.structs.replace(LAUNCH, partition="main,high"), partitions)


@pytest.mark.parametrize(
    ("gres", "number"),
    [("(null)", 0), ("gpu:2", 2), ("gpu:a100:4(S:0-1)", 4), ("gpu:a100:4,gpu:v100:2(S:0),nic:1", 6), ("shard:8", 0)],
)
def test_gpus_are_counted_in_what_slurm_calls_gres(gres: str, number: int) -> None:
    assert count_gpus(gres) == number


def test_a_launch_file_is_read_strictly_and_the_last_one_counts(tmp_path: Path) -> None:
    write_launch_config(tmp_path, LAUNCH)
    assert read_launch_config(tmp_path) == LAUNCH
    other = msgspec.structs.replace(LAUNCH, num_nodes=2)
    write_launch_config(tmp_path, other)
    assert read_launch_config(tmp_path) == other
    assert sorted(path.name for path in tmp_path.iterdir()) == ["launch-001.json", "launch.json"]
    (tmp_path / "launch-001.json").write_text('{"cluster": "slrum"}')
    with pytest.raises(RecordError, match="'slrum' is not one of"):
        read_launch_config(tmp_path)


# --- within a job -----------------------------------------------------------------------------------------------------


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, slurm: FakeSlurm) -> list[tuple[Path, int]]:
    """This process is the batch step of job 7; the runs it would drive are listed, and nothing is trained."""
    variables = {"JOB_ID": "7", "JOB_NUM_NODES": "3", "NTASKS_PER_NODE": "2", "JOB_PARTITION": "main"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    driven: list[tuple[Path, int]] = []

    def run_job(folder: Path, number: int) -> int:
        driven.append((folder, number))
        return 0

    monkeypatch.setattr("hpcai500.job.run_job", run_job)
    return driven


@pytest.fixture
def in_job(smoke_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], site: Path) -> Any:
    """Calls submit as the job templates do."""
    site.write_text(f'output = "{tmp_path}/out"\n')

    def call(*words: object) -> Answer:
        begin = ["--cluster", "allocation", "--size", "smoke", "--data", str(smoke_data)]
        code = main([*begin, *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_job_is_planned_with_what_slurm_gave_it(job: Any, in_job: Any, tmp_path: Path) -> None:
    code, output, _ = in_job("--runs", 2)
    folder = tmp_path / "out/resnet50-smoke-free-job7"
    assert code == 0
    assert "6 (3 nodes x 2) in job 7, started with srun, device cpu" in re.sub(r"\n +", " ", output)
    assert job == [(folder, 1), (folder, 2)]
    assert [launch.runs for launch in read_launches(folder)] == [{"": [1, 2]}]


def test_a_job_that_is_started_again_goes_on_in_its_folder(
    job: list[tuple[Path, int]], in_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out/resnet50-smoke-free-job7"
    assert in_job("--runs", 2)[0] == 0
    (folder / "run-1/result.json").touch()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    before = (folder / "run-2/config.json").read_bytes()
    job.clear()
    code, output, _ = in_job("--runs", 2)
    assert code == 0
    assert "left to train: 2" in output
    assert job == [(folder, 2)]
    assert (folder / "run-2/config.json").read_bytes() == before


def test_a_folder_of_somebody_else_is_not_gone_on_with(job: Any, in_job: Any, tmp_path: Path) -> None:
    (tmp_path / "out/resnet50-smoke-free-job7").mkdir(parents=True)
    code, _, error = in_job()
    assert code == 2
    assert "exists already" in error


def test_gpus_of_the_job_decide_about_the_device(job: Any, in_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    _, output, _ = in_job("--dry-run", "--set", "batch_size_per_rank=8")
    assert "12 (3 nodes x 4, 4 GPUs a node) in job 7, started with srun, device cuda" in re.sub(r"\n +", " ", output)
    _, output, _ = in_job("--dry-run", "--device", "cpu")
    assert "3 (3 nodes x 1) in job 7, started with srun, device cpu" in re.sub(r"\n +", " ", output)


@pytest.mark.parametrize(
    ("words", "site_text", "message"),
    [
        ([], 'partition = "low"', "this job runs in partition 'main' and site.toml says 'low'; submit it after `eval"),
        (["--partition", "low"], "", "--partition says 'low'"),
        (["--nodes", 2], "", "--nodes 2 is not what this job has, which is 3; submit it with `sbatch --nodes=2`"),
        (["--gpus-per-node", 2], "", "--gpus-per-node 2 is more than the 0 that this job has on a node"),
    ],
)
def test_a_job_that_is_not_what_was_wanted_is_refused(
    words: list[object], site_text: str, message: str, job: Any, in_job: Any, site: Path
) -> None:
    site.write_text(site_text)
    code, output, error = in_job(*words)
    assert (code, output, job) == (2, "", [])
    assert message in error


def test_the_partition_can_be_meant_otherwise(job: Any, in_job: Any, site: Path) -> None:
    site.write_text('partition = "low"')
    assert in_job("--partition", "main", "--dry-run")[0] == 0


def test_one_failed_run_does_not_take_the_others_with_it(
    job: list[tuple[Path, int]], in_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = iter([1, 0, 75])
    driven = []
    monkeypatch.setattr("hpcai500.job.run_job", lambda folder, number: (driven.append(number), next(codes))[1])
    assert in_job("--runs", 4)[0] == 75  # the third goes on later, and the fourth begins after it
    assert driven == [1, 2, 3]


# --- going on ------------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(slurm: FakeSlurm, submit: Any, tmp_path: Path) -> Path:
    """A submission of two runs on 2 nodes x 2 ranks: the first is complete, the second begun."""
    words = ("--nodes", 2, "--ranks-per-node", 2, "--runs", 2, "--partition", "main", "--submitter", "me")
    assert submit(*words)[0] == 0
    (tmp_path / "out/run-1/result.json").touch()
    (tmp_path / "out/run-2/ledger/node-00000.jsonl").touch()
    (slurm.folder / "scripts").unlink()
    return tmp_path / "out"


def resume(folder: Path, capsys: pytest.CaptureFixture[str], *words: object) -> Answer:
    code = main(["--resume", str(folder), *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_what_is_left_is_submitted_as_before(
    stopped: Path, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, _ = resume(stopped, capsys)
    assert code == 0
    assert "2 (seeds 1, 2); left to train: 2" in output
    assert "#SBATCH --nodes=2\n" in slurm.script
    assert "#SBATCH --partition=main\n" in slurm.script
    assert "array" not in slurm.script
    assert [launch.runs for launch in read_launches(stopped)] == [{"0": [1], "1": [2]}, {"": [2]}]
    assert sorted(path.name for path in stopped.glob("launch*.json")) == ["launch.json"]


def test_it_goes_on_with_what_was_typed(stopped: Path, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = resume(stopped, capsys, "--nodes", 1, "--partition", "low", "--time", 30)
    assert code == 0
    assert "the runs began with 4 ranks and go on with 2; that is recorded" in re.sub(r"\n +", " ", output)
    assert "#SBATCH --nodes=1\n" in slurm.script
    launch = read_launch_config(stopped)
    assert (launch.num_nodes, launch.ranks_per_node, launch.partition) == (1, 2, "low")
    assert (launch.time_limit_s, launch.submitter) == (1800, "me")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "mini"], "--size cannot be given with --resume, which goes on with what"),
        (["--set", "momentum=0.5"], "--set cannot be given with --resume"),
        (["--nodes", 3], "run 2 has a global batch of 64, which 6 ranks cannot share evenly"),
        (["--nodes", 7], "--nodes 7 is more than the 3 nodes of partition 'main'"),
    ],
)
def test_what_cannot_be_changed_is_refused(
    words: list[object], message: str, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, error = resume(stopped, capsys, *words)
    assert (code, output) == (2, "")
    assert message in error


def test_a_run_that_has_not_begun_keeps_its_ranks(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stopped / "run-2/ledger/node-00000.jsonl").unlink()
    _, _, error = resume(stopped, capsys, "--nodes", 1)
    assert "run 2 has not begun yet, and begins with the 4 ranks it was planned for and not with 2" in error


def test_a_submission_that_is_still_in_the_queue_is_refused(
    stopped: Path, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.program("squeue", "echo '42_1|43|RUNNING|None|1795513000|1795523000|node[1-2]|2|main'\n")
    _, _, error = resume(stopped, capsys)
    assert "is still with job 42_1 (running on node[1-2]); follow it with `hpcai500 watch" in error


def test_a_submission_that_is_over_is_refused(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stopped / "submission.json").touch()
    _, _, error = resume(stopped, capsys)
    assert "the submission is assembled and over; make a new one" in error


def test_a_folder_that_is_no_submission_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, error = resume(tmp_path, capsys)
    assert "is no folder of a submission" in error


# --- job templates ---------------------------------------------------------------------------------------------------


def template(level: str, workload: str = "resnet50") -> str:
    return (ROOT / f"jobs/{workload}_{level}.sbatch").read_text(encoding="utf-8")


@pytest.mark.parametrize("level", LEVELS)
def test_templates_of_workloads_differ_only_in_names_and_examples(level: str) -> None:
    names = {
        "resnet50": "WORKLOAD",
        "fasterrcnn": "WORKLOAD",
        "ResNet-50 on ImageNet": "TITLE",
        "Faster R-CNN on climate fields": "TITLE",
        "data/mini.h5": "DATA",
        "data/mini-weather": "DATA",
        "label_smoothing=0.05": "SETTING",
        "longitude_roll=false": "SETTING",
    }
    texts = []
    for workload in ("resnet50", "fasterrcnn"):
        text = template(level, workload)
        for name, word in names.items():
            text = text.replace(name, word)
        texts.append(text)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("level", LEVELS)
def test_templates_differ_only_in_what_their_level_allows(level: str) -> None:
    text = template(level)
    allows = re.compile(rf"^# {level.capitalize()} level asks: (?:.|\n)*?\n\n", re.MULTILINE)
    assert len(allows.findall(text)) == 1
    other = re.sub(r"^# Free level asks: (?:.|\n)*?\n\n", "\n", template("free"), flags=re.MULTILINE)
    assert allows.sub("\n", text).replace(level, "LEVEL") == other.replace("free", "LEVEL")
    subprocess.run(["bash", "-n", str(ROOT / f"jobs/resnet50_{level}.sbatch")], check=True)


def run_template(environ: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of a template from another place, as Slurm does."""
    copy = Path(environ["HOME"]) / "slurm_script"
    copy.write_text(template("free"), encoding="utf-8")
    command = ["bash", str(copy), *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, cwd=environ["HOME"])


@pytest.fixture
def job_environ(slurm: FakeSlurm, tmp_path: Path) -> dict[str, str]:
    """Of a job whose script lies in a checkout at ``tmp_path``/checkout with a Python that tells how it was called."""
    python = tmp_path / "checkout/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/sh\nif [ "$3" = site ]; then echo "export PREPARED=yes"; else echo "$0" "$@" $PREPARED; fi\n'
    )
    python.chmod(0o755)
    slurm.program(
        "scontrol", f'echo "JobId=$3\n   Command={tmp_path}/checkout/jobs/resnet50_free.sbatch --size mini"\n'
    )
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SLURM_JOB_ID": "7"}


def test_a_template_finds_python_through_slurm(job_environ: dict[str, str], tmp_path: Path) -> None:
    done = run_template(job_environ, "--size", "mini")
    assert done.stdout.split() == [
        f"{tmp_path}/checkout/.venv/bin/python",
        *["-m", "hpcai500.submit", "--cluster", "allocation", "--workload", "resnet50", "--level", "free"],
        *["--set", "communicator=horovod", "--size", "mini", "yes"],
    ]


def test_a_template_takes_the_communicator_launcher_and_python_of_its_user(
    job_environ: dict[str, str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_text((tmp_path / "checkout/.venv/bin/python").read_text())
    other.chmod(0o755)
    chosen = {"COMM": "mpi", "LAUNCHER": "mpirun", "HPCAI500_PYTHON": str(other), "VIRTUAL_ENV": "/nowhere"}
    words = run_template(job_environ | chosen).stdout.split()
    assert words[0] == str(other)
    assert "communicator=mpi" in words
    assert words[words.index("--launcher") + 1] == "mpirun"


def test_a_template_without_python_says_what_to_do(job_environ: dict[str, str]) -> None:
    done = run_template(job_environ | {"VIRTUAL_ENV": "/nowhere"})
    assert done.returncode == 2
    assert "no Python with hpcai500 at '/nowhere/bin/python'; activate its virtual environment" in done.stderr


def test_a_template_ends_if_the_site_file_is_wrong(job_environ: dict[str, str], tmp_path: Path) -> None:
    python = tmp_path / "checkout/.venv/bin/python"
    python.write_text("#!/bin/sh\necho 'unknown key' >&2; exit 2\n")
    done = run_template(job_environ)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "unknown key\n"
