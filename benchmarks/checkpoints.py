"""What checkpoints cost, in percent of the time between them.

    hpcai500 submit --size mini --data data/mini.h5 --ranks 2 --runs 1 --set checkpoint_every_s=4 --output runs/often
    python benchmarks/checkpoints.py runs/often

The first command trains with a checkpoint every four seconds, far more often than the default, so that there are many
to measure: gathering what each rank has of its own, writing, syncing, hashing, and telling the others, while training
waits. Each costs training its own time and nothing else, so their share at another interval follows.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from report import machine, spread

from hpcai500.edition import load_edition
from hpcai500.events import Checkpoint, Window
from hpcai500.formats import read_config
from hpcai500.record import read_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of a submission")
    args = parser.parse_args()
    run_folder = args.folder / "run-1"
    run = read_run(run_folder, read_config(run_folder)[0])
    saved_s = [checkpoint.duration_ns / 1e9 for checkpoint in run.roots[0].values(Checkpoint)]
    steps_s = [window.duration_ns / window.num_steps / 1e9 for window in run.roots[0].values(Window)]
    sizes = [path.stat().st_size for path in (run_folder / "checkpoints").glob("*.pt")]
    setting = load_edition().workload(run.config.workload).setting("checkpoint_every_s")
    print(machine())
    print(f"checkpoints            {len(saved_s)} of {statistics.median(sizes) / 1e6:.0f} MB")
    print(f"a checkpoint           {spread(saved_s, 's')}")
    print(f"a step, window means   {spread(steps_s, 's')}")
    share = statistics.median(saved_s) / float(setting.default)
    print(f"share at the default   {100 * share:.3f} % of the time (every {setting.default:g} s; bar: 1 %)")


if __name__ == "__main__":
    main()
