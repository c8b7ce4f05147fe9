"""Who stands where on a board: places, filters, orders, pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from board_rows import EDITION, OLD_EDITION, SYSTEMS, make_board, make_submission, opened_board
from sqlalchemy import event
from sqlalchemy.orm import Session

from hpcai500.leaderboard.display import clean, clean_lines, size_in_bytes, time_unit_of, unit_of, with_unit
from hpcai500.leaderboard.filters import SORTS, Filters, parse_filters
from hpcai500.leaderboard.history import ranking_of_2020
from hpcai500.leaderboard.ranking import (
    Board,
    find_board,
    find_progress,
    find_whole_board,
    list_boards,
    list_newest,
    list_of_system,
    places_of,
)

FREE = ("resnet50", "official", "free")


def around(*values: float, spread: float = 0.0) -> list[tuple[float, float, float]]:
    return [(value, value - spread, value + spread) for value in values]


def ranks(intervals: list[tuple[float, float, float]]) -> list[int]:
    return [place.rank for place in places_of(intervals)]


def test_neighbours_whose_intervals_overlap_share_a_rank() -> None:
    places = places_of(around(100, 99, 90, 80, 79, spread=1))
    assert [place.rank for place in places] == [1, 1, 3, 4, 4]
    assert [place.is_shared for place in places] == [True, True, False, True, True]
    assert [place.is_like_above for place in places] == [False, True, False, False, True]


def test_a_long_chain_of_overlaps_does_not_make_everybody_first() -> None:
    places = places_of(around(100, 98, 96, 94, spread=1.5))
    assert [place.rank for place in places] == [1, 1, 3, 3]
    assert [place.is_like_above for place in places] == [False, True, True, True]


def test_an_overlap_with_the_first_alone_is_not_enough() -> None:
    assert ranks([(100, 80, 120), (99, 98, 100), (90, 85, 95)]) == [1, 1, 3]


def test_equal_values_without_an_interval_share_a_rank() -> None:
    assert ranks(around(3, 2, 2, 1)) == [1, 2, 2, 4]
    assert ranks(around(1, 2, 2, 3)) == [1, 2, 2, 4]
    assert ranks([]) == []


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A session of the plausible board."""
    with opened_board(tmp_path_factory.mktemp("board")) as (database, _), database.session() as session:
        yield session


def all_rows(session: Session, **filters: Any) -> Board:
    return find_board(session, *FREE, Filters(**filters), page_rows=1000)


def test_a_board_is_sorted_by_score_and_shows_what_was_published_alone(session: Session) -> None:
    board = all_rows(session)
    assert board.num_all == board.num_found == len(board.rows) == 40
    scores = [row.vflops for row in board.rows]
    assert scores == sorted(scores, reverse=True)
    placed = [row.place.rank for row in board.rows if row.place]
    assert placed[0] == 1
    assert placed == sorted(placed)
    assert {row.state for row in board.rows} == {"published", "challenged", "withdrawn"}


def test_a_withdrawn_row_stands_in_its_place_without_a_rank_and_costs_nobody_one(session: Session) -> None:
    rows = all_rows(session).rows
    withdrawn = [row for row in rows if row.is_withdrawn]
    assert [row.place for row in withdrawn] == [None]
    intervals = [(row.vflops, row.vflops_low, row.vflops_high) for row in rows if not row.is_withdrawn]
    assert [row.place for row in rows if row.place] == places_of(intervals)
    assert [row.place is not None for row in rows if row.is_challenged] == [True]


def test_an_official_board_has_only_what_is_rankable_and_practice_has_all_that_is_valid(session: Session) -> None:
    summaries = {(board.workload, board.size, board.level): board for board in list_boards(session)}
    assert {names: board.num_submissions for names, board in summaries.items()} == {
        FREE: 40,
        ("resnet50", "official", "hardware"): 6,
        ("fasterrcnn", "official", "free"): 4,
        ("resnet50", "mini", "free"): 5,
    }
    assert [board.size for board in list_boards(session)] == ["official"] * 3 + ["mini"]
    assert not find_board(session, "resnet50", "mini", "free", Filters()).is_official
    for names, board in summaries.items():
        assert board.leader is not None
        first = next(row for row in find_board(session, *names, Filters()).rows if row.place)
        assert board.leader.sha256 == first.sha256


FILTERED = {
    "precision": ("bf16", lambda row: row.precision == "bf16"),
    "size_class": ("9-64", lambda row: 9 <= row.num_devices <= 64),
    "accelerator": ("h100", lambda row: "H100" in row.accelerator),
    "nodes_min": (8, lambda row: row.num_nodes >= 8),
    "nodes_max": (4, lambda row: row.num_nodes <= 4),
    "year": (2026, lambda row: row.published_at.startswith("2026")),
    "registered": (True, lambda row: row.registered),
    "energy": (True, lambda row: row.energy_label == "measured"),
}


@pytest.mark.parametrize("name", FILTERED)
def test_each_filter_leaves_what_it_says(session: Session, name: str) -> None:
    value, is_wanted = FILTERED[name]
    everything, found = all_rows(session), all_rows(session, **{name: value})
    expected = [row.sha256 for row in everything.rows if is_wanted(row)]
    assert 0 < len(expected) < 40
    assert [row.sha256 for row in found.rows] == expected
    assert (found.num_found, found.num_all) == (len(expected), 40)


def test_filters_together_leave_what_all_of_them_leave_and_ranks_are_of_that(session: Session) -> None:
    board = all_rows(session, precision="bf16", registered=True, nodes_min=2)
    assert board.rows
    assert all(row.precision == "bf16" and row.registered and row.num_nodes >= 2 for row in board.rows)
    assert next(row.place.rank for row in board.rows if row.place) == 1


@pytest.mark.parametrize("text", ["%", "_", "100%", "\\", "'"])
def test_wildcards_in_an_accelerator_are_letters(session: Session, text: str) -> None:
    assert all_rows(session, accelerator=text).num_found == 0


KEYS = {
    "vflops": lambda row: row.vflops,
    "per_device": lambda row: row.vflops_per_device,
    "per_watt": lambda row: row.vflops_per_w if row.energy_label == "measured" else None,
    "quality": lambda row: row.achieved_quality,
    "time": lambda row: row.wall_s,
    "date": lambda row: row.published_at,
}


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("is_reversed", [False, True])
def test_each_order_has_the_best_first_and_what_is_not_known_last(
    session: Session, sort: str, is_reversed: bool
) -> None:
    rows = all_rows(session, sort=sort, is_reversed=is_reversed).rows
    assert len(rows) == 40
    values = [KEYS[sort](row) for row in rows]
    known = [value for value in values if value is not None]
    assert values == known + [None] * (40 - len(known))
    assert known == sorted(known, reverse=(sort != "time") != is_reversed)
    if sort == "per_watt":
        assert [row.place for row in rows[len(known) :]] == [None] * (40 - len(known))


def test_ranks_are_by_the_figure_that_the_board_is_sorted_by(session: Session) -> None:
    fastest = all_rows(session, sort="time").rows
    assert fastest[0].place is not None
    assert fastest[0].place.rank == 1
    slowest_first = all_rows(session, sort="time", is_reversed=True).rows
    assert {row.sha256: row.place for row in slowest_first} == {row.sha256: row.place for row in fastest}
    by_date = all_rows(session, sort="date").rows
    assert {row.sha256: row.place for row in by_date} == {row.sha256: row.place for row in all_rows(session).rows}


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("is_reversed", [False, True])
def test_pages_together_are_the_whole_board(session: Session, sort: str, is_reversed: bool) -> None:
    whole = all_rows(session, sort=sort, is_reversed=is_reversed).rows
    pages = [
        find_board(session, *FREE, Filters(sort=sort, is_reversed=is_reversed, page=page), page_rows=7)
        for page in range(1, 7)
    ]
    assert {board.num_pages for board in pages} == {6}
    together = [row for board in pages for row in board.rows]
    assert [row.sha256 for row in together] == [row.sha256 for row in whole]
    assert [row.place and row.place.rank for row in together] == [row.place and row.place.rank for row in whole]


def test_a_page_beyond_the_last_is_the_last(session: Session) -> None:
    assert find_board(session, *FREE, Filters(page=99), page_rows=7).page == 6
    assert find_board(session, "no", "such", "board", Filters(page=99)).page == 1


def test_filters_offer_what_there_is(session: Session) -> None:
    options = all_rows(session).options
    assert options.precisions == ("bf16", "fp16", "fp32")
    assert options.editions == (EDITION, OLD_EDITION)
    assert options.years == ("2026", "2025")
    assert [name for name in ("1", "2-8", "9-64", "65-512", "513+") if name in options.size_classes] == [
        *options.size_classes
    ]


def test_newest_of_a_system_and_records(session: Session) -> None:
    newest = [row.published_at for row in list_newest(session, 20)]
    assert newest == sorted(newest, reverse=True)
    mine = list_of_system(session, "alpine", "matterhorn")
    assert mine
    assert {row.system for row in mine} == {SYSTEMS[1][0]}
    assert list_of_system(session, "alpine", "lighthouse") == []
    records, others = find_progress(session, *FREE, EDITION)
    assert len(records) + len(others) == 39
    best = [row.vflops for row in records]
    assert best == sorted(set(best))
    assert best[-1] == max(row.vflops for row in all_rows(session).rows if not row.is_withdrawn)


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("edition", ["", "all"])
def test_what_a_board_looks_for_stands_in_its_index(session: Session, sort: str, edition: str) -> None:
    """Else each page would read the facts of all submissions, which are ten times as long as the rest."""
    asked: list[tuple[str, Any]] = []
    connection = session.connection()

    def listen(_connection: Any, _cursor: Any, statement: str, words: Any, *_others: Any) -> None:
        asked.append((statement, words))

    filters = {name: value for name, (value, _) in FILTERED.items()}
    event.listen(connection, "before_cursor_execute", listen)
    for words in ({}, filters):
        find_board(session, *FREE, Filters(**words, edition=edition, sort=sort))
    event.remove(connection, "before_cursor_execute", listen)
    assert len(asked) >= 4
    for statement, words in asked:
        plan = [str(row[3]) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", words)]
        looks = [line for line in plan if "workload=?" in line or line.startswith("SCAN submission")]
        assert looks, plan
        assert all("COVERING INDEX ix_submission_board" in line for line in looks), plan


def test_words_of_an_address_become_filters_and_back() -> None:
    words = {"precision": "bf16", "nodes_min": "2", "registered": "1", "sort": "-time", "page": "3"}
    filters, problems = parse_filters(words)
    assert problems == []
    assert filters == Filters(precision="bf16", nodes_min=2, registered=True, sort="time", is_reversed=True, page=3)
    assert filters.query(page=3) == "?precision=bf16&nodes_min=2&registered=1&page=3&sort=-time"
    assert filters.query(sort="vflops", is_reversed=False) == "?precision=bf16&nodes_min=2&registered=1"
    assert Filters().query() == ""


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ({"nodes_min": "two"}, "nodes_min is 'two'"),
        ({"year": "-1"}, "year is '-1'"),
        ({"page": "9" * 30}, "page is"),
        ({"nodes_max": "٣"}, "nodes_max is"),
        ({"sort": "colour"}, "cannot be sorted by 'colour', only by vflops"),
    ],
)
def test_what_an_address_says_wrongly_is_left_out_and_said(words: dict[str, str], part: str) -> None:
    filters, problems = parse_filters(words)
    assert filters == Filters()
    assert len(problems) == 1
    assert part in problems[0]


def test_names_lose_what_misleads() -> None:
    assert clean("Super\u202egnp.exe\x00\x1b[31m\n\tfast") == "Supergnp.exe[31m fast"
    assert clean("a" * 600) == "a" * 499 + "…"
    assert clean("Zürich 東京 कंप्यूटर") == "Zürich 東京 कंप्यूटर"
    assert clean_lines("one\r\n\u202etwo\n\n three ") == "one\ntwo\nthree"


def test_a_column_has_one_unit_with_decimals_enough_for_its_smallest() -> None:
    unit = unit_of([1.5e15, 250e15, 2.25e15, None])
    assert unit.name == "Pflop/s"
    assert [unit.shown(value) for value in (1.5e15, 250e15, None)] == ["1.50", "250.00", "\u2013"]
    assert with_unit(3.2e9, "flop/s/W") == "3.20\u00a0Gflop/s/W"
    assert unit_of([]).shown(None) == "\u2013"
    assert time_unit_of([30.0, 7200.0, 9000.0]).name == "h"
    assert size_in_bytes(512) == "512 B"
    assert size_in_bytes(3_400_000) == "3.40\u00a0MB"


def test_a_submission_without_an_interval_is_exact(tmp_path: Path) -> None:
    bare = make_submission(1, vflops_low=None, vflops_high=None)
    database, _ = make_board(tmp_path, bare, make_submission(2))
    with database.session() as session:
        row = next(row for row in find_whole_board(session, *FREE, Filters()).rows if row.sha256 == bare.sha256)
        assert row.vflops_low == row.vflops == row.vflops_high
        assert row.place is not None
    database.close()


def test_the_ranking_of_2020_reproduces_with_an_exponent_of_10() -> None:
    rows = ranking_of_2020()
    assert [row.rank for row in rows] == list(range(1, 10))
    # PFN and Facebook are off under either exponent; their remarks and minutes are as printed.
    for row in rows:
        if row.system not in ("PFN", "Facebook"):
            assert row.recomputed_pflops_n10 == pytest.approx(row.published_pflops, rel=0.012), row.system
    by_name = {row.system: row for row in rows}
    assert by_name["Fujitsu"].recomputed_pflops_n5 == pytest.approx(34.03, abs=0.005)
    assert by_name["Google"].is_quality_assumed
    assert "256 P100" in by_name["Facebook"].remark
