"""What a proof of equivalence trains, and how far it may be off: ``rules/equivalence.toml``, read into frozen objects.

Part of the judge half.
"""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path

import msgspec

from hpcai500.edition import RULES_FOLDER, SettingValue
from hpcai500.errors import RulesError, UnknownNameError


class ProofSize(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the proof of one size trains on.

    Attributes:
        batch_size: samples of a step.
        learning_rate: of all steps.
        height, width: of the published fields in pixels; 0 where the size's own are taken.
        num_objects: on each field; 0 where there are none.
    """

    batch_size: int
    learning_rate: float
    height: int = 0
    width: int = 0
    num_objects: int = 0


class ProofWorkload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings in which the proof differs from a run with defaults, and its sizes."""

    settings: dict[str, SettingValue]
    sizes: dict[str, ProofSize]


class Bounds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far a proof may be off the reference's.

    Attributes:
        outputs: largest difference, in units of the output's root mean square.
        losses: largest difference, in units of the loss.
        trained_rms: the same of the weights' root mean squares after training.
        initial_sigmas: the same before training, where implementations draw other numbers, in standard deviations
            of an estimate from as many weights.
    """

    outputs: float
    losses: float
    trained_rms: float
    initial_sigmas: float


class ProofRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """rules/equivalence.toml, whole."""

    num_steps: int
    num_batches: int
    num_outputs: int
    bounds: Bounds
    workloads: dict[str, ProofWorkload]

    def workload(self, name: str) -> ProofWorkload:
        """The workload of that name.

        Raises:
            UnknownNameError: it has no proof.
        """
        if name not in self.workloads:
            raise UnknownNameError("workload", name, self.workloads)
        return self.workloads[name]


@functools.cache
def load_proof_rules(folder: Path = RULES_FOLDER) -> ProofRules:
    """The rules of proofs that this package comes with.

    Raises:
        RulesError: the file is missing or broken.
    """
    path = folder / "equivalence.toml"
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), ProofRules)
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise RulesError(f"cannot read the rules file {path}") from error
