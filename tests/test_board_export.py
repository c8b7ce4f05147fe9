"""The board as static files: whole, without dead links, with the server's numbers, and the same bytes each time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import httpx
import pytest
from board_rows import make_board, make_submission
from board_server import client_of

from hpcai500.errors import UsageError
from hpcai500.leaderboard.database import Database
from hpcai500.leaderboard.export import export_board, file_of
from hpcai500.leaderboard.filters import SORTS
from hpcai500.leaderboard.storage import Storage

BOARD = "boards/resnet50/official/free"
LINK = re.compile(r'(?:href|src)="([^"]*)"')


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> tuple[Database, Storage]:
    return make_board(tmp_path_factory.mktemp("board"))


@pytest.fixture(scope="module")
def client(board: tuple[Database, Storage]) -> Iterator[httpx.Client]:
    with client_of(*board) as client:
        yield client


@pytest.fixture(scope="module")
def exported(board: tuple[Database, Storage], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "board"
    assert export_board(*board, folder) == len(contents(folder))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_no_link_is_dead_and_all_files_are_linked(exported: Path) -> None:
    seen: set[Path] = set()
    waiting = [exported / "index.html"]
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        assert page.is_file(), page
        assert page.is_relative_to(exported)
        seen.add(page)
        if page.suffix != ".html" or page.name == "report.html":
            continue
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            split = urlsplit(link)
            assert not split.scheme, link
            assert not split.path.startswith("/"), link
            if split.path:
                waiting.append((page.parent / unquote(split.path)).resolve())
    assert {str(path.relative_to(exported)) for path in seen} == set(contents(exported)) - {".hpcai500-export"}


@pytest.mark.parametrize("sort", SORTS)
def test_files_have_the_numbers_of_the_pages(client: httpx.Client, exported: Path, sort: str) -> None:
    served = client.get(f"/{BOARD}?sort={sort}").text
    written = (exported / file_of(f"/{BOARD}" + (f"?sort={sort}" if sort != "vflops" else ""))).read_text("utf-8")
    cells = re.compile(r'<td class="(?:rank|number|date)[^>]*>.*?</td>', re.DOTALL)
    assert len(cells.findall(served)) == 40 * 9
    assert cells.findall(served) == cells.findall(written)


def test_feeds_and_files_of_submissions_are_those_of_the_server(client: httpx.Client, exported: Path) -> None:
    for name in (f"{BOARD}.csv", f"{BOARD}.json"):
        assert (exported / name).read_bytes() == client.get(f"/{name}").content
    sha256 = make_submission(7).sha256
    for address, name in (("report", "report.html"), ("archive", "archive.tar.gz"), ("verdict.json", "verdict.json")):
        assert (exported / "submissions" / sha256 / name).read_bytes() == client.get(
            f"/submissions/{sha256}/{address}"
        ).content
    assert not (exported / "submissions" / make_submission(5000).sha256).exists()


def test_the_same_board_gives_the_same_bytes(board: tuple[Database, Storage], exported: Path, tmp_path: Path) -> None:
    export_board(*board, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(exported)


def test_an_export_is_written_over_and_what_is_no_more_goes(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    one = make_board(tmp_path / "one", make_submission(1))
    other = make_board(tmp_path / "other", make_submission(2, level="system"))
    export_board(*one, tmp_path / "out")
    assert (tmp_path / "out" / BOARD / "index.html").exists()
    export_board(*other, tmp_path / "out")
    assert not (tmp_path / "out" / BOARD).exists()
    assert not (tmp_path / "out/submissions" / make_submission(1).sha256).exists()
    export_board(*other, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_folder_of_something_else_is_left_alone(board: tuple[Database, Storage], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not an exported board; name a new or empty folder"):
        export_board(*board, tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_a_folder_that_cannot_be_written_is_a_sentence(board: tuple[Database, Storage], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="name another folder"):
        export_board(*board, tmp_path / "file" / "below")


def test_with_an_address_the_feed_and_the_page_for_what_is_missing_are_absolute(
    board: tuple[Database, Storage], tmp_path: Path
) -> None:
    export_board(*board, tmp_path / "out", base_url="https://board.example/hpc/")
    feed = ElementTree.fromstring((tmp_path / "out/feed.atom").read_text("utf-8"))
    links = [link.get("href", "") for link in feed.iter("{http://www.w3.org/2005/Atom}link")]
    assert links
    for link in links:
        assert link.startswith("https://board.example/hpc/")
        assert (tmp_path / "out" / link.removeprefix("https://board.example/hpc/")).is_file()
    missing = (tmp_path / "out/404.html").read_text("utf-8")
    assert all(link.startswith(("https://board.example/hpc/", "#")) for link in LINK.findall(missing))


def test_an_empty_board_can_be_exported(tmp_path: Path) -> None:
    board = make_board(tmp_path, make_submission(1, state="draft"))
    export_board(*board, tmp_path / "out")
    assert "There are no submissions yet" in (tmp_path / "out/index.html").read_text("utf-8")
