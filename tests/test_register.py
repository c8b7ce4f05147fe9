"""Getting and giving tickets, over real sockets."""

from __future__ import annotations

import hashlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from hpcai500.__main__ import main
from hpcai500.errors import HpcAi500Error, RecordError, UnknownNameError, UsageError
from hpcai500.formats import SignedTicket
from hpcai500.register.client import check_answer, check_clock, request_ticket
from hpcai500.register.issuer import REGISTER_NAME, Quota, Register
from hpcai500.register.keys import public_key
from hpcai500.register.server import RegisterServer, answer, counted_address
from hpcai500.register.ticket import (
    NS_PER_S,
    TicketRequest,
    is_genuine,
    issue_ticket,
    read_ticket,
    run_seed,
    ticket_bytes,
    ticket_sha256,
)

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


@pytest.fixture
def register(tmp_path: Path) -> Iterator[Register]:
    register = Register(tmp_path / "register", KEY, name="Board")
    yield register
    register.close()


@pytest.fixture
def server(register: Register) -> Iterator[RegisterServer]:
    with RegisterServer(("127.0.0.1", 0), register, per_hour=5) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: RegisterServer, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, path, body)
    reply = connection.getresponse()
    content = json.loads(reply.read())
    connection.close()
    return reply.status, content


# tickets


def test_a_ticket_is_signed_over_bytes_that_anybody_can_make() -> None:
    signed = issue_ticket(KEY, REQUEST, issuer="Board", now_ns=1_790_000_000 * NS_PER_S)
    ticket = signed.ticket
    text = (
        f'{{"challenge":"{ticket.challenge}","format":1,"issued_ns":1790000000000000000,"issuer":"Board",'
        f'"issuer_key":"{public_key(KEY)}","level":"free","num_runs":2,"size":"smoke","submitter":"Zürich",'
        '"workload":"resnet50"}'
    )
    content = f"hpcai500 ticket 1\n{text}".encode()
    assert ticket_bytes(ticket) == content
    assert ticket_sha256(ticket) == hashlib.sha256(content).hexdigest()
    KEY.public_key().verify(bytes.fromhex(signed.signature), content)  # raises if it is not
    assert is_genuine(signed)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_runs": 1},
        {"issued_ns": 0},
        {"submitter": "another"},
        {"challenge": "a" * 64},
        {"issuer": "self"},
        {"issuer_key": public_key(OTHER_KEY)},
    ],
)
def test_a_ticket_with_one_word_altered_is_not_genuine(changes: dict[str, Any], home: Path) -> None:
    signed = issue_ticket(KEY, REQUEST, issuer="Board")
    altered = replace(signed, ticket=replace(signed.ticket, **changes))
    assert not is_genuine(altered)
    (home / "ticket.json").write_bytes(msgspec.json.encode(altered))
    with pytest.raises(UsageError, match="does not bear the signature of its issuer, so it was altered"):
        read_ticket(home / "ticket.json")


def test_challenges_are_never_the_same() -> None:
    assert len({issue_ticket(KEY, REQUEST).ticket.challenge for _ in range(20)}) == 20


def test_seeds_follow_from_challenge_and_number() -> None:
    assert (
        run_seed("0" * 64, 1)
        == int(hashlib.sha256(b"hpcai500 seed 1\n" + b"0" * 64 + b"\n1\n").hexdigest()[:16], 16) // 2**11
    )
    seeds = [run_seed(challenge * 64, number) for challenge in "01" for number in range(1, 501)]
    assert len(set(seeds)) == 1000
    assert 0 <= min(seeds) < max(seeds) < 2**53
    assert max(seeds) > 2**52  # all bits are used


# the register


def test_a_register_keeps_every_ticket_and_knows_it_after_a_restart(tmp_path: Path) -> None:
    register = Register(tmp_path, KEY, name="Board")
    given = [register.issue(REQUEST) for _ in range(3)]
    register.close()
    lines = (tmp_path / REGISTER_NAME).read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=SignedTicket) for line in lines] == given
    again = Register(tmp_path, KEY, name="Board")
    assert len(again) == 3
    assert [again.find(ticket_sha256(signed.ticket)) for signed in given] == given
    assert again.find("a" * 64) is None
    again.close()


def test_a_ticket_that_a_crash_cut_was_never_given_and_is_taken_away(tmp_path: Path) -> None:
    register = Register(tmp_path, KEY, name="Board")
    first = register.issue(REQUEST)
    register.close()
    path = tmp_path / REGISTER_NAME
    path.write_bytes(path.read_bytes() + b'{"ticket":')
    again = Register(tmp_path, KEY, name="Board")
    second = again.issue(REQUEST)
    assert [again.find(ticket_sha256(signed.ticket)) for signed in (first, second)] == [first, second]
    again.close()
    path.write_bytes(b"no ticket\n" + path.read_bytes())
    with pytest.raises(RecordError, match=r"line 1 of .* is no ticket"):
        Register(tmp_path, KEY, name="Board")


def test_a_ticket_that_cannot_be_kept_is_not_given(register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    first = register.issue(REQUEST)

    def refuse(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("hpcai500.register.issuer.os.fsync", refuse)
        with pytest.raises(RecordError, match=r"cannot keep a ticket \(No space left on device\); try again later"):
            register.issue(REQUEST)
    second = register.issue(REQUEST)
    assert [register.find(ticket_sha256(signed.ticket)) for signed in (first, second)] == [first, second]


def test_one_register_a_folder(register: Register, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is held by another process"):
        Register(tmp_path / "register", KEY, name="Board")
    with pytest.raises(UsageError, match="cannot be written"):
        Register(Path("/proc/register"), KEY, name="Board")
    for name in ("self", " ", "a\nb"):
        with pytest.raises(UsageError, match="cannot be the name of a register"):
            Register(tmp_path / "other", KEY, name=name)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"workload": "resnet51"}, UnknownNameError),
        ({"level": "hard"}, UnknownNameError),
        ({"size": "maxi"}, UnknownNameError),
        ({"submitter": "a\x1b[2Jb"}, UsageError),
    ],
)
def test_a_register_gives_no_ticket_for_what_there_is_not(
    changes: dict[str, str], error: type[HpcAi500Error], register: Register
) -> None:
    with pytest.raises(error):
        register.issue(replace(REQUEST, **changes))
    assert len(register) == 0


def test_the_quota_is_that_of_an_address_and_an_hour() -> None:
    now_s = [0.0]
    quota = Quota(2, 3600, lambda: now_s[0])
    assert [quota.take("a"), quota.take("a"), quota.take("a"), quota.take("b")] == [True, True, False, True]
    now_s[0] = 3600
    assert quota.take("a")


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_an_address_of_ipv6_counts_as_its_network(address: str, counted: str) -> None:
    assert counted_address(address) == counted


# over HTTP


def test_a_ticket_comes_over_http_and_can_be_looked_up(server: RegisterServer) -> None:
    before_ns = time.time_ns()
    signed = request_ticket(server.url, REQUEST)
    assert is_genuine(signed)
    ticket = signed.ticket
    assert (ticket.issuer, ticket.issuer_key, ticket.num_runs) == ("Board", public_key(KEY), 2)
    assert before_ns <= ticket.issued_ns <= time.time_ns()
    status, content = ask(server, "GET", f"/tickets/{ticket_sha256(ticket)}")
    assert (status, msgspec.convert(content, SignedTicket)) == (200, signed)
    assert ask(server, "GET", f"/tickets/{'a' * 64}")[0] == 404
    assert ask(server, "GET", "/key") == (200, {"issuer": "Board", "issuer_key": public_key(KEY)})


GOOD = msgspec.json.encode(REQUEST)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/tickets", b"", 400, "that is no request for a ticket"),
        ("POST", "/tickets", b"[" * 4000, 400, "that is no request for a ticket"),
        ("POST", "/tickets", b"\xff\xfe", 400, "that is no request for a ticket"),
        ("POST", "/tickets", GOOD.replace(b'"num_runs":2', b'"num_runs":0'), 400, "$.num_runs"),
        ("POST", "/tickets", GOOD.replace(b'"num_runs":2', b'"num_runs":1e999'), 400, "no request"),
        ("POST", "/tickets", GOOD.replace(b'"num_runs":2', b'"num_runs":2,"more":1'), 400, "unknown field `more`"),
        ("POST", "/tickets", GOOD.replace(b"smoke", b"maxi"), 400, "unknown size 'maxi'; known: mini"),
        ("POST", "/tickets", GOOD.replace("Zürich".encode(), b"\\u001b[2J"), 400, "cannot be printed"),
        ("POST", "/tickets", GOOD.replace("Zürich".encode(), b"\\ud800"), 400, "no request"),
        ("POST", "/tickets", b" " * 5000, 413, "at most 4096 bytes"),
        ("POST", "/ticket", GOOD, 404, "there are POST /tickets"),
        ("GET", "/tickets", None, 405, "POST /tickets gives a ticket"),
        ("GET", "/tickets/../key", None, 404, "there are POST /tickets"),
        ("GET", "/tickets/" + "a" * 63, None, 404, "there are POST /tickets"),
        ("DELETE", "/tickets", None, 501, "Unsupported method"),
    ],
)
def test_a_hostile_question_is_answered_in_a_sentence(
    method: str, path: str, body: bytes | None, status: int, words: str, server: RegisterServer
) -> None:
    answered, content = ask(server, method, path, body)
    assert answered == status
    assert list(content) == ["error"]
    assert words in content["error"]
    assert len(server.register) == 0


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 30, ""])
def test_a_length_that_is_none_is_refused(length: str, server: RegisterServer) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as line:
        line.sendall(f"POST /tickets HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode())
        assert b" 411 " in line.recv(1000).splitlines()[0]


def test_who_goes_away_or_sends_nonsense_does_no_harm(
    server: RegisterServer, capfd: pytest.CaptureFixture[str]
) -> None:
    for content in (b"", b"POST /tickets HTTP/1.1\r\nContent-Length: 4000\r\n\r\n{", b"\x00\xff" * 100 + b"\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as line:
            line.sendall(content)
    assert ask(server, "GET", "/key")[0] == 200
    time.sleep(0.1)
    assert "Traceback" not in capfd.readouterr().err


def test_an_address_gets_so_many_tickets_an_hour(server: RegisterServer) -> None:
    for _ in range(5):
        request_ticket(server.url, REQUEST)
    with pytest.raises(UsageError, match="refuses: this address got all tickets of this hour"):
        request_ticket(server.url, REQUEST)
    assert len(server.register) == 5
    status, _ = answer(
        server.register, server.quota, method="POST", path="/tickets", body=GOOD, address="192.0.2.7"
    )  # of another address
    assert status == 201


def test_many_at_a_time_get_a_ticket_each(register: Register) -> None:
    with RegisterServer(("127.0.0.1", 0), register, per_hour=1000) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        given: list[str] = []
        askers = [
            threading.Thread(target=lambda: given.append(ticket_sha256(request_ticket(server.url, REQUEST).ticket)))
            for _ in range(20)
        ]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        server.shutdown()
        thread.join()
    assert len(set(given)) == len(register) == 20
    assert all(register.find(digest) is not None for digest in given)


# the client


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as line:
        return int(line.getsockname()[1])


def test_a_register_that_cannot_be_reached_is_said_with_the_way_on() -> None:
    with pytest.raises(UsageError, match=r"cannot be reached \(.*refused\); check the address, or with --self-signed"):
        request_ticket(f"http://127.0.0.1:{free_port()}", REQUEST)
    with pytest.raises(UsageError, match="begins with https:// or http://"):
        request_ticket("file:///etc/passwd", REQUEST)
    with pytest.raises(UsageError, match="cannot be reached"):
        request_ticket("http://[", REQUEST)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"nonsense\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000,
        b"HTTP/1.1 500 No\r\n\r\n\xff\xff",
        b"HTTP/1.1 400 No\r\n\r\n" + json.dumps({"error": "\x1b[2J"}).encode(),
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
    ],
)
def test_a_hostile_register_gets_one_sentence_out_of_the_client(reply: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as line:

        def serve() -> None:
            with line.accept()[0] as one:
                one.recv(10_000)
                one.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(UsageError) as raised:
            request_ticket(f"http://127.0.0.1:{line.getsockname()[1]}", REQUEST, timeout_s=20)
        thread.join()
    assert "\n" not in str(raised.value)
    assert "\x1b" not in str(raised.value)
    assert "root:" not in str(raised.value)


def test_an_answer_that_was_not_asked_for_is_refused() -> None:
    now_ns = time.time_ns()
    good = issue_ticket(KEY, REQUEST, issuer="Board", now_ns=now_ns)
    check_answer("http://x", REQUEST, good, now_ns=now_ns)
    wrong = {
        "has not signed": replace(good, signature="0" * 128),
        "num_runs 3, which nobody asked for": issue_ticket(KEY, replace(REQUEST, num_runs=3), issuer="Board"),
        "issuer 'self', which nobody asked for": issue_ticket(KEY, REQUEST),
        "issued 61 s after now": issue_ticket(KEY, REQUEST, issuer="Board", now_ns=now_ns + 61 * NS_PER_S),
        "3601 s old by this machine's clock": issue_ticket(
            KEY, REQUEST, issuer="Board", now_ns=now_ns - 3601 * NS_PER_S
        ),
    }
    for words, signed in wrong.items():
        with pytest.raises(UsageError, match=words):
            check_answer("http://x", REQUEST, signed, now_ns=now_ns)
    with pytest.raises(UsageError, match="set the clocks of all nodes by NTP"):
        check_clock(replace(good.ticket, issued_ns=2**63 - 1), now_ns=now_ns)


# the command


def test_the_command_gets_a_ticket_from_a_register(
    server: RegisterServer, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["register", *WORDS, "--from", server.url]) == 0
    printed = capsys.readouterr().out
    assert "status: ticket of unknown issuer" in printed
    assert "next:   hpcai500 submit --ticket ticket.json" in printed
    assert read_ticket(home / "ticket.json").ticket.num_runs == 1  # as size smoke demands
    (home / "config/hpcai500").mkdir(parents=True)
    (home / "config/hpcai500/trusted_keys.toml").write_text(f'[issuers]\n{public_key(KEY)} = "The Board"\n')
    assert main(["register", *WORDS, "--from", server.url, "--runs", "7", "--output", "second.json"]) == 0
    assert "status: registered by The Board\n" in capsys.readouterr().out
    assert main(["register", *WORDS, "--from", server.url]) == 2
    assert "'ticket.json' exists and is never overwritten" in capsys.readouterr().err
    assert len(server.register) == 2  # nobody was asked for a ticket that had no place


def test_a_self_signed_ticket_says_plainly_what_it_is(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["register", *WORDS, "--self-signed"]) == 2
    assert "make it with --new-key" in capsys.readouterr().err
    assert main(["register", *WORDS, "--new-key"]) == 0
    assert "status: self-signed: unregistered\n" in capsys.readouterr().out
    signed = read_ticket(home / "ticket.json")
    assert signed.ticket.issuer == "self"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workload", "resnet51"], "unknown workload 'resnet51' (did you mean 'resnet50'?)"),
        (["--runs", "0"], "--runs 0 is not possible; give 1 to 1000"),
        (["--runs", "1001"], "--runs 1001 is not possible"),
        (["--submitter", " "], "--submitter is missing"),
        (["--submitter", "x" * 201], "has 201 characters; give a name of at most 200"),
        (["--submitter", "a\nb"], "cannot be printed"),
        (["--from", "board.example"], "begins with https:// or http://"),
    ],
)
def test_a_mistake_gets_no_ticket(
    words: list[str], message: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["register", *WORDS, *words]) == 2
    assert message in capsys.readouterr().err
    assert not (home / "ticket.json").exists()


def test_the_service_runs_and_ends_with_ctrl_c(home: Path) -> None:
    command = [sys.executable, "-m", "hpcai500", "register", "serve", "--name", "Board", "--port", "0"]
    command += ["--folder", "register", "--key", "key.pem", "--new-key"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=home)
    assert process.stdout is not None
    url = process.stdout.readline().split(" listens at ")[1].split(",")[0]
    trust = process.stdout.readline()
    signed = request_ticket(url, REQUEST)
    process.send_signal(signal.SIGINT)
    printed, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert f'{signed.ticket.issuer_key} = "Board"' in trust
    assert f"ticket {ticket_sha256(signed.ticket)[:12]}" in printed
