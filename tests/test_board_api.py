"""The API of a board: uploads, who may do what, and one sentence for everything that is refused."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from boards import record_for_board, serving, vary
from fastapi import FastAPI
from sqlalchemy import text

from hpcai500.leaderboard.accounts import add_organisation, create_token
from hpcai500.leaderboard.app import create_app
from hpcai500.leaderboard.archive import pack
from hpcai500.leaderboard.board import Board, BoardConfig
from hpcai500.leaderboard.headers import HEADERS
from hpcai500.leaderboard.limits import MAX_BODY_BYTES
from hpcai500.leaderboard.storage import ARCHIVE


class Asker:
    """Asks a board in the name of an organisation; the board's worker works when it is told to."""

    def __init__(self, app: FastAPI, url: str) -> None:
        self.board, self.client = app.state.board, httpx.Client(base_url=url)
        self.tokens: dict[str, str] = {}
        with self.board.database.writing() as session:
            for slug in ("a", "b"):
                add_organisation(session, slug, f"Organisation {slug.upper()}")
                scopes = ["upload", "challenge", "ticket"]
                self.tokens[slug] = create_token(session, slug, scopes, label="test", days=1)

    def ask(self, method: str, path: str, token: str | None = "a", **words: Any) -> httpx.Response:
        headers = words.pop("headers", {})
        if token is not None:
            headers["Authorization"] = f"Bearer {self.tokens.get(token, token)}"
        return self.client.request(method, path, headers=headers, **words)

    def begin(self, archive: Path, token: str = "a", **words: Any) -> str:
        content = archive.read_bytes()
        form = {"archive_sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        answer = self.ask("POST", "/api/uploads", token, json=form | {"system_name": "A machine"} | words)
        assert answer.status_code in (200, 201), answer.text
        return str(answer.json()["id"])

    def send(self, upload: str, content: bytes, offset: int = 0, token: str = "a") -> httpx.Response:
        headers = {"Upload-Offset": str(offset)}
        return self.ask("PATCH", f"/api/uploads/{upload}", token, content=content, headers=headers)

    def finish(self, upload: str, token: str = "a") -> httpx.Response:
        return self.ask("POST", f"/api/uploads/{upload}/finish", token)

    def upload(self, archive: Path, token: str = "a", **words: Any) -> httpx.Response:
        upload = self.begin(archive, token, **words)
        self.send(upload, archive.read_bytes(), token=token)
        return self.finish(upload, token)

    def verify(self) -> None:
        worker = self.board.make_worker()
        while worker.work_once():
            pass


def sentence(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    return str(answer.json()["error"])


@contextmanager
def asking(folder: Path, **words: Any) -> Iterator[Asker]:
    app = create_app(BoardConfig(folder=folder, num_workers=0, name="A Board", **words))
    with serving(app) as url:
        asker = Asker(app, url)
        yield asker
        asker.client.close()


@pytest.fixture
def asker(tmp_path: Path) -> Iterator[Asker]:
    with asking(tmp_path / "board") as asker:
        yield asker


@pytest.fixture(scope="module")
def submission(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_for_board(tmp_path_factory.mktemp("recorded"))


@pytest.fixture(scope="module")
def archive(submission: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "a.tar.gz"
    pack(submission, path)
    return path


def test_an_upload_in_pieces_is_kept_whole_and_verified(asker: Asker, submission: Path, archive: Path) -> None:
    content = archive.read_bytes()
    upload = asker.begin(archive)
    assert asker.send(upload, content[:1000]).headers["Upload-Offset"] == "1000"
    head = asker.ask("HEAD", f"/api/uploads/{upload}")
    assert (head.headers["Upload-Offset"], head.headers["Upload-Length"]) == ("1000", str(len(content)))
    assert asker.begin(archive) == upload
    assert "1,000 of" in sentence(asker.finish(upload), 409)
    wrong = asker.send(upload, content[900:], 900)
    assert "go on from there" in sentence(wrong, 409)
    assert wrong.headers["Upload-Offset"] == "1000"
    assert asker.send(upload, content[1000:], 1000).status_code == 204
    answer = asker.finish(upload)
    sha256 = hashlib.sha256(submission.read_bytes()).hexdigest()
    assert answer.status_code == 201
    assert (answer.json()["sha256"], answer.json()["state"]) == (sha256, "draft")
    assert answer.json()["url"].endswith(f"/submissions/{sha256}")
    assert asker.board.storage.path(sha256, ARCHIVE).read_bytes() == content
    assert not asker.board.storage.upload_path(upload).exists()
    asker.verify()
    shown = asker.ask("GET", f"/api/submissions/{sha256}", None).json()
    assert (shown["state"], shown["workload"]) == ("published", "resnet50")
    assert [row["sha256"] for row in asker.ask("GET", "/api/submissions").json()] == [sha256]


def test_the_same_submission_twice_has_one_address(
    asker: Asker, submission: Path, archive: Path, tmp_path: Path
) -> None:
    first = asker.upload(archive, publish=False)
    again = asker.upload(archive, publish=False)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["sha256"] == again.json()["sha256"]
    other = tmp_path / "other.tar.gz"  # the same submission from another archive
    other.write_bytes(gzip.compress(gzip.decompress(archive.read_bytes()), 1))
    third = asker.upload(other, publish=True)
    assert (third.status_code, third.json()["sha256"]) == (200, first.json()["sha256"])
    asker.verify()
    assert asker.ask("GET", f"/api/submissions/{first.json()['sha256']}").json()["state"] == "published"
    assert asker.board.storage.path(first.json()["sha256"], ARCHIVE).read_bytes() == archive.read_bytes()


def test_a_rejected_archive_does_not_stand_in_the_way_of_the_right_one(
    asker: Asker, submission: Path, archive: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.tar.gz"
    tar = gzip.decompress(archive.read_bytes())
    damaged.write_bytes(gzip.compress(tar.replace(b'"event":"run_open"', b'"event":"run_opem"', 1)))
    sha256 = asker.upload(damaged, "b").json()["sha256"]
    asker.verify()
    assert "no such submission" in sentence(asker.ask("GET", f"/api/submissions/{sha256}", "a"), 404)
    rejected = asker.ask("GET", f"/api/submissions/{sha256}", "b").json()
    assert (rejected["state"], "node-00000.jsonl" in rejected["problem"]) == ("rejected", True)
    assert asker.upload(damaged, "b").status_code == 200  # nothing new, so it stays rejected
    assert asker.upload(archive, "a").status_code == 200
    asker.verify()
    shown = asker.ask("GET", f"/api/submissions/{sha256}", None).json()
    assert (shown["state"], shown["organisation"], shown["problem"]) == ("published", "a", None)


def test_what_belongs_to_another_organisation_is_left_alone(asker: Asker, archive: Path) -> None:
    upload = asker.begin(archive)
    assert "no such upload" in sentence(asker.send(upload, b"x", token="b"), 404)
    assert "no such upload" in sentence(asker.finish(upload, "b"), 404)
    assert asker.ask("HEAD", f"/api/uploads/{upload}", "b").status_code == 404
    sha256 = asker.upload(archive, publish=False).json()["sha256"]
    assert "another organisation has uploaded" in sentence(asker.upload(archive, "b"), 409)
    asker.verify()
    assert asker.ask("GET", f"/api/submissions/{sha256}", "b").status_code == 404
    assert asker.ask("GET", f"/api/submissions/{sha256}", None).status_code == 404
    assert asker.ask("POST", f"/api/submissions/{sha256}/publish", "b").status_code == 404
    assert asker.ask("POST", f"/api/submissions/{sha256}/publish").json()["state"] == "published"
    reason = {"json": {"reason": "because"}}
    path = f"/api/submissions/{sha256}"
    assert "you may challenge" in sentence(asker.ask("POST", f"{path}/withdraw", "b", **reason), 403)
    words = {"json": {"claim": "too fast", "evidence": "see there"}}
    assert asker.ask("POST", f"{path}/challenge", "b", **words).status_code == 201
    assert "your own" in sentence(asker.ask("POST", f"{path}/challenge", "a", **words), 409)
    assert asker.ask("GET", path, None).json()["state"] == "challenged"
    assert asker.ask("POST", f"{path}/withdraw", "a", **reason).json()["state"] == "withdrawn"


def test_tokens_that_do_not_count_are_refused(asker: Asker, archive: Path) -> None:
    board: Board = asker.board
    with board.database.writing() as session:
        only = create_token(session, "a", ["challenge"], label="x", days=1)
        over = create_token(session, "a", ["upload"], label="x", days=1e-9)
        revoked = create_token(session, "a", ["upload"], label="x", days=1)
    with board.database.writing() as session:
        session.execute(
            text("UPDATE token SET revoked_at = '2026-01-01T00:00:00Z' WHERE id = :id"), {"id": revoked[9:25]}
        )
    form = {"archive_sha256": "0" * 64, "size_bytes": 1, "system_name": "x"}
    cases = {None: "needs a token", "nonsense": "not known", over: "expired", revoked: "revoked", only: "needs upload"}
    for token, words in cases.items():
        answer = asker.ask("POST", "/api/uploads", token, json=form)
        assert words in sentence(answer, 403 if token == only else 401)
    basic = asker.client.post("/api/uploads", json=form, headers={"Authorization": "Basic eDp5"})
    assert basic.status_code == 401


def test_whoever_guesses_tokens_is_slowed_down(asker: Asker) -> None:
    answers = [asker.ask("GET", "/api/submissions", f"guess {number}") for number in range(30)]
    assert [answer.status_code for answer in answers[:20]] == [401] * 20
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["Retry-After"]) >= 1


def test_who_asks_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    with asking(tmp_path / "board", requests_per_minute=40) as asker:
        answers = [asker.ask("GET", "/api/health", None) for _ in range(12)]
    assert [answer.status_code for answer in answers[:10]] == [200] * 10
    assert "too often" in sentence(answers[-1], 429)


def test_what_is_no_archive_is_refused_and_discarded(asker: Asker, archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad"
    whole = archive.read_bytes()
    contents = {
        b"hello": "no archive",
        whole[: len(whole) // 2]: "ends in the middle",
        gzip.compress(bytes(50 << 20)): "goes on after its end",
    }
    for content, words in contents.items():
        path.write_bytes(content)
        answer = asker.upload(path)
        if "middle" in words:  # its first file is whole, so only the judge sees it
            assert answer.status_code == 201
            asker.verify()
            assert words in asker.ask("GET", f"/api/submissions/{answer.json()['sha256']}").json()["problem"]
        else:
            assert words in sentence(answer, 422)
    upload = asker.begin(archive)
    asker.send(upload, whole[:-1] + b"x")
    assert "was announced" in sentence(asker.finish(upload), 422)
    assert asker.finish(upload).status_code == 404
    assert [path.name for path in (tmp_path / "board/uploads").iterdir()] == []


def test_more_than_was_announced_is_not_written(asker: Asker, archive: Path) -> None:
    upload = asker.begin(archive)
    assert "more than the" in sentence(asker.send(upload, archive.read_bytes() + b"x"), 413)
    assert asker.board.storage.upload_path(upload).stat().st_size <= archive.stat().st_size
    form = {"archive_sha256": "0" * 64, "size_bytes": (2 << 30) + 1, "system_name": "x"}
    assert "size_bytes" in sentence(asker.ask("POST", "/api/uploads", json=form), 422)


def test_hostile_words_are_refused(asker: Asker) -> None:
    good = {"archive_sha256": "0" * 64, "size_bytes": 1, "system_name": "x"}
    for change in (
        {"archive_sha256": "../../etc/passwd"},
        {"size_bytes": True},
        {"size_bytes": -1},
        {"system_name": "a\x00b"},
        {"system_name": " "},
        {"system_name": "\x1b[2J"},
        {"publish": "yes"},
        {"other": 1},
    ):
        sentence(asker.ask("POST", "/api/uploads", json=good | change), 422)
    assert "at most" in sentence(asker.ask("POST", "/api/uploads", content=b"x" * (MAX_BODY_BYTES + 1)), 413)
    assert asker.ask("POST", "/api/uploads", content=b"{" * 5000).status_code == 422
    assert asker.ask("GET", "/api/submissions/..%2f..%2fetc").status_code in (404, 422)


def test_a_ticket_is_signed_with_the_boards_key_and_kept(asker: Asker) -> None:
    from hpcai500.formats import SignedTicket
    from hpcai500.register.ticket import is_genuine, ticket_sha256

    words = {"workload": "resnet50", "level": "free", "size": "mini", "num_runs": 5, "submitter": "Organisation A"}
    assert asker.ask("POST", "/api/tickets", None, json=words).status_code == 401
    answer = asker.ask("POST", "/api/tickets", json=words)
    assert answer.status_code == 201
    import msgspec

    signed = msgspec.json.decode(answer.content, type=SignedTicket)
    assert is_genuine(signed)
    key = asker.ask("GET", "/key", None).json()
    assert (key["issuer"], key["issuer_key"]) == (signed.ticket.issuer, signed.ticket.issuer_key)
    assert asker.ask("GET", f"/tickets/{ticket_sha256(signed.ticket)}", None).content == answer.content
    assert asker.ask("GET", f"/tickets/{'0' * 64}", None).status_code == 404
    assert "resnet51" in sentence(asker.ask("POST", "/tickets", json=words | {"workload": "resnet51"}), 422)
    assert (asker.board.storage.folder / "key.pem").stat().st_mode & 0o777 == 0o600


def test_every_answer_carries_strict_headers(asker: Asker) -> None:
    for path in ("/api/health", "/nowhere", "/openapi.json", "/api/submissions"):
        answer = asker.ask("GET", path, None)
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
    page = asker.ask("GET", "/nowhere<script>", None, headers={"Accept": "text/html"})
    assert (page.status_code, "<script>" in page.text) == (404, False)
    assert asker.ask("GET", "/docs", None).status_code == 404


def test_a_broken_board_answers_in_a_sentence(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asker.board.database, "session", lambda: 1 / 0)
    assert "the board itself failed" in sentence(asker.ask("GET", "/api/health", None), 500)


def test_all_variations_of_a_submission_are_submissions_of_their_own(
    asker: Asker, submission: Path, tmp_path: Path
) -> None:
    addresses = set()
    for number in range(3):
        path = vary(submission, tmp_path / f"{number}", f"nobody {number}")
        pack(path, tmp_path / "a.tar.gz")
        addresses.add(asker.upload(tmp_path / "a.tar.gz").json()["sha256"])
    asker.verify()
    states = {row["sha256"]: row["state"] for row in asker.ask("GET", "/api/submissions").json()}
    assert states == dict.fromkeys(addresses, "published")


def test_the_description_is_whole(asker: Asker) -> None:
    described = asker.ask("GET", "/openapi.json", None).json()
    assert json.dumps(described).count("HTTPValidationError") == 0
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (path, method)
