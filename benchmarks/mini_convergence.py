"""What the mini size of a workload reaches with five seeds, from which its target quality is set.

    hpcai500 submit --size mini --data data/mini.h5 --ranks 2 --runs 5 --output runs/convergence
    python benchmarks/mini_convergence.py runs/convergence

The target is the median of the seeds minus two standard deviations, rounded down to a hundredth.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

from report import machine

from hpcai500.formats import RunResult, read_record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of a submission")
    args = parser.parse_args()
    results = [
        read_record(path, RunResult) for folder in args.folders for path in sorted(folder.glob("run-*/result.json"))
    ]
    print(machine())
    print("seed   quality   last loss   ranked clock   images/s")
    for result in results:
        assert result.achieved_quality is not None
        print(
            f"{result.seed:>4}   {result.achieved_quality:>7.3f}   {result.loss_last:>9.3f}   {result.wall_s:>10.1f} s"
            f"   {result.samples_per_s:>8.1f}"
        )
    qualities = [result.achieved_quality for result in results if result.achieved_quality is not None]
    median, deviation = statistics.median(qualities), statistics.stdev(qualities)
    target = math.floor(100 * (median - 2 * deviation)) / 100
    print(
        f"median {median:.3f}, standard deviation {deviation:.4f}, median - 2 deviations {median - 2 * deviation:.3f}"
    )
    print(f"target {target:.2f}")


if __name__ == "__main__":
    main()
