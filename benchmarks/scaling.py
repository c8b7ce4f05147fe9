"""How well ``hpcai500 plan`` predicts runs of twice as many ranks on this machine, and what it predicts elsewhere.

    python benchmarks/scaling.py [--repeats 5] [--size smoke] [--batch-size 4] [--folder FOLDER]

Each repeat trains ResNet-50 with 1, 2, 4 and 8 ranks on two cores, one after the other, and measures the exchange of 2
ranks by a self-check; then each run predicts the one of twice as many ranks. The other tables of
scaling.rst are those of scaling_published.py and scaling_simulation.py.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from report import figure, machine, spread

from hpcai500.datasets.generated import Recipe, prepare
from hpcai500.edition import load_edition
from hpcai500.launch.local import find_mpiexec
from hpcai500.scaling.calibration import calibrate, with_ranks_per_node, with_selfcheck
from hpcai500.scaling.job import make_job
from hpcai500.scaling.measured import measure_run, measure_selfcheck
from hpcai500.scaling.prediction import Prediction, predict
from hpcai500.submission import result_from_ledgers

NUM_RANKS = (1, 2, 4, 8)
NUM_CORES = 2.0  # a rank that is kept on one of them sees no other


def train(folder: Path, data: Path, size: str, num_ranks: int, batch_size: int) -> Path:
    """Train one run; returns its folder."""
    command = [sys.executable, "-m", "hpcai500", "submit", "--size", size, "--data", str(data), "--runs", "1"]
    command += ["--ranks", str(num_ranks), "--output", str(folder), "--no-selfcheck"]
    command += ["--set", f"batch_size_per_rank={batch_size}"]
    if num_ranks == 1:
        command = ["taskset", "-c", "0", *command]  # a core a rank, as the two ranks have that it shall predict
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)  # one run is not VALID
    return folder / "run-1"


def check(file: Path) -> Path:
    """Measure the exchange of two ranks."""
    command = [sys.executable, "-m", "hpcai500.selfcheck", "--communicator", "torchdist"]
    mpiexec = find_mpiexec()
    assert mpiexec is not None, "the mpi extra brings it"
    start = [mpiexec, "--allow-run-as-root", "--map-by", ":OVERSUBSCRIBE", "-n", "2"]
    subprocess.run([*start, *command, "--json", str(file)], stdout=subprocess.DEVNULL, check=True)
    return file


def forecast(folder: Path, selfcheck: Path, num_ranks: int) -> Prediction:
    """What a run says of one with so many ranks on the same cores."""
    run = measure_run(folder, load_edition())
    job = make_job(load_edition(), run.config.workload, run.config.size, run.config.settings)
    calibration = replace(calibrate([run], job), cores_per_node=NUM_CORES)
    if run.num_ranks == 1:
        calibration = with_selfcheck(calibration, measure_selfcheck(selfcheck))
    calibration = with_ranks_per_node(calibration, num_ranks)
    return predict(calibration.machine, job, num_nodes=1, batch_size=run.batch_size)


def ratios(folder: Path) -> dict[str, tuple[float, float, float, float]]:
    """Of a repeat: step measured and predicted, clock measured and predicted, for each pair of numbers of ranks."""
    found = {}
    for num_ranks in NUM_RANKS[:-1]:
        run = measure_run(folder / str(2 * num_ranks) / "run-1", load_edition())
        result = result_from_ledgers(folder / str(2 * num_ranks) / "run-1", load_edition())
        assert result.wall_s is not None, "the run is over"
        one = forecast(folder / str(num_ranks) / "run-1", folder / "selfcheck.json", 2 * num_ranks)
        found[f"{num_ranks} -> {2 * num_ranks}"] = (run.step_s, one.step.total_s, result.wall_s, one.clock_s)
    return found


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="of all runs (default: 5)")
    parser.add_argument("--size", default="smoke", help="of the workload (default: smoke)")
    parser.add_argument("--batch-size", type=int, default=4, help="of a rank (default: 4)")
    parser.add_argument("--folder", type=Path, help="where the runs are kept, and found again")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="scaling-"))
    data = folder / "data.h5"
    if not data.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if args.size == "smoke":
            prepare(data, Recipe(seed=0, num_classes=10, image_size=32, num_samples=(128, 50)))
        else:
            command = [sys.executable, "-m", "hpcai500", "data", "prepare", args.size, "--output", str(data)]
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    table: dict[str, list[tuple[float, float, float, float]]] = {}
    for repeat in range(1, args.repeats + 1):
        place = folder / f"repeat-{repeat}"
        place.mkdir(exist_ok=True)
        if not (place / "selfcheck.json").exists():
            check(place / "selfcheck.json")
        for num_ranks in NUM_RANKS:
            if not (place / str(num_ranks)).exists():
                train(place / str(num_ranks), data, args.size, num_ranks, args.batch_size)
        for name, figures in ratios(place).items():
            table.setdefault(name, []).append(figures)
            print(f"repeat {repeat}, {name}: " + ", ".join(f"{figure:.3f}" for figure in figures), flush=True)
    print(machine())
    for name, rows in table.items():
        step = spread([row[1] / row[0] for row in rows])
        clock = spread([row[3] / row[2] for row in rows])
        figure(f"{name} ranks: predicted step is off by", [abs(row[1] / row[0] - 1) for row in rows], bar=0.1)
        print(f"{name}: step {spread([row[0] for row in rows], 's')}, predicted / measured {step}; clock {clock}")


if __name__ == "__main__":
    main()
