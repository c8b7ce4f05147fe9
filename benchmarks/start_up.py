"""How long the commands take to answer.

    python benchmarks/start_up.py [--repeats 15]

Each command runs as a process of its own, in turn with an empty Python, whose time is shown beside it and contained in
the figures. Bars: import hpcai500 0.15 s, hpcai500 --help 0.3 s, hpcai500-verify 0.3 s.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from report import figure, machine, spread

BIN = Path(sys.executable).parent
COMMANDS = {
    "an empty Python": [sys.executable, "-c", ""],
    "import hpcai500": [sys.executable, "-c", "import hpcai500"],
    "hpcai500 --help": [str(BIN / "hpcai500"), "--help"],
    "hpcai500-verify --help": [str(BIN / "hpcai500-verify"), "--help"],
}
BARS = {"import hpcai500": 0.15, "hpcai500 --help": 0.3, "hpcai500-verify --help": 0.3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--submission", type=Path, help="a submission.json to verify as well")
    args = parser.parse_args()
    commands = dict(COMMANDS)
    if args.submission:
        commands["hpcai500-verify of a mini submission"] = [str(BIN / "hpcai500-verify"), str(args.submission)]
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(args.repeats + 1):
        for name, command in commands.items():
            begin_s = time.perf_counter()
            subprocess.run(command, capture_output=True, check=True)
            if number:
                times[name].append(time.perf_counter() - begin_s)
    print(machine())
    for name, values in times.items():
        print(f"{name:<40}{spread(values, 's')}")
        figure(name, values, "s", bar=BARS.get(name))


if __name__ == "__main__":
    main()
