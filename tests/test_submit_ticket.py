"""What submit makes of a ticket: its seeds, its words, and runs that were announced and never trained."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from hpcai500.announced import check_unused
from hpcai500.formats import SignedTicket, read_config, read_record
from hpcai500.launches import note_submission
from hpcai500.ledger_reader import read_ledger
from hpcai500.register.ticket import (
    NS_PER_S,
    TicketRequest,
    issue_ticket,
    run_seed,
    ticket_sha256,
)
from hpcai500.submit import main as submit
from hpcai500.verify import verify_submission

KEY = Ed25519PrivateKey.from_private_bytes(b"register".ljust(32))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"somebody".ljust(32))
REQUEST = TicketRequest(workload="resnet50", level="free", size="smoke", num_runs=2, submitter="Zürich")
WORDS = ["--workload", "resnet50", "--level", "free", "--size", "smoke", "--submitter", "Zürich"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with nothing yet, in a folder of his own, who reaches this machine without a proxy."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_ticket(path: Path, **changes: Any) -> SignedTicket:
    signed = issue_ticket(KEY, replace(REQUEST, **changes), issuer="Board")
    path.write_bytes(msgspec.json.encode(signed))
    return signed


def test_the_plan_is_what_the_ticket_announces(
    smoke_data: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signed = write_ticket(home / "ticket.json")
    words = ["--ticket", "ticket.json", "--data", str(smoke_data), "--device", "cpu", "--dry-run"]
    assert submit(words) == 0
    printed = " ".join(capsys.readouterr().out.split())
    seeds = ", ".join(str(run_seed(signed.ticket.challenge, number)) for number in (1, 2))
    assert f"runs: 2 (seeds {seeds})" in printed
    assert "ticket: 2 runs of resnet50, free level, size smoke, for 'Zürich'" in printed
    assert submit([*words, "--runs", "2", "--size", "smoke", "--submitter", "Zürich"]) == 0
    assert sorted(path.name for path in home.iterdir()) == ["ticket.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runs", "3"], "--runs 3 is not what ticket 'ticket.json' announces, 2; leave the word away"),
        (["--workload", "fasterrcnn"], "--workload 'fasterrcnn' is not what ticket"),
        (["--level", "hardware"], "--level 'hardware' is not what ticket"),
        (["--size", "mini"], "--size 'mini' is not what ticket"),
        (["--submitter", "another"], "--submitter 'another' is not what ticket"),
        (["--seed", "7"], "--seed cannot be given with --ticket"),
        (["--assemble"], "--assemble needs the submission that it ends"),
    ],
)
def test_words_that_contradict_the_ticket_are_refused(
    words: list[str], message: str, smoke_data: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ticket(home / "ticket.json")
    assert submit(["--ticket", "ticket.json", "--data", str(smoke_data), "--device", "cpu", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_ticket_cannot_be_given_to_what_was_begun_before(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(["--resume", ".", "--ticket", "ticket.json"]) == 2
    assert "--ticket cannot be given with --resume" in capsys.readouterr().err


def test_a_ticket_of_the_future_or_altered_is_refused(
    smoke_data: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--ticket", "ticket.json", "--data", str(smoke_data), "--device", "cpu"]
    signed = issue_ticket(KEY, REQUEST, issuer="Board", now_ns=time.time_ns() + 3600 * NS_PER_S)
    contents = {
        "s after now by this machine's clock": msgspec.json.encode(signed),
        "so it was altered": msgspec.json.encode(signed).replace(b'"num_runs":2', b'"num_runs":1'),
        "is not a record of hpcai500": b"{}",
        "it is not JSON": b"no ticket",
    }
    for message, content in contents.items():
        (home / "ticket.json").write_bytes(content)
        assert submit(words) == 2
        assert message in capsys.readouterr().err


def test_announced_runs_are_trained_and_those_that_never_were_are_listed(
    smoke_data: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of two announced runs is trained in earnest, the other one never."""
    signed = write_ticket(home / "ticket.json")
    words = ["--ticket", "ticket.json", "--data", smoke_data, "--device", "cpu", "--output", "out"]
    words += ["--set", "communicator=serial"]
    command = [sys.executable, "-m", "hpcai500.submit", *map(str, words)]
    process = subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline_s = time.monotonic() + 120
    while not (home / "out/run-1/result.json").exists() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)  # the ranks of the second run, if there are any yet, go with it
    process.communicate(timeout=60)
    for ledger in (home / "out/run-2/ledger").glob("*"):
        ledger.unlink()

    config = read_config(home / "out/run-1")[0]
    assert config.seed == run_seed(signed.ticket.challenge, 1)
    opened: Any = next(read_ledger(home / "out/run-1/ledger/node-00000.jsonl")).value
    assert opened.ticket_sha256 == ticket_sha256(signed.ticket)
    assert read_record(home / "out/ticket.json", SignedTicket) == signed

    assert submit(["--ticket", "ticket.json", "--data", str(smoke_data), "--device", "cpu", "--output", "second"]) == 2
    assert "announces the runs of one submission only; go on there with" in capsys.readouterr().err
    check_unused(signed, home / "out")  # a job that is started again finds its own folder

    assert submit(["--resume", "out", "--assemble"]) == 0
    assert "note: run run-2 interrupted: it is listed and not counted" in capsys.readouterr().out
    verdict = verify_submission(home / "out/submission.json")
    assert verdict.findings == []
    assert verdict.registration.startswith("ticket of unknown issuer")
    assert submit(["--resume", "out", "--assemble"]) == 2
    assert "the submission is assembled and over" in capsys.readouterr().err


def test_a_folder_that_is_gone_gives_its_ticket_free(
    smoke_data: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ticket(home / "ticket.json")
    note_submission(home / "gone")
    assert submit(["--ticket", "ticket.json", "--data", str(smoke_data), "--device", "cpu", "--dry-run"]) == 0
