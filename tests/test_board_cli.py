"""The command ``hpcai500 leaderboard``: what submitters and operators type, against a board that is served."""

from __future__ import annotations

import http.server
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from board_rows import make_board, make_submission
from board_server import client_of
from boards import COMMAND, ServedBoard, record_for_board, vary
from forging import Forger
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from hpcai500.__main__ import main
from hpcai500.leaderboard.backup import TABLES, back_up, restore
from hpcai500.leaderboard.client import CONFIG_NAME
from hpcai500.leaderboard.database import Database
from hpcai500.leaderboard.operating import listen
from hpcai500.leaderboard.storage import ARCHIVE, Storage
from hpcai500.leaderboard.tables import Audit, Submission
from hpcai500.register.keys import config_folder
from hpcai500.register.ticket import read_ticket

if TYPE_CHECKING:
    from postgresql import PostgresqlServer

Run = Callable[..., str]


@pytest.fixture(scope="module")
def submission(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_for_board(tmp_path_factory.mktemp("recorded"))


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedBoard]:
    board = ServedBoard(tmp_path_factory.mktemp("served") / "board")
    yield board
    board.stop()


@pytest.fixture(scope="module")
def tokens(board: ServedBoard) -> dict[str, str]:
    return {slug: board.make_token(slug) for slug in ("a", "b")}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Types a command in this process; gives what it says."""

    def run(*words: object, status: int = 0) -> str:
        found = main(["leaderboard", *map(str, words)])
        said = capsys.readouterr()
        assert found == status, said
        return said.out + said.err

    return run


@pytest.fixture
def as_a(tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCAI500_TOKEN", tokens["a"])


@pytest.mark.usefixtures("as_a")
def test_from_upload_to_withdrawal(
    board: ServedBoard,
    submission: Path,
    run: Run,
    tmp_path: Path,
    tokens: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = vary(submission, tmp_path / "copy", "somebody else")
    said = run("upload", path.parent, "--to", board.url, "--draft", "--system", "Our <b>machine</b>")
    address = said.split()[-1]
    assert address.startswith(f"{board.url}/submissions/")
    assert "verified: it is verified; publish it" in said
    assert run("upload", path, "--to", board.url, "--draft").split()[-1] == address
    assert "published" in run("publish", address, "--to", board.url)
    assert "published  2" in run("list", "--to", board.url)
    words = ("--claim", "too fast", "--evidence", "see there", "--to", board.url)
    assert "your own" in run("challenge", address, *words, status=1)
    monkeypatch.setenv("HPCAI500_TOKEN", tokens["b"])
    assert "is filed" in run("challenge", address, *words)
    challenge = board.admin("challenge", "list").split()[0]
    board.admin("challenge", "decide", challenge, "--dismiss", "--decision", "it is not")
    assert "may challenge" in run("withdraw", address, "--reason", "x", "--to", board.url, status=1)
    monkeypatch.setenv("HPCAI500_TOKEN", tokens["a"])
    assert "withdrawn" in run("withdraw", address, "--reason", "a mistake of ours", "--to", board.url)
    audit = board.admin("audit", "--subject", address.rpartition("/")[2])
    assert [line.split()[2] for line in audit.splitlines()][-2:] == ["challenge", "withdrawn"]
    assert "a mistake of ours" in audit


@pytest.mark.usefixtures("as_a")
def test_what_is_invalid_is_not_even_sent(board: ServedBoard, submission: Path, run: Run, tmp_path: Path) -> None:
    forger = Forger(vary(submission, tmp_path / "copy", "a liar"))
    forger.edit_submission(lambda content: content["summary"].update(vflops=1e18))
    before = board.admin("audit")
    assert "no board takes it" in run("upload", forger.path, "--to", board.url, status=2)
    assert "cannot read" in run("upload", tmp_path / "nothing.json", "--to", board.url, status=2)
    assert board.admin("audit") == before


@pytest.mark.usefixtures("as_a")
def test_what_the_server_alone_finds_invalid_ends_with_1(
    board: ServedBoard, submission: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forger = Forger(vary(submission, tmp_path / "copy", "another liar"))
    forger.edit_submission(lambda content: content["summary"].update(vflops=1e18))
    monkeypatch.setattr("hpcai500.leaderboard.submitting.check_valid", lambda path: None)
    assert "rejected: the board finds it invalid" in run("upload", forger.path, "--to", board.url, status=1)


def test_a_token_comes_from_the_environment_or_from_a_private_file(
    board: ServedBoard, run: Run, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HPCAI500_TOKEN", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert "there is no token for" in run("list", "--to", board.url, status=2)
    path = config_folder() / CONFIG_NAME
    path.parent.mkdir()
    path.write_text(f'[tokens]\n"{board.url}/" = "{tokens["b"]}"\n')
    path.chmod(0o644)
    assert "may be read by others" in run("list", "--to", board.url, status=2)
    path.chmod(0o600)
    assert run("list", "--to", board.url) == ""
    monkeypatch.setenv("HPCAI500_TOKEN", "hpcai500_nonsense")
    assert "not known here" in run("list", "--to", board.url, status=1)
    monkeypatch.setenv("HPCAI500_TOKEN", "two\nlines")
    assert "characters that no token has" in run("list", "--to", board.url, status=2)


class Stranger(http.server.BaseHTTPRequestHandler):
    """A web server that is no board."""

    def do_GET(self) -> None:
        status, headers = (301, {"Location": "https://elsewhere.example"}) if "moved" in self.path else (200, {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.usefixtures("as_a")
def test_a_wrong_address_is_told_in_a_sentence(run: Run) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    assert "does not answer as a leaderboard" in run("list", "--to", url, status=1)
    assert "moved to https://elsewhere.example" in run("list", "--to", f"{url}/moved", status=1)
    server.shutdown()
    server.server_close()
    assert "cannot be reached" in run("list", "--to", url, status=1)
    for wrong in ("board", "ftp://board.example", "https://", "https://user@board.example", "https://[x"):
        assert "no address of a leaderboard" in run("list", "--to", wrong, status=2)
    assert "in the clear" in run("list", "--to", "http://board.example", status=2)
    assert "is no submission" in run("publish", "x", "--to", url, status=2)


@pytest.mark.usefixtures("as_a")
def test_a_ticket_is_for_runs_that_begin_later(
    board: ServedBoard, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "ticket.json"
    words = ("ticket", "--workload", "resnet50", "--level", "free", "--size", "mini", "--submitter", "Us")
    said = run(*words, "--to", board.url, "--output", output)
    assert "for 'Us'" in said
    assert read_ticket(output).ticket.issuer == "HPC AI500 leaderboard"
    assert "never overwritten" in run(*words, "--to", board.url, "--output", output, status=2)
    hour_ns = 3600 * 10**9
    now_ns = time.time_ns()
    monkeypatch.setattr("hpcai500.leaderboard.submitting.time.time_ns", lambda: now_ns - hour_ns)
    other = tmp_path / "other.json"
    assert "set the clocks of all nodes" in run(*words, "--to", board.url, "--output", other, status=2)
    monkeypatch.setattr("hpcai500.leaderboard.submitting.time.time_ns", lambda: now_ns + 2 * hour_ns)
    assert "set the clock by NTP" in run(*words, "--to", board.url, "--output", other, status=2)
    assert not other.exists()


def test_operators_are_told_what_is_not_possible(board: ServedBoard, run: Run, tmp_path: Path) -> None:
    admin = ("admin", "token", "create", "nobody", "--label", "x", "--folder", board.folder)
    assert "unknown organisation 'nobody'" in run(*admin, status=2)
    assert "cannot listen" in run("serve", "--folder", tmp_path / "x", "--port", board.port, status=2)
    assert "--database is no URL" in run("admin", "audit", "--folder", tmp_path / "x", "--database", "x", status=2)
    assert "there is no token 'x'" in run("admin", "token", "revoke", "x", "--folder", board.folder, status=2)
    (tmp_path / "file").write_text("")
    assert "cannot be used" in run("serve", "--folder", tmp_path / "file", status=2)


def test_short_answers_are_not_held_back() -> None:
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_revoked_token_does_not_count_any_more(
    board: ServedBoard, run: Run, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    token = board.admin("token", "create", "a", "--label", "lost", "--scopes", "upload", "--days", "1")
    monkeypatch.setenv("HPCAI500_TOKEN", token)
    run("list", "--to", board.url)
    board.admin("token", "revoke", token.split("_")[1])
    assert "was revoked at" in run("list", "--to", board.url, status=1)
    assert token.split("_")[2] not in board.admin("token", "list")


def test_submitting_needs_none_of_a_boards_libraries(tmp_path: Path) -> None:
    code = "import sys; sys.modules |= dict.fromkeys(['sqlalchemy', 'fastapi', 'uvicorn', 'alembic'])\n"
    code += "from hpcai500.__main__ import main; sys.exit(main(sys.argv[1:]))"

    def type_in(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, "leaderboard", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    assert "there is no token for" in type_in("upload", "x.json", "--to", "http://localhost:1").stderr
    served = type_in("serve")
    assert served.returncode == 2
    assert "pip install 'hpcai500[leaderboard]'" in served.stderr


def test_an_operators_task_says_what_it_did_and_nothing_else(tmp_path: Path) -> None:
    words = ("admin", "organisation", "add", "us", "Us", "--folder", str(tmp_path / "board"))
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("us may submit")
    assert done.stderr == ""


def rows_of(database: Database) -> list[list[tuple[object, ...]]]:
    with database.session() as session:
        return [sorted((tuple(map(str, row)) for row in session.execute(select(table))), key=str) for table in TABLES]


@pytest.mark.postgresql
def test_a_backup_restores_into_either_database(board: ServedBoard, postgresql_url: str, tmp_path: Path) -> None:
    assert "submissions" in board.admin("backup", str(tmp_path / "backup"))
    original = Database(f"sqlite:///{board.folder}/board.db")
    for name, url in (("one", f"sqlite:///{tmp_path}/restored.db"), ("two", postgresql_url)):
        database, storage = Database(url), Storage(tmp_path / name)
        assert restore(database, storage, tmp_path / "backup") > 0
        assert rows_of(database) == rows_of(original)
        with database.session() as session:
            for row in session.scalars(select(Submission)):
                kept = Storage(board.folder).path(row.sha256, ARCHIVE)
                assert storage.path(row.sha256, ARCHIVE).read_bytes() == kept.read_bytes()
        with database.writing() as session:  # new rows of the log do not collide with the restored ones
            session.add(Audit(at="", actor="server", action="x", subject="x", detail=""))
        assert (storage.folder / "key.pem").read_bytes() == (board.folder / "key.pem").read_bytes()
        assert (storage.folder / "key.pem").stat().st_mode & 0o777 == 0o600
        back_up(database, storage, tmp_path / f"backup of {name}")
        database.close()
    original.close()


@pytest.mark.postgresql
def test_what_pg_dump_wrote_is_the_board_again(
    postgresql_server: PostgresqlServer, postgresql_url: str, tmp_path: Path
) -> None:
    programs = postgresql_server.programs
    if not (programs / "pg_dump").exists() or not (programs / "psql").exists():
        pytest.skip("there are no pg_dump and psql beside the server")
    original, storage = make_board(tmp_path / "board", url=postgresql_url)
    dump, new_url = tmp_path / "board.sql", postgresql_server.fresh_url()
    subprocess.run([programs / "pg_dump", "--file", dump, postgresql_url], check=True)
    shutil.copytree(storage.folder, tmp_path / "copy")
    read_back = [programs / "psql", "--quiet", "--set=ON_ERROR_STOP=1", "--file", dump, new_url]
    subprocess.run(read_back, check=True, stdout=subprocess.DEVNULL)
    database, copy = Database(new_url), Storage(tmp_path / "copy")
    assert rows_of(database) == rows_of(original)
    with client_of(original, storage) as before, client_of(database, copy) as after:
        sha256 = make_submission(7).sha256
        for address in ("/boards/resnet50/official/free", f"/submissions/{sha256}", f"/submissions/{sha256}/archive"):
            assert (
                after.get(address).content.replace(str(after.base_url).encode(), str(before.base_url).encode())
                == before.get(address).raise_for_status().content
            )
    with database.writing() as session:  # the log goes on, and still refuses to be changed
        session.add(Audit(at="", actor="server", action="x", subject="x", detail=""))
    with pytest.raises(DBAPIError, match="only ever added"), database.writing() as session:
        session.execute(text("DELETE FROM audit"))
    database.close()
    original.close()


def test_a_backup_that_is_not_whole_is_refused(board: ServedBoard, run: Run, tmp_path: Path) -> None:
    board.admin("backup", str(tmp_path / "backup"))
    said = run("admin", "restore", tmp_path / "backup", "--folder", board.folder, status=2)
    assert "not empty" in said
    archive = next((tmp_path / "backup/submissions").rglob(ARCHIVE))
    archive.chmod(0o600)
    archive.write_bytes(b"x")
    assert "is damaged" in run("admin", "restore", tmp_path / "backup", "--folder", tmp_path / "one", status=2)
    shutil.rmtree(archive.parent)
    assert "lacks the archive" in run("admin", "restore", tmp_path / "backup", "--folder", tmp_path / "two", status=2)
    (tmp_path / "backup/whole.json").unlink()
    assert "no whole backup" in run("admin", "restore", tmp_path / "backup", "--folder", tmp_path / "three", status=2)


@pytest.mark.usefixtures("as_a")
def test_recheck_verifies_what_is_of_this_edition_and_carries_over_the_rest(
    submission: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = ServedBoard(tmp_path / "board")
    monkeypatch.setenv("HPCAI500_TOKEN", served.make_token())
    addresses = []
    for number in range(2):
        path = vary(submission, tmp_path / f"{number}", f"nobody {number}")
        addresses.append(run("upload", path, "--to", served.url).split()[-1].rpartition("/")[2])
    served.stop()
    database = Database(f"sqlite:///{tmp_path}/board/board.db")
    with database.writing() as session:
        for address, change in zip(addresses, ({"vflops": 1.0}, {"vflops": 1.0, "edition": "0.0"}), strict=True):
            row = session.get(Submission, address)
            for name, value in change.items():
                setattr(row, name, value)
    assert "2 submissions, 0 not valid any more, 1 of other editions kept" in run(
        "admin", "recheck", "--folder", tmp_path / "board"
    )
    with database.session() as session:
        first, second = (session.get(Submission, address) for address in addresses)
        assert first is not None
        assert second is not None
        assert (first.vflops != 1.0, second.vflops, second.edition) == (True, 1.0, "0.0")
        assert {first.state, second.state} == {"published"}
    database.close()


def test_help_of_every_verb_can_be_read() -> None:
    for verb in ("", "upload", "ticket", "publish", "challenge", "list", "serve", "export", "admin"):
        done = subprocess.run([*COMMAND, *verb.split(), "--help"], capture_output=True, text=True, check=True)
        assert "usage: hpcai500 leaderboard" in done.stdout
