"""Reference convergence points of mini runs, as rules/convergence.toml holds them.

    hpcai500 submit --size mini --data data/mini.h5 --ranks 2 --runs 8 --output runs/convergence
    python benchmarks/convergence_points.py runs/convergence --chance 0.1 --qualities 0.3 0.56

Reads the ledgers of rank 0 only. A run that did not reach a quality counts with all its epochs, as it does for the
verifier.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from report import machine

from hpcai500.events import Evaluation
from hpcai500.formats import read_config
from hpcai500.metrics import interpolated_time_to_quality
from hpcai500.record import read_segments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of a submission")
    parser.add_argument("--chance", type=float, required=True, help="quality of a model that has learnt nothing")
    parser.add_argument("--qualities", type=float, nargs="+", required=True, help="of the points")
    args = parser.parse_args()
    runs = {run: curve(run) for folder in args.folders for run in sorted(folder.glob("run-*")) if curve(run)}
    print(machine())
    for run, qualities in runs.items():
        config, _ = read_config(run)
        print(f"seed {config.seed}, {config.workload}: {', '.join(f'{quality:.3f}' for quality in qualities)}")
    for quality in args.qualities:
        epochs = [epochs_to(quality, qualities, args.chance) for qualities in runs.values()]
        print(
            f"quality {quality}: {', '.join(f'{value:.3f}' for value in epochs)} epochs; {len(epochs)} runs, "
            f"mean {statistics.fmean(epochs):.3f}, standard deviation {statistics.stdev(epochs):.3f}"
        )


def curve(run: Path) -> list[float]:
    """Quality after each epoch."""
    segments = read_segments(run, place="", ranks={0})
    return [value.quality for segment in segments for value in segment.ledgers[0].values(Evaluation)]


def epochs_to(quality: float, qualities: list[float], chance: float) -> float:
    epochs = [float(epoch) for epoch in range(len(qualities) + 1)]
    found = interpolated_time_to_quality(epochs, [chance, *qualities], quality)
    return epochs[-1] if found is None else found


if __name__ == "__main__":
    main()
