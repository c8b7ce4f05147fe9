"""How long a job takes from its start to its first training step, on a Slurm cluster of virtual nodes.

    python benchmarks/cluster_start_up.py [--nodes 3] [--ranks-per-node 2] [--repeats 3]

Needs root: it starts a cluster (tools/slurm_cluster.py) in a folder of its own and ends it. Each repeat runs, in turn,
a job whose ranks only import torch, and one with each communicator whose ranks train ResNet-50's smoke size; its parts
are those that the ranks wrote into their ledgers. Bar: 1.5 times the import + 2 s.

The nodes share this machine's cores, so that ranks which wait must not spin: OMPI_MCA_mpi_yield_when_idle is set.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from report import machine, spread

from hpcai500.datasets.generated import Recipe, prepare
from hpcai500.edition import load_edition
from hpcai500.formats import DataSource, RunConfig, write_json
from hpcai500.launch.launch_config import LaunchConfig
from hpcai500.launch.step import rank_command, step_command, step_environment
from hpcai500.pipelines.hdf5 import open_images

TOOL = Path(__file__).parents[1] / "tools/slurm_cluster.py"
COMMUNICATORS = ("torchdist", "mpi", "horovod")
PARTS = ("allocation", "launch", "import", "rendezvous", "data_open", "model", "wait")


def make_run(folder: Path, data: Path, launch: LaunchConfig, comm: str) -> Path:
    """A run folder of the smoke size, as ``hpcai500 submit`` makes it."""
    edition, info = load_edition(), open_images(data)
    settings = {"communicator": comm, "batch_size_per_rank": "8"}
    config = RunConfig(
        run_id=str(uuid.uuid4()),
        workload="resnet50",
        level="free",
        size="smoke",
        edition=edition.number,
        rules_sha256=edition.sha256,
        seed=7,
        num_ranks=launch.num_nodes * launch.ranks_per_node,
        num_nodes=launch.num_nodes,
        device="cpu",
        data=DataSource(path=str(data), dataset_sha256=info.dataset_sha256, source=info.provenance["source"]),
        settings=edition.workload("resnet50").resolve("smoke", "free", settings),
    )
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    return folder


class Jobs:
    """Runs commands as the ranks of jobs on a cluster that is up in a folder."""

    def __init__(self, root: Path, launch: LaunchConfig) -> None:
        self.launch = launch
        self.env = os.environ | {"PATH": f"{root}/bin:{os.environ['PATH']}", "SLURM_CONF": f"{root}/etc/slurm.conf"}

    def run(self, folder: Path, argv: list[str]) -> float:
        """Seconds from the begin of the batch script to the end of the ranks."""
        variables = step_environment(self.launch, job_start_ns=0, environ={})
        variables |= {"OMP_NUM_THREADS": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
        lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        lines += ["export HPCAI500_JOB_START_NS=$(date +%s%N)", "export HPCAI500_LAUNCH_NS=$HPCAI500_JOB_START_NS"]
        lines += [shlex.join(step_command(self.launch, argv, num_nodes=self.launch.num_nodes)) + " || exit"]
        lines += [f"echo $HPCAI500_JOB_START_NS $(date +%s%N) >{folder}/times"]
        (folder / "job.sh").write_text("\n".join(["#!/bin/bash", *lines, ""]), encoding="utf-8")
        nodes = [f"--nodes={self.launch.num_nodes}", f"--ntasks-per-node={self.launch.ranks_per_node}"]
        submit = ["sbatch", "--parsable", "--exclusive", *nodes, f"--output={folder}/output", str(folder / "job.sh")]
        job = subprocess.run(submit, env=self.env, check=True, capture_output=True, text=True).stdout.strip()
        queue = ["squeue", "--noheader", "--states=PENDING,RUNNING,COMPLETING", f"--jobs={job}"]
        while subprocess.run(queue, env=self.env, check=True, capture_output=True).stdout.strip():
            time.sleep(0.2)
        if not (folder / "times").exists():
            sys.exit((folder / "output").read_text(encoding="utf-8"))
        begin_ns, end_ns = map(int, (folder / "times").read_text(encoding="ascii").split())
        return (end_ns - begin_ns) / 1e9


def start_up_parts(run_folder: Path) -> dict[str, float]:
    """Seconds of each part, on the rank that was last; ranks start their first step together."""
    events = []
    for ledger in sorted((run_folder / "ledger").glob("rank-*.jsonl")):
        lines = map(json.loads, ledger.read_text(encoding="utf-8").splitlines())
        events += [line["value"] for line in lines if line["event"] == "start_up"]
    last = max(events, key=lambda event: sum(event[f"{part}_ns"] for part in PARTS))
    return {part: last[f"{part}_ns"] / 1e9 for part in PARTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--ranks-per-node", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    launch = LaunchConfig(
        cluster="slurm",
        num_nodes=args.nodes,
        ranks_per_node=args.ranks_per_node,
        gpus_per_node=0,
        python=sys.executable,
    )
    with tempfile.TemporaryDirectory(prefix="hpcai500-", dir="/tmp") as name:
        folder, root = Path(name), Path(name) / "c"
        data = prepare(folder / "smoke.h5", Recipe(seed=0, num_classes=10, image_size=32, num_samples=(128, 50)))
        tool = [sys.executable, str(TOOL), "--folder", str(root)]
        subprocess.run([*tool, "up", "--nodes", str(args.nodes), "--no-accounting"], check=True)
        try:
            imports, parts = measure(Jobs(root, launch), folder, data, args.repeats)
        finally:
            subprocess.run([*tool, "down"], check=True)
    print(machine())
    print(f"{args.nodes} nodes x {args.ranks_per_node} ranks")
    print(f"{'import torch':<20}{spread(imports, 's')}")
    bar = 1.5 * statistics.median(imports) + 2
    print(f"{'bar':<20}{bar:.4g} s")
    for comm, runs in parts.items():
        print(f"{comm:<20}{spread([sum(run.values()) for run in runs], 's')}")
        for part in PARTS:
            print(f"    {part:<16}{spread([run[part] for run in runs], 's')}")


def measure(
    jobs: Jobs, folder: Path, data: Path, repeats: int
) -> tuple[list[float], dict[str, list[dict[str, float]]]]:
    imports: list[float] = []
    parts: dict[str, list[dict[str, float]]] = {comm: [] for comm in COMMUNICATORS}
    for repeat in range(repeats):
        place = folder / f"import-{repeat}"
        place.mkdir()
        imports.append(jobs.run(place, [sys.executable, "-c", "import torch"]))
        for comm in COMMUNICATORS:
            run_folder = make_run(folder / f"{comm}-{repeat}", data, jobs.launch, comm)
            jobs.run(run_folder, rank_command(jobs.launch, "hpcai500.train", str(run_folder)))
            parts[comm].append(start_up_parts(run_folder))
    return imports, parts


if __name__ == "__main__":
    main()
