"""Prove that this code computes what the reference computes, and write the proof.

The proof goes beside a submission of system level whose workload code is not that of a release.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hpcai500.command import run_command
from hpcai500.edition import load_edition
from hpcai500.equivalence.definition import load_proof_rules
from hpcai500.equivalence.proof import PROOF_NAME, compare_proofs, read_reference
from hpcai500.errors import RecordError, UsageError
from hpcai500.formats import write_json

EPILOG = """examples:
  hpcai500 equivalence --workload resnet50 --size official --output runs/NAME/equivalence.json
  hpcai500 equivalence --workload fasterrcnn --size official --device cuda

exit code: 0 equivalent, 1 not, 2 there is no proof"""
REPORT_STEPS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    parser.add_argument("--workload", default="resnet50", help="resnet50 or fasterrcnn (default: %(default)s)")
    parser.add_argument("--size", default="official", help="as of the runs (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(PROOF_NAME), help="where it goes (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Make the proof, write it and say whether it proves equivalence; returns 0 if it does, else 1.

    Raises:
        UsageError: there is no such workload or size.
        RecordError: the output exists or cannot be written.
    """
    load_edition().workload(args.workload).size(args.size)
    if args.output.exists():
        raise RecordError(f"{str(args.output)!r} exists and is never overwritten; choose another --output")
    if args.device != "cpu" and args.device.partition(":")[0] != "cuda":
        raise UsageError(f"--device {args.device!r} is not possible; use cpu, cuda or cuda:N")
    from hpcai500.equivalence.make import make_proof

    rules = load_proof_rules()
    reference = read_reference(args.workload, args.size)

    def report(step: int, loss: float) -> None:
        if (step + 1) % REPORT_STEPS == 0:
            print(f"step {step + 1} of {rules.num_steps}, loss {loss:.6g}", file=sys.stderr, flush=True)

    proof = make_proof(args.workload, args.size, device=args.device, report=report)
    write_json(args.output, proof)
    differences = compare_proofs(proof, reference, rules.bounds)
    for part, expected, found in differences:
        print(f"{part}: expected {expected}, found {found}")
    print(f"{args.output}: {'NOT EQUIVALENT' if differences else 'EQUIVALENT'} ({proof.implementation})")
    return 1 if differences else 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m hpcai500.equivalence.command``."""
    return run_command("hpcai500 equivalence", sys.modules[__name__], argv)
