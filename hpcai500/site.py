"""Show which site file is used and what it says; or hand its values to a shell.

Run as ``hpcai500 site ...`` or ``python -m hpcai500.site ...``. The file itself is read by hpcai500.launch.site.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import msgspec

from hpcai500.command import run_command
from hpcai500.launch.site import SITE_VARIABLE, FoundSite, Site, find_site

EPILOG = """examples:
  hpcai500 site                                  which file is used, and what it says
  eval "$(hpcai500 site --shell)"                from now on a plain `sbatch jobs/resnet50_free.sbatch` uses it
  hpcai500 site --site cluster-b.toml --json

jobs/site.toml.example in the sources shows every key; copy it to site.toml and fill it in."""

# Variables that sbatch(1) reads in place of its options ("input environment variables").
SBATCH_VARIABLES = {
    "partition": "SBATCH_PARTITION",
    "account": "SBATCH_ACCOUNT",
    "qos": "SBATCH_QOS",
    "constraint": "SBATCH_CONSTRAINT",
    "reservation": "SBATCH_RESERVATION",
    "exclusive": "SBATCH_EXCLUSIVE",
    "mem": "SBATCH_MEM_PER_NODE",
    "time_limit": "SBATCH_TIMELIMIT",
    "gpus_per_node": "SBATCH_GPUS_PER_NODE",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    parser.add_argument("--site", type=Path, help="site file (default: the first that is found)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print it as JSON")
    form.add_argument("--shell", action="store_true", help="print shell lines by which sbatch uses it")
    form.add_argument("--setup", action="store_true", help="print its modules and setup lines, for job scripts")


def run(args: argparse.Namespace) -> int:
    """Print what was asked for."""
    found = find_site(args.site)
    if args.json:
        place = {"path": str(found.path) if found.path else None, "found_by": found.found_by}
        print(json.dumps({**place, "site": msgspec.to_builtins(found.site)}, indent=2))
    elif args.shell:
        print("\n".join(shell_lines(found)))
    elif args.setup:
        print("\n".join(setup_lines(found.site)))
    else:
        print(describe(found))
    return 0


def shell_lines(found: FoundSite) -> list[str]:
    """Lines that make a plain sbatch, and the jobs it submits, use the site file; what it leaves open stays."""
    lines = []
    for key, variable in SBATCH_VARIABLES.items():
        value = getattr(found.site, key)
        if value is True:
            lines.append(f"export {variable}={key}")  # sbatch takes the option's own word as "yes"
        elif value:
            lines.append(f"export {variable}={shlex.quote(str(value))}")
    if found.site.signal_before_end_s:
        lines.append(f"export SBATCH_SIGNAL=B:USR2@{found.site.signal_before_end_s}")
    if found.site.requeue is False:
        lines.append("export SBATCH_NO_REQUEUE=yes")
    if found.path:
        lines.append(f"export {SITE_VARIABLE}={shlex.quote(str(found.path))}")
    return lines


def setup_lines(site: Site) -> list[str]:
    """Shell lines that a job runs before anything else."""
    return [*(f"module load {shlex.quote(name)}" for name in site.modules or []), *(site.setup or [])]


def describe(found: FoundSite) -> str:
    """The file and its values, for people."""
    if found.path is None:
        looked_at = ", ".join(found.looked_at)
        return f"no site file; looked at {looked_at}\nto make one, copy jobs/site.toml.example to one of these places"
    lines = [f"{found.path} (named by {found.found_by})" if found.is_named else f"{found.path} (in {found.found_by})"]
    for key, value in msgspec.to_builtins(found.site).items():
        if key == "data":
            lines += [f"data.{name} = {json.dumps(path)}" for name, path in value.items()]
        elif value is not None:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m hpcai500.site``."""
    return run_command("python -m hpcai500.site", sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
