"""The pages of a board: what they show, what they refuse, and that names from outside stay text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from html.parser import HTMLParser
from pathlib import Path

import httpx
import msgspec
import pytest
from board_rows import audit, make_board, make_submission, opened_board
from board_server import client_of, opening_boards

from hpcai500.leaderboard.display import with_unit
from hpcai500.leaderboard.entries import read_entry
from hpcai500.leaderboard.tables import Challenge
from hpcai500.verify import verify_submission

OpenBoard = Callable[..., httpx.Client]
BOARD = "/boards/resnet50/official/free"
HOSTILE = "<script>alert(1)</script>\"'=cmd|x\u202egnp\x07"
VOID = {"meta", "link", "input", "br", "rect", "line", "circle", "path"}


class Page(HTMLParser):
    """A page's tags, words and links; fails where tags are not closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def links(self) -> list[str]:
        return [str(attrs["href"]) for tag, attrs in self.tags if tag == "a" and "href" in attrs]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of the plausible board."""
    with opened_board(tmp_path_factory.mktemp("board")) as board, client_of(*board) as client:
        yield client


@pytest.fixture
def open_board() -> Iterator[OpenBoard]:
    with opening_boards() as open_board:
        yield open_board


@pytest.fixture
def server() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def read(client: httpx.Client, address: str, status: int = 200) -> Page:
    answer = client.get(address)
    assert answer.status_code == status, address
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return Page(answer.text)


def test_the_start_page_names_boards_leaders_and_what_is_new(client: httpx.Client) -> None:
    page = read(client, "/")
    assert "led by Lighthouse , Harbour University" in page.text
    assert "official size · edition 0.10 · 40 submissions" in page.text
    assert "never compared with official results" in page.text
    assert BOARD in page.links()
    assert len([link for link in page.links() if link.startswith("/submissions/")]) == 10 + 4


def test_an_empty_board_says_how_to_submit(open_board: OpenBoard, tmp_path: Path) -> None:
    client = open_board(tmp_path, make_submission(1, state="draft", workload=None, size=None, level=None, vflops=None))
    page = read(client, "/")
    assert "There are no submissions yet" in page.text
    assert f"hpcai500 leaderboard upload submission.json --to {client.base_url}" in page.text
    assert "Nobody has submitted to this board yet" in read(client, BOARD).text
    assert "there is no record" in read(client, "/history/resnet50/official/free").text
    assert "Nothing has happened" in read(client, "/audit").text
    assert client.get("/feed.atom").status_code == 200


def test_the_pages_of_a_board_lead_to_each_other(client: httpx.Client) -> None:
    seen: set[str] = set()
    waiting = ["/"]
    while waiting:
        address = waiting.pop()
        if address in seen or "sort=" in address:
            continue
        seen.add(address)
        answer = client.get(address)
        assert answer.status_code == 200, address
        if answer.headers["content-type"].startswith("text/html") and not address.endswith("/report"):
            waiting += [link for link in Page(answer.text).links() if link.startswith("/")]
    kinds = {address.split("/")[1] for address in seen}
    assert kinds >= {"boards", "submissions", "systems", "history", "audit", "about", "feed.atom"}


def test_ranks_marks_and_states_stand_in_the_table(client: httpx.Client) -> None:
    text = client.get(BOARD).text
    rows = re.findall(r'<tr class="([^"]*)">(.*?)</tr>', text, re.DOTALL)
    assert len(rows) == 40
    withdrawn = [row for css, row in rows if "withdrawn" in css]
    assert len(withdrawn) == 1
    assert 'aria-label="no rank"' in withdrawn[0]
    assert sum("challenged</span>" in row for _, row in rows) == 1
    assert text.count("not distinguishable<span") == sum("like" in css for css, _ in rows) > 0


def test_filters_stand_in_the_form_and_lead_on(client: httpx.Client) -> None:
    page = read(client, f"{BOARD}?precision=bf16&accelerator=H100&registered=1&sort=time&nodes_min=x")
    assert "of 40 submissions" in page.text
    assert "nodes_min is 'x', which is no whole number" in page.text
    fields = {attrs.get("name"): attrs for tag, attrs in page.tags if tag == "input"}
    assert fields["accelerator"]["value"] == "H100"
    assert "checked" in fields["registered"]
    assert fields["sort"]["value"] == "time"
    assert f"{BOARD}?precision=bf16&accelerator=H100&registered=1&sort=-time" in page.links()
    assert f"{BOARD}.csv?precision=bf16&accelerator=H100&registered=1&sort=time" in page.links()
    sorts = {attrs["aria-sort"] for tag, attrs in page.tags if tag == "th" and "aria-sort" in attrs}
    assert sorts == {"ascending"}
    assert "No submission is like that." in read(client, f"{BOARD}?accelerator=abacus").text


def test_a_submission_shows_all_that_is_known_of_it(client: httpx.Client) -> None:
    sha256 = make_submission(7).sha256
    page = read(client, f"/submissions/{sha256}")
    for part in (
        "Matterhorn",
        "Somebody doubts this submission",
        "The energy of three nodes is missing",
        "See ledger/node-00012.jsonl",
        "by Alpine Computing Institute",
        "Not decided yet",
        "published by alpine",
        "batch size per rank 128",
        "valid, found by this board",
        sha256,
        f"tar xzf matterhorn-{sha256[:12]}.tar.gz",
        "hpcai500-verify unpacked/submission.json",
    ):
        assert part in page.text, part
    for name in ("report", "verdict.json", "archive"):
        assert f"/submissions/{sha256}/{name}" in page.links()


def plain(vflops: float) -> str:
    return with_unit(vflops).replace("\u00a0", " ")


@pytest.mark.usefixtures("edition_of_recorded")
def test_a_real_submission_is_shown_with_what_the_verifier_found(
    open_board: OpenBoard, tmp_path: Path, recorded: Path
) -> None:
    verdict = verify_submission(recorded)
    entry = msgspec.structs.asdict(read_entry(recorded, verdict))
    row = make_submission(1, **entry, registration="unregistered")
    client = open_board(tmp_path, row)
    assert verdict.summary is not None
    page = read(client, f"/submissions/{row.sha256}")
    for part in (
        "Practice size, never compared",
        plain(verdict.summary.vflops),
        f"{verdict.summary.num_completed} of {verdict.summary.num_runs} runs completed",
        "A processor",
        "An operating system",
        "torch 2.13.0",
        "batch size per rank 16",
    ):
        assert part in page.text, part
    assert (
        len(re.findall(r"<tr><th scope=\"row\" class=\"number\">", client.get(f"/submissions/{row.sha256}").text)) == 2
    )
    assert (
        f"smoke size · edition {row.edition} · 1 submission {plain(verdict.summary.vflops)}" in read(client, "/").text
    )
    board = read(client, "/boards/resnet50/smoke/free")
    assert "1 submission" in board.text


def test_a_withdrawn_submission_stays_with_its_reason(client: httpx.Client) -> None:
    page = read(client, f"/submissions/{make_submission(3).sha256}")
    assert "It stays visible, without a rank" in page.text
    assert "A faulty clock on node 3." in page.text


def test_files_of_a_submission_are_sent_as_what_they_are(client: httpx.Client) -> None:
    sha256 = make_submission(1).sha256
    report = client.get(f"/submissions/{sha256}/report")
    assert report.headers["content-type"].startswith("text/html")
    assert "script-src" not in report.headers["content-security-policy"]
    assert "sandbox" in report.headers["content-security-policy"]
    archive = client.get(f"/submissions/{sha256}/archive")
    assert archive.content == b"archive " + sha256.encode()
    assert f'filename="matterhorn-{sha256[:12]}.tar.gz"' in archive.headers["content-disposition"]
    assert client.get(f"/submissions/{sha256}/verdict.json").json() == {"valid": True}
    assert client.head(f"/submissions/{sha256}").status_code == 200


@pytest.mark.parametrize("state", ["draft", "rejected", "verified"])
def test_what_is_not_published_is_seen_nowhere(open_board: OpenBoard, tmp_path: Path, state: str) -> None:
    hidden, shown = make_submission(1, state=state, system_name="Secret"), make_submission(2)
    client = open_board(tmp_path, hidden, shown)
    for address in ("", "/report", "/archive", "/verdict.json"):
        read(client, f"/submissions/{hidden.sha256}{address}", 404)
    for address in ("/", BOARD, f"{BOARD}.csv", f"{BOARD}.json", "/feed.atom", "/audit"):
        assert "Secret" not in client.get(address).text
    read(client, f"/systems/{hidden.organisation_slug}/{hidden.system_slug}", 404)
    assert read(client, f"/compare?submission={hidden.sha256}&submission={shown.sha256}", 404)


@pytest.mark.parametrize(
    "address",
    [
        "/nothing",
        "/submissions/short",
        f"/submissions/{'A' * 64}",
        f"/submissions/{'0' * 64}",
        f"/submissions/{'0' * 64}/archive",
        "/boards/Res%20net/official/free",
        "/boards/resnet50/official/..%2f..",
        "/boards/%3Cscript%3E/official/free",
        "/boards/%3Cscript%3E/official/free.csv",
        "/history/resnet50/official/%00",
        "/systems/alpine/nothing",
        "/systems/alpine/%00",
        "/systems/%F0%9F%92%A5/matterhorn",
        f"/compare?submission=x&submission={'0' * 64}",
    ],
)
def test_what_is_not_there_has_a_page_that_says_so(client: httpx.Client, address: str) -> None:
    page = read(client, address, 404)
    assert "Not found" in page.text
    assert "/" in page.links()


def test_names_from_outside_stay_text_everywhere(tmp_path: Path, server: ExitStack) -> None:
    facts = {HOSTILE: HOSTILE, "settings": {HOSTILE: [HOSTILE]}, "runs": [], "notes": [HOSTILE]}
    words = dict.fromkeys(("system_name", "submitter", "registration", "signed_by", "why_not", "accelerator"), HOSTILE)
    words |= dict.fromkeys(("precision", "edition", "communicator"), HOSTILE[:35])
    rows = [make_submission(number, **words, facts=facts, system_slug="hostile", state=state)
            for number, state in ((1, "challenged"), (7, "published"), (13, "withdrawn"))]  # fmt: skip
    database, storage = make_board(tmp_path, *rows)
    sha256, other, *_ = [row.sha256 for row in rows]
    with database.writing() as session:
        challenge = Challenge(id="1" * 32, claim=HOSTILE, evidence=HOSTILE, decision=HOSTILE, state="dismissed")
        challenge.organisation_slug, challenge.submission_sha256 = "harbour", sha256
        challenge.opened_at = challenge.closed_at = "2026-11-20T09:00:00Z"
        session.add_all([challenge, audit(rows[0], HOSTILE[:40], "2026-11-20T09:00:00Z", HOSTILE)])
    server.callback(database.close)
    client = server.enter_context(client_of(database, storage))
    for address in (
        "/",
        BOARD,
        f"{BOARD}?accelerator={HOSTILE[:30]}&precision={HOSTILE[:20]}&sort={HOSTILE[:20]}&year={HOSTILE[:20]}",
        f"/submissions/{sha256}",
        "/systems/alpine/hostile",
        "/history/resnet50/official/free",
        f"/compare?submission={sha256}&submission={other}",
        "/audit",
    ):
        answer = client.get(address)
        page = Page(answer.text)
        assert [attrs for tag, attrs in page.tags if tag == "script"] == [{"src": "/static/board.js", "defer": None}]
        assert not any(name.startswith("on") or name == "style" for _, attrs in page.tags for name in attrs)
        assert "\u202e" not in answer.text
        assert "\x07" not in answer.text
        assert "&lt;script&gt;alert(1)" in answer.text, address


def test_a_comparison_shows_ratios_and_what_differs(client: httpx.Client) -> None:
    one, other = make_submission(0), make_submission(6)  # the same machine with other settings
    page = read(client, f"/compare?submission={one.sha256}&submission={other.sha256}")
    low, high = other.vflops_low / one.vflops_high, other.vflops_high / one.vflops_low
    assert f"{other.vflops / one.vflops:.3f} ({low:.3f} to {high:.3f})" in page.text
    assert "accelerator" not in page.text.partition("What differs")[2]
    practice = make_submission(1000)
    assert "of different sizes" in read(client, f"/compare?submission={one.sha256}&submission={practice.sha256}").text


@pytest.mark.parametrize(("count", "said"), [(0, "none were chosen"), (1, "one was chosen"), (7, "7 were chosen")])
def test_too_few_or_many_to_compare_says_what_to_do(client: httpx.Client, count: int, said: str) -> None:
    query = "&".join(f"submission={make_submission(number).sha256}" for number in range(count))
    page = read(client, f"/compare?{query}")
    assert said in page.text
    assert "Tick two to six submissions" in page.text


def test_the_ranking_of_2020_is_marked_unverified_with_its_errors(client: httpx.Client) -> None:
    page = read(client, "/history/2020")
    assert "The published ranking of 2020 unverified" in page.text
    assert "31.41 31.43 34.03" in page.text
    assert "error really 256 P100" in page.text
    assert page.text.count("hardware and framework swapped") == 2


def test_a_plot_of_records_has_words_for_those_who_hear_it(client: httpx.Client) -> None:
    text = client.get("/history/resnet50/official/free").text
    for width in (960, 380):  # one for phones
        assert f'<title id="plot-{width}">Best VFLOPS over time' in text
        assert re.search(rf'<desc id="plot-{width}-text">\d+ records from', text)
    assert text.count('class="record"') == 2 * text.count("<tr><td") > 2
    assert "Lighthouse, " in text


def test_pages_below_a_path_of_a_proxy_link_below_it(open_board: OpenBoard, tmp_path: Path) -> None:
    client = open_board(tmp_path, make_submission(1), root_path="/board")
    links = [link for link in read(client, "/").links() if link != "#content"]
    assert all(link.startswith("/board/") for link in links)


def test_a_large_board_is_paged_and_small_to_transfer(open_board: OpenBoard, tmp_path: Path) -> None:
    client = open_board(tmp_path, *(make_submission(number) for number in range(300)))
    answer = client.get(f"{BOARD}?page=3")
    assert len(answer.content) < 100_000
    page = Page(answer.text)
    assert "300 submissions of edition 0.10, page 3 of 6" in page.text
    assert f"{BOARD}?page=4" in page.links()
    assert BOARD in page.links()


@pytest.mark.postgresql
def test_pages_on_postgresql_are_those_on_sqlite(
    open_board: OpenBoard, tmp_path: Path, postgresql_url: str, client: httpx.Client
) -> None:
    other = open_board(tmp_path, url=postgresql_url)
    sha256 = make_submission(7).sha256
    for address in (
        "/",
        BOARD,
        f"{BOARD}.csv?sort=-per_watt",
        f"{BOARD}?sort=per_watt&accelerator=h100&year=2026&energy=1&registered=1",
        f"{BOARD}?sort=-date",
        f"{BOARD}?edition=0.9",
        f"{BOARD}?edition=all&sort=per_device",
        "/audit",
        "/systems/alpine/matterhorn",
        "/history/resnet50/official/free",
        f"/submissions/{sha256}",
        f"/compare?submission={sha256}&submission={make_submission(8).sha256}",
        "/feed.atom",
    ):
        answer = other.get(address)
        assert answer.status_code == 200, address
        there, here = str(other.base_url).rstrip("/"), str(client.base_url).rstrip("/")
        assert answer.text.replace(there, here) == client.get(address).text, address
    for address in ("/systems/alpine/%00", "/boards/resnet50/%00/free", "/submissions/%00"):
        read(other, address, 404)
    read(other, f"{BOARD}?accelerator=%00&precision=%00&edition=%ff&year=%00")
