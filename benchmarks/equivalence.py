"""How far proofs of equivalence go apart: through roundings alone, and through real differences.

Run as ``python benchmarks/equivalence.py resnet50 smoke memory_format=contiguous momentum=0.9``: makes the proof with
the defaults and with each change, and compares. ``--write-reference`` writes rules/equivalence/WORKLOAD-SIZE.json.
"""

from __future__ import annotations

import argparse
import math
import time

import msgspec
from msgspec.structs import replace
from report import machine

from hpcai500.equivalence.make import make_proof
from hpcai500.equivalence.proof import Proof, reference_path

STEPS = (1, 5, 10, 20, 50, 100)


def largest_differences(proof: Proof, base: Proof) -> str:
    """In the units of rules/equivalence.toml: outputs, losses up to some steps, weights."""
    parts = []
    for name, expected in base.outputs.items():
        rms = math.sqrt(math.fsum(value * value for value in expected) / len(expected))
        largest = max(abs(one - other) for one, other in zip(proof.outputs[name], expected, strict=True))
        parts.append(f"{name} {largest / rms:.1e}")
    losses = [abs(one - other) / other for one, other in zip(proof.losses, base.losses, strict=True)]
    parts += [f"losses[:{step}] {max(losses[:step]):.1e}" for step in STEPS if step <= len(losses)]
    trained = {tuple(one.shape): one.trained_rms for one in base.parameters}
    shared = [one for one in proof.parameters if tuple(one.shape) in trained]
    largest = max(abs(one.trained_rms / trained[tuple(one.shape)] - 1) for one in shared)
    return f"{', '.join(parts)}, trained_rms {largest:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload")
    parser.add_argument("size")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, help="instead of the rules' number")
    parser.add_argument("--write-reference", action="store_true")
    args = parser.parse_args()
    print(machine())
    begin_s = time.perf_counter()
    base = make_proof(args.workload, args.size, num_steps=args.steps)
    print(f"defaults: {time.perf_counter() - begin_s:.0f} s, losses {base.losses[0]:.4g} .. {base.losses[-1]:.4g}")
    if args.write_reference:
        reference = replace(base, code_sha256=None)
        path = reference_path(args.workload, args.size)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(reference), indent=2) + b"\n")
    for change in args.changes:
        key, value = change.split("=")
        proof = make_proof(args.workload, args.size, num_steps=args.steps, settings={key: value})
        print(f"{change}: {largest_differences(proof, base)}", flush=True)


if __name__ == "__main__":
    main()
