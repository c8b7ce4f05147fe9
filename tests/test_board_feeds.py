"""Boards for programs: CSV that no spreadsheet runs, JSON, and an Atom feed."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import httpx
import pytest
from board_rows import make_board, make_submission
from board_server import make_app, opening_boards, serving

from hpcai500.leaderboard.feeds import COLUMNS
from hpcai500.spreadsheet import safe_cell

OpenBoard = Callable[..., httpx.Client]
BOARD = "/boards/resnet50/official/free"
ATOM = "{http://www.w3.org/2005/Atom}"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with opening_boards() as open_board:
        yield open_board(tmp_path_factory.mktemp("board"))


@pytest.fixture
def open_board() -> Iterator[OpenBoard]:
    with opening_boards() as open_board:
        yield open_board


def test_csv_and_json_have_the_rows_of_the_board(client: httpx.Client) -> None:
    answer = client.get(f"{BOARD}.csv?precision=bf16")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    lines = list(csv.DictReader(io.StringIO(answer.text)))
    assert list(lines[0]) == list(COLUMNS)
    rows = client.get(f"{BOARD}.json?precision=bf16").json()["rows"]
    assert 0 < len(rows) == len(lines) < 40
    for line, row in zip(lines, rows, strict=True):
        assert float(line["vflops"]) == row["vflops"]
        assert line["rank"] == ("" if row["rank"] is None else str(row["rank"]))
        assert line["registered"] == str(row["registered"]).lower()
        assert line["sha256"] == row["sha256"]
    scores = [row["vflops"] for row in rows]
    assert scores == sorted(scores, reverse=True)


def test_json_says_which_board_it_is(client: httpx.Client) -> None:
    board = client.get(f"{BOARD}.json").json()
    assert (board["workload"], board["size"], board["level"]) == ("resnet50", "official", "free")
    assert len(board["rows"]) == 40
    assert [row["rank"] for row in board["rows"] if row["state"] == "withdrawn"] == [None]


@pytest.mark.parametrize(
    "name", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "\n=1", "\uff1dcmd", '=HYPERLINK("http://x","y")']
)
def test_no_cell_of_a_csv_is_a_formula(open_board: OpenBoard, tmp_path: Path, name: str) -> None:
    rows = make_submission(1, system_name=name, accelerator=name, precision=name[:40])
    client = open_board(tmp_path, rows)
    line = next(csv.DictReader(io.StringIO(client.get(f"{BOARD}.csv").text)))
    for column in ("system", "accelerator", "precision"):
        assert line[column].startswith("'"), column
    assert float(line["vflops"]) > 0


def test_cells_that_are_no_formulas_stay_as_they_are() -> None:
    assert safe_cell("Aurora - 2 = fast") == "Aurora - 2 = fast"
    assert safe_cell(-1.5) == -1.5
    assert safe_cell(None) is None


def test_a_quote_or_line_break_in_a_name_stays_in_its_cell(open_board: OpenBoard, tmp_path: Path) -> None:
    client = open_board(tmp_path, make_submission(1, system_name='a "b",\r\nc'))
    lines = list(csv.DictReader(io.StringIO(client.get(f"{BOARD}.csv").text)))
    assert [line["system"] for line in lines] == ['a "b", c']


def test_the_feed_has_absolute_links_and_names_that_last(client: httpx.Client) -> None:
    answer = client.get("/feed.atom")
    assert answer.headers["content-type"].startswith("application/atom+xml")
    feed = ElementTree.fromstring(answer.text)
    entries = feed.findall(f"{ATOM}entry")
    assert len(entries) == 50
    times = [entry.findtext(f"{ATOM}updated") for entry in entries]
    assert times == sorted(times, key=str, reverse=True)
    assert feed.findtext(f"{ATOM}updated") == times[0]
    for entry in entries:
        link = entry.find(f"{ATOM}link")
        assert link is not None
        sha256 = str(entry.findtext(f"{ATOM}id")).rpartition(":")[2]
        assert link.get("href") == f"{client.base_url}/submissions/{sha256}"
        assert client.get(f"/submissions/{sha256}").status_code == 200
        assert entry.findtext(f"{ATOM}author/{ATOM}name")


def test_a_board_behind_a_proxy_says_where_people_find_it(tmp_path: Path) -> None:
    database, storage = make_board(tmp_path, make_submission(1))
    with serving(make_app(database, storage, "https://board.example")) as address:
        feed = ElementTree.fromstring(httpx.get(f"{address}/feed.atom").text)
        about = httpx.get(f"{address}/about").text
    links = [str(link.get("href")) for link in feed.iter(f"{ATOM}link")]
    assert len(links) == 3
    assert all(link.startswith("https://board.example/") for link in links)
    assert "--to https://board.example<" in about


def test_markup_in_a_name_stays_text_in_the_feed(open_board: OpenBoard, tmp_path: Path) -> None:
    client = open_board(tmp_path, make_submission(1, system_name="<b>&amp;\x00\ufffe]]>"))
    feed = ElementTree.fromstring(client.get("/feed.atom").text)
    assert str(feed.findtext(f"{ATOM}entry/{ATOM}title")).startswith("<b>&amp;]]>: ")
