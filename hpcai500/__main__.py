"""The umbrella command ``hpcai500``; each sub-command lives in the module that does its work.

Run as ``hpcai500 COMMAND ...`` or ``python -m hpcai500 COMMAND ...``. A module is imported only when its command is
called, so that ``hpcai500 --help`` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from hpcai500.command import run_command
from hpcai500.version import __version__

COMMANDS = {
    "submit": ("hpcai500.submit", "train, assemble a submission and verify it"),
    "train": ("hpcai500.train", "one rank of a run; started by submit or by a job script"),
    "status": ("hpcai500.status", "show how far your submissions are, in the queue and in training"),
    "watch": ("hpcai500.watch", "follow a submission until its runs are over"),
    "equivalence": ("hpcai500.equivalence.command", "prove that changed code computes what the reference computes"),
    "verify": ("hpcai500.verify", "decide whether a submission is valid"),
    "report": ("hpcai500.report.command", "show what a run or submission did, as one page"),
    "explain": ("hpcai500.explain", "say what a rule of the verifier demands, why, and what to do"),
    "export": ("hpcai500.export", "write MLPerf's logs of a submission, and JSON Schemas"),
    "register": ("hpcai500.register.cli", "announce runs before they are made; get or give tickets for that"),
    "leaderboard": ("hpcai500.leaderboard.cli", "run a board of verified submissions, and upload to one"),
    "meter": ("hpcai500.energy.command", "add what power meters read to runs that are complete"),
    "sign": ("hpcai500.sign", "vouch for a submission with a key of yours"),
    "software": ("hpcai500.software", "pack the software into one archive, which jobs bring to their nodes"),
    "site": ("hpcai500.site", "show what site.toml says of this cluster"),
    "selfcheck": ("hpcai500.selfcheck", "check whether this machine is fit to be measured"),
    "plan": ("hpcai500.scaling.command", "say what a job would take on more nodes, and what limits it"),
    "micro": ("hpcai500.micro.command", "measure what this machine allows: a training step's operations one by one"),
    "data": ("hpcai500.data", "prepare, generate, inspect and check data files"),
}
EPILOG = """examples:
  hpcai500 data prepare mini --output data/mini.h5
  hpcai500 submit --size mini --ranks 2 --runs 2 --data data/mini.h5
  hpcai500 verify runs/NAME/submission.json

`hpcai500 COMMAND --help` explains a command."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 good, 1 failed or invalid, 2 wrong use, 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0] in COMMANDS:
        module = import_module(COMMANDS[arguments[0]][0])
        return run_command(f"hpcai500 {arguments[0]}", module, arguments[1:])
    parser = argparse.ArgumentParser(
        prog="hpcai500",
        description="Measures how fast a machine trains real models to a quality.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"hpcai500 {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (_, text) in COMMANDS.items():
        subparsers.add_parser(name, help=text, add_help=False)
    parser.parse_args(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
