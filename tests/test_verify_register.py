"""Submissions with a ticket and with a signature: what is accepted, and every way of cheating with them that is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from forging import Forger, Mutation
from msgspec.structs import replace
from recording import EDITION, NS_PER_S, record_submission

from hpcai500.errors import UsageError
from hpcai500.formats import SignedTicket, Ticket, read_config, write_json
from hpcai500.record import list_ledgers
from hpcai500.register.keys import public_key, sign
from hpcai500.register.ticket import TicketRequest, announced_run, issue_ticket, run_seed, ticket_bytes, ticket_sha256
from hpcai500.register.trusted import TrustedKeys
from hpcai500.signature import sign_submission
from hpcai500.submission import assemble_submission
from hpcai500.verify import main, verify_submission

START_NS = 1_790_000_000 * NS_PER_S  # of the first recorded run
CREATED = "2026-09-24T00:00:00Z"  # some days later
REGISTER_KEY = Ed25519PrivateKey.from_private_bytes(b"register".ljust(32))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"somebody".ljust(32))
REQUEST = TicketRequest(workload="resnet50", level="free", size="smoke", num_runs=2, submitter="somebody")
TRUSTED = TrustedKeys(
    issuers={public_key(REGISTER_KEY): "The register"}, signers={public_key(OTHER_KEY): "Our Computing Centre"}
)


def make_ticket(issued_ns: int = START_NS - 100 * NS_PER_S, **changes: object) -> SignedTicket:
    return issue_ticket(REGISTER_KEY, replace(REQUEST, **changes), issuer="Board", now_ns=issued_ns)


def record_announced(folder: Path, ticket: SignedTicket | None = None, **words: Any) -> Path:
    """A submission with a ticket, made some days after its runs."""
    path = record_submission(folder, ticket=ticket or make_ticket(), **words)
    Forger(path).edit_submission(lambda submission: submission.update(created=CREATED))
    return path


def announced(change: Callable[[Forger], object], **words: Any) -> Callable[[Forger], object]:
    """The change of a submission that has a ticket, put in the place of one that has none."""

    def change_announced(forger: Forger) -> None:
        shutil.rmtree(forger.path.parent)
        record_announced(forger.path.parent, **words)
        change(forger)

    return change_announced


def edit_ticket(forger: Forger, *, key: Ed25519PrivateKey | None = None, **changes: object) -> None:
    """Change the ticket of a submission, and sign it with a key or leave the signature as it is."""

    def change(submission: dict[str, Any]) -> None:
        submission["ticket"]["ticket"].update(changes)
        if key is not None:
            ticket = Ticket(**submission["ticket"]["ticket"])
            submission["ticket"]["signature"] = sign(key, ticket_bytes(ticket))

    forger.edit_submission(change)


def name_ticket(forger: Forger, digest: str | None) -> None:
    """Let the ledgers of all runs name another ticket."""
    for number in (1, 2):
        forger.edit_events("run_open", lambda value: value.update(ticket_sha256=digest), number=number)


def leave_out_second_run(forger: Forger) -> None:
    forger.edit_submission(lambda submission: submission["runs"].pop())


def set_created(forger: Forger, created: str) -> None:
    forger.edit_submission(lambda submission: submission.update(created=created))


def set_seed(forger: Forger, seed: int) -> None:
    forger.edit_config(lambda config: config.update(seed=seed), numbers=(1,))
    forger.edit_submission(lambda submission: submission["runs"][0].update(seed=seed))


def announce_as(forger: Forger, number: int) -> None:
    """Show the second run as another one of the ticket."""
    forger.edit_config(lambda config: config["announced"].update(number=number), numbers=(2,))


def sign_then(change: Callable[[Forger], object]) -> Callable[[Forger], object]:
    def change_signed(forger: Forger) -> None:
        sign_submission(forger.path, OTHER_KEY, name="Somebody")
        change(forger)

    return change_signed


def edit_signature(forger: Forger, change: Callable[[dict[str, Any]], object]) -> None:
    forger.edit_json(forger.path.with_name("submission.json.sig"), change)


REUSED = make_ticket()
MUTATIONS = (
    Mutation("check_ticket", "register.ticket", "more runs than were announced", announced(
        lambda f: edit_ticket(f, num_runs=1))),
    Mutation("check_ticket", "register.ticket", "signed with another key than the issuer's", announced(
        lambda f: edit_ticket(f, key=OTHER_KEY))),
    Mutation("check_ticket", "register.ticket", "a signature of nothing", announced(
        lambda f: f.edit_submission(lambda s: s["ticket"].update(signature="0" * 128)))),
    Mutation("check_ticket", "register.ticket", "a key that is no point", announced(
        lambda f: edit_ticket(f, issuer_key="f" * 64))),
    Mutation("check_ticket", "register.ticket", "a ticket for another size", announced(
        lambda f: None, ticket=make_ticket(size="mini"))),
    Mutation("check_ticket", "register.ticket", "somebody else's ticket", announced(
        lambda f: f.edit_submission(lambda s: s.update(submitter="another")))),
    Mutation("check_ticket", "register.ticket", "nobody's ticket", announced(
        lambda f: f.edit_submission(lambda s: s.update(submitter=None)))),
    Mutation("check_announced_runs", "register.runs", "a bad run left out", announced(
        leave_out_second_run, num_runs=2)),
    Mutation("check_announced_runs", "register.runs", "a run that was announced and is not there", announced(
        lambda f: None, ticket=make_ticket(num_runs=3))),
    Mutation("check_announced_runs", "register.runs", "a run that was not announced", announced(
        lambda f: None, ticket=make_ticket(num_runs=1))),
    Mutation("check_announced_runs", "register.runs", "one announced run shown twice", announced(
        lambda f: announce_as(f, 1))),
    Mutation("check_announced_runs", "register.runs", "a number beyond all runs", announced(
        lambda f: announce_as(f, 2**63 - 1))),
    Mutation("check_announced_runs", "register.runs", "a run beside the ticket", announced(
        lambda f: f.edit_config(lambda c: c.pop("announced"), numbers=(2,)))),
    Mutation("check_announced_runs", "register.runs", "the ticket left out", announced(
        lambda f: f.edit_submission(lambda s: s.pop("ticket")))),
    Mutation("check_announced_runs", "register.runs", "another ticket put in", announced(
        lambda f: edit_ticket(f, key=REGISTER_KEY, challenge="a" * 64))),
    Mutation("check_announced_seeds", "register.seeds", "a seed that does well", announced(lambda f: set_seed(f, 7))),
    Mutation("check_announced_seeds", "register.seeds", "seeds exchanged", announced(lambda f: (
        f.edit_config(lambda c: c["announced"].update(number=3 - c["announced"]["number"]))))),
    Mutation("check_ticket_in_ledgers", "register.ledgers", "runs that were made before the ticket", announced(
        lambda f: name_ticket(f, None))),
    Mutation("check_ticket_in_ledgers", "register.ledgers", "runs of another ticket", announced(
        lambda f: name_ticket(f, ticket_sha256(REUSED.ticket)))),
    Mutation("check_ticket_in_ledgers", "register.ledgers", "runs of a ticket that is not shown", lambda f: (
        name_ticket(f, ticket_sha256(REUSED.ticket)))),
    Mutation("check_ticket_times", "register.times", "a ticket got after the runs", announced(
        lambda f: None, ticket=make_ticket(START_NS + 120 * NS_PER_S))),
    Mutation("check_ticket_times", "register.times", "made before the runs ended", announced(
        lambda f: set_created(f, "2026-09-21T14:00:00Z"))),
    Mutation("check_ticket_times", "register.times", "made before its ticket", announced(
        lambda f: set_created(f, "1970-01-01T00:00:00Z"))),
    Mutation("check_ticket_times", "register.times", "made at a time that is none", announced(
        lambda f: set_created(f, "2026-99-99T99:99:99Z"))),
    Mutation("check_ticket_times", "register.times", "a ticket of the far future", announced(
        lambda f: edit_ticket(f, issued_ns=2**63 - 1))),
    Mutation("check_signature", "signature.digest", "altered after it was signed", sign_then(
        lambda f: f.edit_submission(lambda s: s.update(submitter="another"))), mends="no"),
    Mutation("check_signature", "signature.digest", "a digest that is not signed", sign_then(lambda f: (
        edit_signature(f, lambda s: s["vouched"].update(submission_sha256="a" * 64)))), mends="no"),
    Mutation("check_signature", "signature.key", "another name", sign_then(lambda f: (
        edit_signature(f, lambda s: s["vouched"].update(name="Our Computing Centre")))), mends="no"),
    Mutation("check_signature", "signature.key", "another key", sign_then(lambda f: (
        edit_signature(f, lambda s: s["vouched"].update(public_key=public_key(REGISTER_KEY))))), mends="no"),
    Mutation("check_signature", "signature.form", "a signature of half a key", sign_then(lambda f: (
        edit_signature(f, lambda s: s["vouched"].update(public_key="ab")))), mends="no"),
    Mutation("check_signature", "signature.form", "a signature that is no JSON", lambda f: (
        f.path.with_name("submission.json.sig").write_bytes(b"\xff")), mends="no"),
    Mutation("check_signature", "signature.form", "a signature that leads nowhere", lambda f: (
        f.path.with_name("submission.json.sig").symlink_to("nowhere")), mends="no"),
    Mutation("check_signature", "signature.form", "a folder for a signature", lambda f: (
        f.path.with_name("submission.json.sig").mkdir()), mends="no"),
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("edition_of_recorded")


@pytest.mark.parametrize("words", [{}, {"resumed_on": 2}, {"num_failed": 1, "ticket": make_ticket(num_runs=3)}])
def test_announced_runs_are_valid_and_registered_for_who_trusts_the_register(
    words: dict[str, Any], tmp_path: Path
) -> None:
    path = record_announced(tmp_path, **words)
    verdict = verify_submission(path, trusted=TRUSTED)
    assert verdict.findings == []
    assert verdict.registration == "registered by The register"
    assert verdict.signed_by is None


def test_who_does_not_trust_the_register_is_told_its_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = record_announced(tmp_path)
    assert main([str(path)]) == 0
    key = public_key(REGISTER_KEY)
    assert f"runs: ticket of unknown issuer {key}, which calls itself 'Board'\n" in capsys.readouterr().out


def test_a_self_signed_ticket_announces_but_does_not_register(tmp_path: Path) -> None:
    ticket = issue_ticket(OTHER_KEY, REQUEST, now_ns=START_NS)
    verdict = verify_submission(record_announced(tmp_path, ticket), trusted=TRUSTED)
    assert (verdict.valid, verdict.registration) == (True, "self-signed: unregistered")


def test_a_forged_ticket_registers_nothing(tmp_path: Path) -> None:
    path = record_announced(tmp_path)
    edit_ticket(Forger(path), key=OTHER_KEY)
    verdict = verify_submission(path, trusted=TRUSTED)
    assert verdict.registration == "unregistered: its ticket does not bear the signature of its issuer"


def test_a_submission_without_ticket_is_valid_and_unregistered(tmp_path: Path) -> None:
    verdict = verify_submission(record_submission(tmp_path), trusted=TRUSTED)
    assert (verdict.valid, verdict.registration) == (True, "unregistered")


def test_clocks_may_be_a_minute_apart(tmp_path: Path) -> None:
    for delay_s, findings in ((59, set()), (61, {"register.times"})):
        path = record_announced(tmp_path / str(delay_s), make_ticket(START_NS + delay_s * NS_PER_S))
        assert {finding.rule for finding in verify_submission(path).findings} == findings


def test_an_announced_run_that_never_started_is_listed(tmp_path: Path) -> None:
    ticket = make_ticket(num_runs=3)
    path = record_announced(tmp_path, ticket)
    config = read_config(tmp_path / "run-2")[0]
    never = replace(
        config, run_id="never", seed=run_seed(ticket.ticket.challenge, 3), announced=announced_run(ticket.ticket, 3)
    )
    (tmp_path / "run-3" / "ledger").mkdir(parents=True)
    write_json(tmp_path / "run-3" / "config.json", never)
    path.unlink()
    assert list_ledgers(tmp_path / "run-3") == {}
    assemble_submission([tmp_path / f"run-{number}" for number in (1, 2, 3)], path, EDITION, submitter="somebody")
    Forger(path).edit_submission(lambda submission: submission.update(created=CREATED))
    verdict = verify_submission(path, trusted=TRUSTED)
    assert verdict.findings == []
    assert [(result.status, result.segments) for result in verdict.results] == [
        ("completed", 1),
        ("completed", 1),
        ("interrupted", 0),
    ]
    assert "run run-3 interrupted: it is listed and not counted" in verdict.notes
    assert "the runs took 32 s of the 57.8 h between ticket and submission" in verdict.notes


def test_a_folder_without_ledger_that_nobody_announced_is_not_assembled(tmp_path: Path) -> None:
    path = record_submission(tmp_path)
    shutil.rmtree(tmp_path / "run-2" / "ledger")
    path.unlink()
    with pytest.raises(Exception, match="has no ledger; has the run started"):
        assemble_submission([tmp_path / "run-1", tmp_path / "run-2"], path, EDITION)


def test_the_signer_is_named_by_whom_the_reader_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = record_submission(tmp_path)
    sign_submission(path, OTHER_KEY, name="Nobody")
    key = public_key(OTHER_KEY)
    assert verify_submission(path, trusted=TRUSTED).signed_by == f"Our Computing Centre (key {key})"
    trusted = tmp_path / "trusted.toml"
    trusted.write_text(f'[signers]\n{key} = "Our Centre"\n')
    assert main([str(path), "--trusted-keys", str(trusted)]) == 0
    assert f"signed by Our Centre (key {key})\n" in capsys.readouterr().out
    assert main([str(path), "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["signed_by"] == f"unknown key {key}, which calls itself 'Nobody'"


def test_an_altered_submission_is_signed_by_nobody(tmp_path: Path) -> None:
    path = record_submission(tmp_path)
    sign_submission(path, OTHER_KEY, name="Somebody")
    Forger(path).edit_submission(lambda submission: submission.update(submitter="another"))
    verdict = verify_submission(path, trusted=TRUSTED)
    assert [finding.rule for finding in verdict.findings] == ["signature.digest"]
    assert verdict.signed_by is None


@pytest.mark.parametrize(
    "text",
    ["[issuers", "[issuers]\nab = 'x'", "[issuers]\n" + "a" * 64 + " = ''", "[owners]\n", "[signers]\n" + "a" * 63],
)
def test_trusted_keys_of_another_form_are_refused_in_a_sentence(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = record_submission(tmp_path / "runs")
    (tmp_path / "trusted.toml").write_text(text)
    assert main([str(path), "--trusted-keys", str(tmp_path / "trusted.toml")]) == 2
    assert "are not TOML with [issuers] and [signers]" in capsys.readouterr().err
    assert main([str(path), "--trusted-keys", str(tmp_path / "none.toml")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_name_of_a_stranger_cannot_be_taken_for_a_trusted_one(tmp_path: Path) -> None:
    ticket = issue_ticket(OTHER_KEY, REQUEST, issuer="The register", now_ns=START_NS)
    verdict = verify_submission(record_announced(tmp_path, ticket), trusted=TRUSTED)
    assert verdict.registration.startswith("ticket of unknown issuer")
    with pytest.raises(UsageError, match="cannot be a name"):
        sign_submission(tmp_path / "submission.json", OTHER_KEY, name="VALID\x1b[2J")
