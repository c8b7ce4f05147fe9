"""Which edition of the rules a board shows: the newest unless another is asked for, and ranks of one edition alone."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from board_rows import EDITION, OLD_EDITION, make_board, make_submission, opened_board
from board_server import client_of
from sqlalchemy.orm import Session

from hpcai500.leaderboard.database import Database
from hpcai500.leaderboard.editions import newest_first
from hpcai500.leaderboard.export import export_board
from hpcai500.leaderboard.filters import SORTS, Filters
from hpcai500.leaderboard.ranking import Board, find_board, list_boards, list_editions
from hpcai500.leaderboard.storage import Storage

FREE = ("resnet50", "official", "free")
BOARD, HISTORY = "/boards/resnet50/official/free", "/history/resnet50/official/free"
BEST_OF_OLD = make_submission(4007).sha256  # better than all of the newer edition


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Database, Storage]]:
    with opened_board(tmp_path_factory.mktemp("board")) as board:
        yield board


@pytest.fixture(scope="module")
def session(board: tuple[Database, Storage]) -> Iterator[Session]:
    with board[0].session() as session:
        yield session


@pytest.fixture(scope="module")
def client(board: tuple[Database, Storage]) -> Iterator[httpx.Client]:
    with client_of(*board) as client:
        yield client


def editions_of(board: Board) -> set[str]:
    return {row.edition for row in board.rows}


def test_editions_are_ordered_by_their_numbers_and_not_as_text() -> None:
    assert newest_first(["0.9", "0.10", "1.0", "0.9", None, "", "0.2"]) == ["1.0", "0.10", "0.9", "0.2"]
    assert newest_first(["0.1", "draft", "1.x", "9" * 5000, "\u0663.1"])[0] == "0.1"


@pytest.mark.parametrize("sort", SORTS)
def test_a_board_shows_its_newest_edition_unless_another_is_asked_for(session: Session, sort: str) -> None:
    newest = find_board(session, *FREE, Filters(sort=sort))
    assert (newest.edition, newest.num_all, newest.num_found, editions_of(newest)) == (EDITION, 40, 40, {EDITION})
    old = find_board(session, *FREE, Filters(edition=OLD_EDITION, sort=sort))
    assert (old.edition, old.num_all, old.num_found, editions_of(old)) == (OLD_EDITION, 8, 8, {OLD_EDITION})
    for one in (newest, old):
        assert min(row.place.rank for row in one.rows if row.place) == 1


@pytest.mark.parametrize("sort", SORTS)
def test_where_all_editions_stand_together_nobody_has_a_rank(session: Session, sort: str) -> None:
    mixed = find_board(session, *FREE, Filters(edition="all", sort=sort))
    assert (mixed.edition, mixed.num_all, editions_of(mixed)) == ("all", 48, {EDITION, OLD_EDITION})
    assert {row.place for row in mixed.rows} == {None}


def test_all_editions_of_a_board_that_has_one_are_ranked(session: Session) -> None:
    names = ("resnet50", "mini", "free")
    everything, newest = (find_board(session, *names, Filters(edition=edition)) for edition in ("all", ""))
    assert everything.rows == newest.rows
    assert everything.rows[0].place


def test_other_filters_narrow_the_edition_in_force(session: Session) -> None:
    h100 = find_board(session, *FREE, Filters(accelerator="h100"))
    assert (h100.num_all, editions_of(h100)) == (40, {EDITION})
    assert 0 < h100.num_found < 40
    old = find_board(session, *FREE, Filters(edition=OLD_EDITION, accelerator="h100"))
    assert (old.num_all, editions_of(old)) == (8, {OLD_EDITION})
    assert 0 < old.num_found < 8


def test_an_edition_that_nobody_ever_saw_is_not_the_newest(tmp_path: Path) -> None:
    hidden = [make_submission(1, edition="0.11", state="verified"), make_submission(2, edition="0.12", rankable=False)]
    withdrawn = make_submission(3, edition="0.10", state="withdrawn")
    database, _ = make_board(tmp_path, *hidden, withdrawn, make_submission(4, edition="0.9"))
    with database.session() as session:
        assert list_editions(session, *FREE) == ["0.10", "0.9"]
        assert [row.sha256 for row in find_board(session, *FREE, Filters()).rows] == [withdrawn.sha256]
        (summary,) = list_boards(session)
        assert (summary.edition, summary.num_submissions, summary.leader) == ("0.10", 1, None)
    database.close()


def test_the_start_page_counts_and_leads_within_the_newest_edition(session: Session, client: httpx.Client) -> None:
    summary = next(one for one in list_boards(session) if (one.workload, one.size, one.level) == FREE)
    assert (summary.edition, summary.num_submissions) == (EDITION, 40)
    assert summary.leader is not None
    assert summary.leader.sha256 == find_board(session, *FREE, Filters()).rows[0].sha256 != BEST_OF_OLD
    assert "official size · edition 0.10 · 40 submissions" in client.get("/").text


def test_the_page_says_which_edition_it_shows_and_leads_to_the_others(client: httpx.Client) -> None:
    newest = client.get(f"{BOARD}?precision=bf16").text
    assert '<option value="" selected>0.10, the newest</option>' in newest
    assert re.search(r"\d+ of 40 submissions of edition 0\.10", newest)
    assert '<span aria-current="page">edition 0.10</span>' in newest
    for edition in (OLD_EDITION, "all"):
        assert f'href="{BOARD}?precision=bf16&amp;edition={edition}"' in newest
    assert "do not compare" not in newest


def test_an_edition_that_was_chosen_stays_through_orders_filters_and_feeds(client: httpx.Client) -> None:
    old = client.get(f"{BOARD}?edition=0.9&precision=bf16").text
    assert '<option value="0.9" selected>0.9</option>' in old
    assert '<option value="">0.10, the newest</option>' in old
    for address in (
        f"{BOARD}?precision=bf16&amp;edition=0.9&amp;sort=time",
        f"{BOARD}.csv?precision=bf16&amp;edition=0.9",
        f"{BOARD}?edition=0.9",  # show all
        f"{BOARD}?precision=bf16",  # the newest
        f"{HISTORY}?edition=0.9",
    ):
        assert f'href="{address}"' in old, address
    pinned = client.get(f"{BOARD}?edition=0.10").text
    assert '<option value="0.10" selected>0.10, the newest</option>' in pinned


def test_a_page_of_all_editions_says_that_they_do_not_compare(client: httpx.Client) -> None:
    mixed = client.get(f"{BOARD}?edition=all").text
    assert "Results of different editions of the rules do not compare, so nobody has a rank here." in mixed
    assert '<option value="all" selected>' in mixed
    assert "48 submissions of all editions" in mixed
    assert mixed.count('aria-label="no rank"') == 48
    assert "not distinguishable" not in mixed


def test_an_edition_of_which_there_is_nothing_leads_to_the_newest(client: httpx.Client) -> None:
    for address in (BOARD, HISTORY):
        text = client.get(f"{address}?edition=0.7").text
        assert f'No submission is of edition 0.7. Show <a href="{address}">edition 0.10</a>.' in text
    assert '<option value="0.7" selected>0.7</option>' in client.get(f"{BOARD}?edition=0.7").text


@pytest.mark.parametrize(("query", "edition", "count"), [("", "0.10", 40), ("?edition=0.9", "0.9", 8)])
def test_csv_and_json_are_of_the_edition_of_the_page(
    client: httpx.Client, query: str, edition: str, count: int
) -> None:
    board = client.get(f"{BOARD}.json{query}").json()
    assert (board["edition"], {row["edition"] for row in board["rows"]}) == (edition, {edition})
    lines = list(csv.DictReader(io.StringIO(client.get(f"{BOARD}.csv{query}").text)))
    assert [line["sha256"] for line in lines] == [row["sha256"] for row in board["rows"]]
    assert len(lines) == count
    assert lines[0]["rank"] == "1"


def test_csv_and_json_of_all_editions_have_no_ranks(client: httpx.Client) -> None:
    board = client.get(f"{BOARD}.json?edition=all").json()
    assert (board["edition"], len(board["rows"])) == ("all", 48)
    assert {row["rank"] for row in board["rows"]} == {None}


@pytest.mark.parametrize("query", ["", "?edition=0.10", "?edition=all"])
def test_a_record_is_of_one_edition(client: httpx.Client, query: str) -> None:
    newest, old = client.get(HISTORY + query).text, client.get(f"{HISTORY}?edition=0.9").text
    assert "free level, edition 0.10 of the rules" in newest
    assert BEST_OF_OLD not in newest
    assert BEST_OF_OLD in old
    assert "free level, edition 0.9</title>" in old


def test_submissions_of_different_editions_have_no_ratio(client: httpx.Client) -> None:
    address = f"/compare?submission={make_submission(0).sha256}&submission={BEST_OF_OLD}"
    text = client.get(address).text
    assert "of different editions, so their scores do not compare" in text
    assert "times the first" not in text


def test_each_edition_is_exported_as_the_server_shows_it(
    board: tuple[Database, Storage], client: httpx.Client, tmp_path: Path
) -> None:
    export_board(*board, tmp_path)
    cells = re.compile(r'<td class="(?:rank|number|date)[^>]*>.*?</td>', re.DOTALL)
    for sort in SORTS:
        name = "edition-0.9" if sort == "vflops" else f"edition-0.9-by-{sort}"
        written = (tmp_path / BOARD[1:] / f"{name}.html").read_text("utf-8")
        assert len(cells.findall(written)) == 8 * 9
        assert cells.findall(written) == cells.findall(client.get(f"{BOARD}?edition=0.9&sort={sort}").text)
        assert 'href="edition-0.9.csv"' in written
        assert 'name="edition"' not in written
    for kind in ("csv", "json"):
        written = (tmp_path / BOARD[1:] / f"edition-0.9.{kind}").read_bytes()
        assert written == client.get(f"{BOARD}.{kind}?edition=0.9").content
    assert BEST_OF_OLD in (tmp_path / HISTORY[1:] / "edition-0.9.html").read_text("utf-8")
    newest = (tmp_path / BOARD[1:] / "index.html").read_text("utf-8")
    assert BEST_OF_OLD not in newest
    assert 'href="edition-0.9.html"' in newest
