"""The form of a proof of equivalence, and how two of them compare.

A proof says what an implementation computes from published weights and inputs (docs/equivalence.rst). The reference's
own are rules files, ``rules/equivalence/WORKLOAD-SIZE.json``. Part of the judge half: numbers come from strangers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from hpcai500.edition import RULES_FOLDER
from hpcai500.equivalence.definition import Bounds
from hpcai500.errors import RecordError, RulesError
from hpcai500.events import NotNegative, Positive, Sha256, Text
from hpcai500.formats import read_record

PROOF_NAME = "equivalence.json"
MAX_SHOWN = 3  # differences of one part that are listed; the first ones tell what is wrong
ALMOST_NOTHING = 1e-6  # a root mean square that counts as 0

Shape = Annotated[list[Positive], Meta(min_length=1, max_length=8)]
Numbers = Annotated[list[float], Meta(max_length=10_000)]


class Parameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All parameters of one shape, whatever an implementation calls them.

    Attributes:
        shape: axes in the reference's order: outputs, inputs, height, width.
        number: of parameters of this shape.
        initial_rms: root mean square of their values as the implementation itself initialises them.
        trained_rms: the same after the proof's training, which begins from published values.
    """

    shape: Shape
    number: Positive
    initial_rms: NotNegative
    trained_rms: NotNegative


class Proof(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """equivalence.json: what an implementation computes.

    Attributes:
        edition: of the rules, whose definition it follows.
        implementation: framework and versions, for people.
        code_sha256: digest of the workload's code, as the ledgers of runs with that code carry it; null if they do so.
        flop_forward_per_sample, flop_training_per_sample: of a sample of the size, as a run counts them.
        outputs: of each output, and of each part of the loss, some numbers spread evenly over it.
        losses: of the training steps.
    """

    format: Literal[1] = 1
    edition: Text
    workload: Text
    size: Text
    implementation: Text
    code_sha256: Sha256 | None = None
    num_parameters: Positive
    flop_forward_per_sample: Positive
    flop_training_per_sample: Positive
    parameters: Annotated[list[Parameters], Meta(max_length=10_000)]
    outputs: Annotated[dict[Text, Numbers], Meta(max_length=16)]
    losses: Numbers


class Difference(NamedTuple):
    """Where a proof is not the reference's: ``part`` is the field, with an index or key in brackets."""

    part: str
    expected: str
    found: str


def reference_path(workload: str, size: str, folder: Path = RULES_FOLDER) -> Path:
    """Where the reference's proof lies."""
    return folder / "equivalence" / f"{workload}-{size}.json"


def read_reference(workload: str, size: str) -> Proof:
    """The reference's own proof.

    Args:
        workload: a name of the edition, as is ``size``.
        size: of the workload.

    Raises:
        RulesError: it is missing or broken.
    """
    try:
        return read_record(reference_path(workload, size), Proof)
    except RecordError as error:
        raise RulesError(f"there is no reference to prove {workload}, size {size}, equivalent to") from error


def compare_proofs(proof: Proof, reference: Proof, bounds: Bounds) -> list[Difference]:
    """All that makes a proof another one than the reference's; empty if it proves equivalence."""
    exact = ("edition", "workload", "size", "num_parameters", "flop_forward_per_sample", "flop_training_per_sample")
    differences = [
        Difference(name, f"{getattr(reference, name)}", f"{getattr(proof, name)}")
        for name in exact
        if getattr(reference, name) != getattr(proof, name)
    ]
    parts = (
        _compare_parameters(proof.parameters, reference.parameters, bounds),
        _compare_outputs(proof.outputs, reference.outputs, bounds.outputs),
        _compare_losses(proof.losses, reference.losses, bounds.losses),
    )
    for part in parts:
        found = list(part)
        differences += found[:MAX_SHOWN]
        if len(found) > MAX_SHOWN:
            name = found[0].part.partition("[")[0]
            differences.append(Difference(name, "no further difference", f"{len(found) - MAX_SHOWN} more"))
    return differences


def _compare_parameters(mine: list[Parameters], reference: list[Parameters], bounds: Bounds) -> Iterator[Difference]:
    found = {tuple(one.shape): one for one in mine}
    wanted = {tuple(one.shape): one for one in reference}
    if len(found) < len(mine):
        yield Difference("parameters", "each shape once", "a shape twice")
    for shape in sorted(found.keys() | wanted.keys()):
        name = f"parameters[{'x'.join(map(str, shape))}]"
        one, other = found.get(shape), wanted.get(shape)
        if one is None or other is None or one.number != other.number:
            yield Difference(f"{name}.number", f"{other.number if other else 0}", f"{one.number if one else 0}")
            continue
        # The root mean square of n independent values of a distribution no longer-tailed than the normal one has a
        # relative standard deviation of at most 1 / sqrt(2 n).
        deviation = bounds.initial_sigmas / math.sqrt(2 * math.prod(shape) * other.number)
        allowed = {"initial_rms": deviation, "trained_rms": bounds.trained_rms}
        for field, part in allowed.items():
            expected, value = getattr(other, field), getattr(one, field)
            if not abs(value - expected) <= part * expected + ALMOST_NOTHING:
                yield Difference(f"{name}.{field}", f"{expected:.6g} within {100 * part:.2g} %", f"{value:.6g}")


def _compare_outputs(
    mine: dict[str, list[float]], reference: dict[str, list[float]], part: float
) -> Iterator[Difference]:
    for name in sorted(reference.keys() | mine.keys()):
        expected, found = reference.get(name, []), mine.get(name, [])
        if len(expected) != len(found):
            yield Difference(f"outputs[{name}]", f"{len(expected)} numbers", f"{len(found)}")
            continue
        allowed = part * math.sqrt(math.fsum(value * value for value in expected) / max(1, len(expected)))
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            if not abs(one - other) <= allowed:
                yield Difference(f"outputs[{name}][{index}]", f"{other:.6g} within {allowed:.2g}", f"{one:.6g}")


def _compare_losses(mine: list[float], reference: list[float], part: float) -> Iterator[Difference]:
    if len(mine) != len(reference):
        yield Difference("losses", f"{len(reference)} losses", f"{len(mine)}")
        return
    for step, (one, other) in enumerate(zip(mine, reference, strict=True)):
        if not abs(one - other) <= part * abs(other):
            yield Difference(f"losses[{step}]", f"{other:.6g} within {100 * part:.2g} %", f"{one:.6g}")
