"""Code that is not the reference's: what hardware and system level take, and what shows as a deviation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from forging import Forger, Mutation
from msgspec.structs import replace
from recording import EDITION, record_submission

from hpcai500.checks.code import released_code
from hpcai500.code_digest import code_sha256
from hpcai500.equivalence.proof import PROOF_NAME, Proof, read_reference
from hpcai500.submission import assemble_submission, file_digest
from hpcai500.verdict import print_verdict
from hpcai500.verify import verify_submission
from hpcai500.version import __version__

Value = dict[str, Any]
OTHER = "1" * 64
HUGE = 1.7e308


pytestmark = pytest.mark.usefixtures("edition_of_recorded")


def at_level(forger: Forger, level: str) -> None:
    forger.edit_config(lambda config: config.update(level=level))
    forger.edit_submission(lambda submission: submission.update(level=level))


def run_code(forger: Forger, digest: str | None, *, numbers: tuple[int, ...] = (1, 2), rank: int | None = None) -> None:
    for number in numbers:
        forger.edit_events("run_open", lambda value: value.update(code_sha256=digest), number=number, rank=rank)


def run_version(forger: Forger, version: str) -> None:
    for number in (1, 2):
        forger.edit_events("run_open", lambda value: value.update(package_version=version), number=number)


def write_proof(forger: Forger, change: Callable[[Value], object] = lambda proof: None) -> Path:
    """Put a proof beside the submission, the reference's own but for the change, and list it."""
    proof = msgspec.to_builtins(read_reference("resnet50", "smoke")) | {"code_sha256": OTHER}
    change(proof)
    path = forger.path.with_name(PROOF_NAME)
    path.write_text(json.dumps(proof))
    listed = msgspec.to_builtins(file_digest(path))
    forger.edit_submission(lambda submission: submission.update(equivalence=listed))
    return path


def prove(change: Callable[[Value], object]) -> Callable[[Forger], object]:
    """Other code at system level, with a proof that has been changed."""

    def change_submission(forger: Forger) -> None:
        at_level(forger, "system")
        run_code(forger, OTHER)
        write_proof(forger, change)

    return change_submission


def lead_elsewhere(forger: Forger) -> None:
    path = write_proof(forger)
    path.rename(forger.path.parent.parent / "elsewhere.json")
    path.symlink_to(forger.path.parent.parent / "elsewhere.json")


def scale_losses(proof: Value, factor: float, first: int = 0) -> None:
    proof["losses"][first:] = [factor * loss for loss in proof["losses"][first:]]


MUTATIONS = (
    Mutation("check_code", "level.code", "a rank with other code", lambda f: run_code(f, OTHER, rank=1)),
    Mutation("check_code", "level.code", "changed code at hardware level", lambda f: (
        at_level(f, "hardware"), run_code(f, OTHER))),
    Mutation("check_code", "level.code", "unknown code at hardware level", lambda f: (
        at_level(f, "hardware"), run_code(f, None))),
    Mutation("check_code", "level.code", "a version that nobody released", lambda f: (
        at_level(f, "hardware"), run_version(f, "9.9.9"))),
    Mutation("check_code_of_runs", "level.code", "other code in the second run",
             lambda f: run_code(f, OTHER, numbers=(2,))),
    Mutation("check_proof_file", "form.files", "a proof altered afterwards",
             lambda f: write_proof(f).write_text("{}")),
    Mutation("check_proof_file", "form.files", "a proof deleted afterwards", lambda f: write_proof(f).unlink()),
    Mutation("check_proof_file", "form.files", "a proof that lies elsewhere", lead_elsewhere),
    Mutation("check_equivalence", "level.equivalence", "changed code without a proof", lambda f: (
        at_level(f, "system"), run_code(f, OTHER))),
    Mutation("check_equivalence", "level.equivalence", "unknown code without a proof", lambda f: (
        at_level(f, "system"), run_code(f, None))),
    Mutation("check_equivalence", "level.equivalence", "the proof of other code",
             prove(lambda p: p.update(code_sha256="2" * 64))),
    Mutation("check_equivalence", "level.equivalence", "the proof of another size",
             prove(lambda p: p.update(size="mini"))),
    Mutation("check_equivalence", "level.equivalence", "a proof of another edition",
             prove(lambda p: p.update(edition="9.9"))),
    Mutation("check_equivalence", "level.equivalence", "a smaller model",
             prove(lambda p: p.update(num_parameters=p["num_parameters"] - 1))),
    Mutation("check_equivalence", "level.equivalence", "less flop",
             prove(lambda p: p.update(flop_training_per_sample=p["flop_training_per_sample"] // 2))),
    Mutation("check_equivalence", "level.equivalence", "a kernel of another shape",
             prove(lambda p: p["parameters"][0].update(shape=[65]))),
    Mutation("check_equivalence", "level.equivalence", "a parameter more",
             prove(lambda p: p["parameters"][0].update(number=p["parameters"][0]["number"] + 1))),
    Mutation("check_equivalence", "level.equivalence", "another initialisation",
             prove(lambda p: p["parameters"][-1].update(initial_rms=2 * p["parameters"][-1]["initial_rms"]))),
    Mutation("check_equivalence", "level.equivalence", "weights that decay less",
             prove(lambda p: p["parameters"][-1].update(trained_rms=1.01 * p["parameters"][-1]["trained_rms"]))),
    Mutation("check_equivalence", "level.equivalence", "other scores",
             prove(lambda p: p["outputs"]["class_scores"].__setitem__(7, 0.0))),
    Mutation("check_equivalence", "level.equivalence", "scores left out", prove(lambda p: p["outputs"].clear())),
    Mutation("check_equivalence", "level.equivalence", "fewer losses", prove(lambda p: p["losses"].pop())),
    Mutation("check_equivalence", "level.equivalence", "other losses", prove(lambda p: scale_losses(p, 1.02, 90))),
    Mutation("check_equivalence", "level.equivalence", "a proof of another form", prove(lambda p: p.pop("losses"))),
)  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_code_that_the_level_does_not_take_is_rejected_and_nothing_else_found(
    forger: Forger, mutation: Mutation
) -> None:
    mutation.change(forger)
    forger.forge()
    verdict = verify_submission(forger.path)
    assert not verdict.valid
    assert {finding.rule for finding in verdict.findings} <= {mutation.rule, "level.code", "form.files"}
    assert mutation.rule in {finding.rule for finding in verdict.findings}


@pytest.mark.parametrize("level", ["hardware", "system"])
def test_the_released_code_needs_no_proof(forger: Forger, level: str) -> None:
    at_level(forger, level)
    forger.forge()
    verdict = verify_submission(forger.path)
    assert verdict.findings == []
    assert not [deviation for deviation in verdict.deviations if deviation.layer == 7]


def test_proven_code_is_valid_at_system_level_and_shown_as_a_deviation(
    forger: Forger, capsys: pytest.CaptureFixture[str]
) -> None:
    prove(lambda proof: None)(forger)
    forger.forge()
    verdict = verify_submission(forger.path)
    assert verdict.findings == []
    print_verdict(verdict)
    line = f"deviation: workload code = {OTHER} instead of {code_sha256()} (layer 7; allowed from system level)"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("digest", [OTHER, None])
def test_free_level_takes_any_code_and_says_so(forger: Forger, digest: str | None) -> None:
    run_code(forger, digest)
    forger.forge()
    verdict = verify_submission(forger.path)
    assert verdict.findings == []
    assert [(one.what, one.found) for one in verdict.deviations if one.layer == 7] == [
        ("workload code", digest or "unknown")
    ]


def test_other_implementations_need_no_digest_of_ours(forger: Forger) -> None:
    """Another framework has none; then neither the ledgers nor the proof have one."""
    at_level(forger, "system")
    run_code(forger, None)
    write_proof(forger, lambda proof: proof.update(code_sha256=None))
    forger.forge()
    assert verify_submission(forger.path).findings == []


def test_a_run_of_an_earlier_release_is_held_against_that(forger: Forger, monkeypatch: pytest.MonkeyPatch) -> None:
    at_level(forger, "hardware")
    run_version(forger, "0.0.9")
    run_code(forger, OTHER)
    forger.forge()
    assert {finding.place for finding in verify_submission(forger.path).findings} == {
        "run-1/ledger:package_version",
        "run-2/ledger:package_version",
    }
    with_release = replace(EDITION, releases={"0.0.9": OTHER})
    monkeypatch.setattr("hpcai500.verify.load_edition", lambda: with_release)
    assert verify_submission(forger.path).findings == []
    assert released_code(with_release, __version__) == code_sha256()


def test_a_proof_beside_the_runs_enters_the_submission(forger: Forger) -> None:
    path = write_proof(forger)
    forger.path.unlink()
    submission = assemble_submission([forger.run(1), forger.run(2)], forger.path, EDITION)
    assert submission.equivalence == file_digest(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda proof: proof.update(losses=[HUGE] * 100),
        lambda proof: [one.update(initial_rms=HUGE, trained_rms=HUGE) for one in proof["parameters"]],
        lambda proof: [one.update(number=2**63 - 1) for one in proof["parameters"]],
        lambda proof: proof["parameters"].append({**proof["parameters"][0], "shape": [2**63 - 1] * 8}),
        lambda proof: proof["parameters"].append(proof["parameters"][0]),
        lambda proof: proof.update(outputs={"class_scores": [-HUGE] * 64}),
        lambda proof: proof.update(parameters=[], outputs={}, losses=[]),
        lambda proof: proof.update(num_parameters=2**63 - 1, flop_forward_per_sample=2**63 - 1),
    ],
)  # fmt: skip
def test_no_number_of_a_proof_makes_the_verifier_raise(forger: Forger, change: Callable[[Value], object]) -> None:
    prove(change)(forger)
    forger.forge()
    assert "level.equivalence" in {finding.rule for finding in verify_submission(forger.path).findings}


def test_at_most_few_findings_of_each_part(forger: Forger) -> None:
    prove(lambda proof: scale_losses(proof, 2.0))(forger)
    forger.forge()
    findings = verify_submission(forger.path).findings
    assert [finding.place for finding in findings] == [
        *(f"{PROOF_NAME}:losses[{step}]" for step in range(3)),
        f"{PROOF_NAME}:losses",
    ]
    assert findings[-1].found == "97 more"


def test_settings_that_differ_are_listed_with_the_level_that_allows_them(tmp_path: Path) -> None:
    settings: dict[str, object] = {"learning_rate_per_256": 0.8, "momentum": 0.9, "communicator": "mpi"}
    verdict = verify_submission(record_submission(tmp_path, settings=settings))
    assert list(map(str, verdict.deviations)) == [
        "learning_rate_per_256 = 0.8 instead of 0.256 (layer 8; allowed from hardware level)",
        "momentum = 0.9 instead of 0.875 (layer 8; allowed from free level)",
        "communicator = mpi instead of torchdist (layer 3; allowed from hardware level)",
    ]


def test_a_proof_s_form_has_no_place_for_what_is_not_a_number() -> None:
    content = msgspec.json.encode(read_reference("resnet50", "smoke"))
    for word in (b"NaN", b"1e999", b"-Infinity"):
        with pytest.raises(msgspec.DecodeError):
            msgspec.json.decode(content.replace(b'"losses":[', b'"losses":[' + word + b","), type=Proof)
