"""Boards that run as processes: what they have acknowledged survives kills, a database that is down and a full disk."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from boards import ServedBoard, record_for_board, vary
from forging import Forger

from hpcai500.leaderboard import client as client_module
from hpcai500.leaderboard.archive import pack
from hpcai500.leaderboard.client import BoardClient, BoardError
from hpcai500.leaderboard.storage import ARCHIVE, Storage

NO_PATIENCE_S = 0.0


@pytest.fixture(scope="module")
def submission(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_for_board(tmp_path_factory.mktemp("recorded"))


@pytest.fixture(scope="module")
def archives(submission: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """20 submissions, packed, by their addresses."""
    folder = tmp_path_factory.mktemp("packed")
    packed = {}
    for number in range(20):
        path = folder / f"{number}.tar.gz"
        _, sha256 = pack(vary(submission, folder / f"{number}", f"nobody {number}"), path)
        packed[sha256] = path
    return packed


@pytest.fixture(scope="module")
def large(submission: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid submission of 3 MB that do not pack."""
    folder = tmp_path_factory.mktemp("large")
    forger = Forger(vary(submission, folder / "copy", "nobody"))
    (forger.run() / "steps.h5").write_bytes(os.urandom(3 << 20))
    forger.forge(configs=False, figures=False)
    pack(forger.path, folder / "large.tar.gz")
    return folder / "large.tar.gz"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., ServedBoard]]:
    started: list[ServedBoard] = []

    def serve(database: str | None = None, **words: int) -> ServedBoard:
        started.append(ServedBoard(tmp_path / "board", database, **words))
        return started[-1]

    yield serve
    for board in started:
        if board.process.poll() is None:
            board.stop()


def form_of(archive: Path) -> dict[str, Any]:
    content = archive.read_bytes()
    return {
        "archive_sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
        "system_name": "A machine",
    }


def quick(seconds: float) -> None:
    time.sleep(min(seconds, 0.1))


def upload(url: str, token: str, archive: Path, **words: Any) -> Any:
    return BoardClient(url, token, sleep=quick, **words).send(archive, form_of(archive), lambda done, total: None)


def state_of(client: BoardClient, sha256: str) -> str:
    return str(client.wait_until_verified(sha256)["state"])


def test_20_parallel_uploads_lose_nothing(serve: Callable[..., ServedBoard], archives: dict[str, Path]) -> None:
    board = serve(workers=0)
    token = board.make_token()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda path: upload(board.url, token, path), archives.values()))
    assert [answer["sha256"] for answer in answers] == list(archives)
    rows = BoardClient(board.url, token).ask("GET", "/api/submissions").content
    assert {row["sha256"]: row["state"] for row in rows} == dict.fromkeys(archives, "draft")
    for sha256, path in archives.items():
        assert Storage(board.folder).path(sha256, ARCHIVE).read_bytes() == path.read_bytes()


def test_a_server_that_is_killed_has_kept_all_that_it_acknowledged(
    serve: Callable[..., ServedBoard], archives: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PIECE_BYTES", 3000)  # many pieces, so that kills fall between and into them
    board = serve(workers=0)
    token = board.make_token()
    acknowledged: list[str] = []
    is_over = threading.Event()

    def send(path: Path) -> None:
        client = BoardClient(board.url, token, sleep=quick, patience_s=120)
        client._has_answered = True
        acknowledged.append(client.send(path, form_of(path), lambda done, total: None)["sha256"])

    def kill_again_and_again() -> None:
        for _ in range(4):
            is_over.wait(0.7)
            board.kill()
            for sha256 in list(acknowledged):  # at this moment nobody serves, and all of them lie there whole
                content = Storage(board.folder).path(sha256, ARCHIVE).read_bytes()
                assert content == archives[sha256].read_bytes()
            board.start()

    killer = threading.Thread(target=kill_again_and_again)
    killer.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, archives.values()))
    is_over.set()
    killer.join()
    assert sorted(acknowledged) == sorted(archives)
    rows = BoardClient(board.url, token).ask("GET", "/api/submissions").content
    assert {row["sha256"]: row["state"] for row in rows} == dict.fromkeys(archives, "draft")


@pytest.mark.postgresql
def test_two_servers_on_one_postgresql_work_side_by_side(
    archives: dict[str, Path], postgresql_url: str, tmp_path: Path
) -> None:
    boards = [ServedBoard(tmp_path / "board", postgresql_url) for _ in range(2)]
    token = boards[0].make_token()
    with ThreadPoolExecutor(4) as pool:
        paths = list(archives.values())[:4]
        urls = [boards[number % 2].url for number in range(4)]
        answers = list(pool.map(lambda pair: upload(pair[0], token, pair[1]), zip(urls, paths, strict=True)))
        again = list(pool.map(lambda pair: upload(pair[0], token, pair[1]), zip(urls[::-1], paths, strict=True)))
    assert [answer["sha256"] for answer in answers] == [answer["sha256"] for answer in again] == list(archives)[:4]
    client = BoardClient(boards[1].url, token, sleep=quick)
    assert {state_of(client, sha256) for sha256 in list(archives)[:4]} == {"published"}
    audit = boards[0].admin("audit")
    assert [audit.count(f" {action} ") for action in ("uploaded", "verified", "published")] == [4, 4, 4]
    for board in boards:
        board.stop()


@pytest.mark.postgresql
def test_a_database_that_is_killed_loses_nothing(
    serve: Callable[..., ServedBoard], archives: dict[str, Path], require: Callable[[str], None]
) -> None:
    require("postgresql")
    from postgresql import PostgresqlServer

    server = PostgresqlServer()
    board = serve(server.fresh_url())
    token = board.make_token()
    sha256, path = next(iter(archives.items()))
    assert upload(board.url, token, path)["sha256"] == sha256
    client = BoardClient(board.url, token, patience_s=NO_PATIENCE_S)
    server.kill()
    answer = client.ask_once("GET", "/api/health", None, {})
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert "nothing is lost" in answer.content["error"]
    other = list(archives.values())[1]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(upload, board.url, token, other, patience_s=60)
        time.sleep(0.5)
        server.start()
        assert waiting.result()["sha256"] == list(archives)[1]
    assert state_of(BoardClient(board.url, token, sleep=quick), sha256) == "published"
    board.stop()
    server.stop()


def test_a_full_disk_keeps_what_is_there_and_goes_on(serve: Callable[..., ServedBoard], large: Path) -> None:
    board = serve()
    token = board.make_token()
    _, most = resource.prlimit(board.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(board.process.pid, resource.RLIMIT_FSIZE, (1 << 20, most))  # EFBIG comes as ENOSPC would
    there = check_full(board, token, large)
    assert there == 1 << 20
    resource.prlimit(board.process.pid, resource.RLIMIT_FSIZE, (most, most))
    check_resumed(board, token, large, there)


def test_a_disk_that_is_truly_full_likewise(serve: Callable[..., ServedBoard], large: Path, tmp_path: Path) -> None:
    folder = tmp_path / "board"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("a small disk can be mounted by root alone, outside of containers that forbid it")
    try:
        board = serve()
        token = board.make_token()
        there = check_full(board, token, large)
        assert 0 < there < 2 << 20
        subprocess.run(["mount", "-o", "remount,size=30m", folder], check=True)
        check_resumed(board, token, large, there)
        board.stop()
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def check_full(board: ServedBoard, token: str, archive: Path) -> int:
    """The upload is refused in a sentence; returns how much of it is there."""
    with pytest.raises(BoardError, match="disk is full"):
        upload(board.url, token, archive)
    [path] = (board.folder / "uploads").iterdir()
    return path.stat().st_size


def check_resumed(board: ServedBoard, token: str, archive: Path, there: int) -> None:
    """The same upload goes on from what is there, and is verified."""
    done: list[int] = []
    client = BoardClient(board.url, token, sleep=quick)
    answer = client.send(archive, form_of(archive), lambda sent, total: done.append(sent))
    assert done[0] == there
    assert state_of(client, answer["sha256"]) == "published"


def test_a_server_that_is_asked_to_end_does_so(serve: Callable[..., ServedBoard]) -> None:
    board = serve()
    board.stop()
    assert board.process.returncode in (0, -15)
