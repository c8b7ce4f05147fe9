"""Measures the figures of all benchmarks in their quick forms, and writes the table of README and documentation.

    python benchmarks/all.py [--only NAME ...] [--rounds 2] [--output benchmarks/table.json]

All benchmarks run in turn, and again in each round, so that what a process or a minute has of its own shows in the
spread. Within a round each benchmark alternates what it compares. The table is written as JSON, and as reStructuredText
beside it; README shows a part. Exits with 1 if a benchmark failed; the others are measured all the same. ``python
benchmarks/compare.py OLD NEW`` says what moved.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import FIGURES_VARIABLE
from table import Table, join, to_rst, with_headlines, write_table

from hpcai500.system import describe_node, describe_software

FOLDER = Path(__file__).parent
README = FOLDER.parent / "README.rst"
# The words of each quick form; together they take a quarter of an hour a round on two cores.
QUICK: dict[str, tuple[str, ...]] = {
    "start_up": ("--repeats", "7"),
    "engine_overhead": ("--repeats", "7"),
    "training_step": ("--repeats", "5"),
    "detector_step": ("--repeats", "3"),
    "image_pipelines": ("--repeats", "5", "--num-samples", "512"),
    "data_conversion": ("--repeats", "3", "--files", "4000"),
    "communicators": ("--launches", "2", "--rounds", "4"),
    "dead_rank": ("--launches", "3"),
    "staging": ("--repeats", "3", "--gigabytes", "1"),
    "detection_operators": ("--repeats", "5"),
    "detection_evaluation": ("--repeats", "3"),
    "micro": ("--repeats", "2", "--workload", "resnet50", "--size", "mini"),
    "scaling": ("--repeats", "1"),
    "collector": ("--quick",),
    "verification": ("--quick",),
    "leaderboard": ("--quick",),
    "mutation_suite": (),
}
TIME_LIMIT_S = 300.0


def run(name: str, folder: Path) -> tuple[str, str]:
    """Run a benchmark's quick form, with this process's output; returns the lines of its figures and what failed."""
    lines = folder / name
    lines.unlink(missing_ok=True)
    command = [sys.executable, str(FOLDER / f"{name}.py"), *QUICK[name]]
    try:
        done = subprocess.run(
            command, env=os.environ | {FIGURES_VARIABLE: str(lines)}, timeout=TIME_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return "", f"it was not done after {TIME_LIMIT_S:.0f} s"
    if done.returncode:
        return "", f"it ended with exit code {done.returncode}"
    return (lines.read_text(encoding="utf-8"), "") if lines.exists() else ("", "it told none")


def measure(names: list[str], num_rounds: int) -> Table:
    """Run the benchmarks in turn, ``num_rounds`` times."""
    date, first_load = time.strftime("%Y-%m-%d"), os.getloadavg()[0]
    rounds, failed = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(num_rounds):
            for name in names:
                last_load = os.getloadavg()[0]
                print(f"== {name}, round {number + 1} of {num_rounds}", flush=True)
                begin_s = time.monotonic()
                lines, problem = run(name, Path(folder))
                print(f"== {name}: {problem or 'done'}, {time.monotonic() - begin_s:.0f} s\n", flush=True)
                if problem:
                    failed[name] = problem
                rounds.append((name, lines))
    node, software = describe_node(), describe_software()
    return Table(
        date=date,
        machine={key: node[key] for key in ("processor", "num_cores", "memory_bytes", "accelerators")},
        versions={"Python": software["python"]}
        | {name: version for name, version in software["libraries"].items() if version},
        load=(first_load, last_load),
        num_rounds=num_rounds,
        figures=join(rounds),
        failed=failed,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=QUICK, metavar="NAME", help=f"of {', '.join(QUICK)}")
    parser.add_argument("--rounds", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=FOLDER / "table.json", help="(default: %(default)s)")
    args = parser.parse_args()
    names = args.only or [name for name in QUICK if (FOLDER / f"{name}.py").exists()]
    table = measure(names, args.rounds)
    write_table(args.output, table)
    args.output.with_suffix(".rst").write_text(to_rst(table), encoding="utf-8")
    if args.output == FOLDER / "table.json":
        README.write_text(with_headlines(README.read_text(encoding="utf-8"), table), encoding="utf-8")
    if max(table.load) > table.machine["num_cores"]:
        print(f"the machine was not quiet (load {table.load[0]:.1f}, {table.load[1]:.1f}): figures are not to be kept")
    for name, problem in table.failed.items():
        print(f"{name} failed: {problem}")
    print(f"{len(table.figures)} figures: {args.output}, {args.output.with_suffix('.rst')}")
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
