"""A board in a real browser: filters, orders, keyboard, phone, without scripts, and what axe finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from board_rows import make_submission, opened_board
from board_server import make_app, serving

from hpcai500.leaderboard.database import Database
from hpcai500.leaderboard.display import NO_VALUE
from hpcai500.leaderboard.export import export_board
from hpcai500.leaderboard.storage import Storage

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.browser
BOARD = "/boards/resnet50/official/free"
WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
Opener = Callable[..., "Page"]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Database, Storage]]:
    with opened_board(tmp_path_factory.mktemp("board")) as board:
        yield board


@pytest.fixture(scope="module")
def address(board: tuple[Database, Storage]) -> Iterator[str]:
    with serving(make_app(*board)) as address:
        yield address


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Opener]:
    """Opens pages of the board; afterwards, that none complained or asked another host for anything."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []
    requests: list[str] = []

    def open_page(path: str, viewport: dict[str, int] = WIDE, root: str = address, **settings: Any) -> Page:
        context = browser.new_context(viewport=viewport, **settings)
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{path}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"{path}: {error}"))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(root + path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [text for text in complaints if "status of 404" not in text] == []
    assert [url for url in requests if not url.startswith((address, "file:", "data:"))] == []


def ranks(page: Page) -> list[str]:
    return [text.strip() for text in page.locator("table.board tbody tr:visible .rank").all_inner_texts()]


def accelerators(page: Page) -> set[str]:
    return set(page.locator("table.board tbody tr:visible .fit").all_inner_texts())


def wait_for_status(page: Page, part: str) -> None:
    page.wait_for_function("part => document.getElementById('status').textContent.includes(part)", arg=part)


def test_a_filter_applies_without_a_new_page_and_the_address_says_it(open_page: Opener) -> None:
    page = open_page(BOARD)
    page.evaluate("window.isTheSame = true")
    page.get_by_label("Accelerator").fill("h100")
    wait_for_status(page, " of 40 submissions")
    assert accelerators(page) == {"NVIDIA H100 80GB HBM3"}
    assert page.url.endswith("?accelerator=h100")
    page.get_by_label("Precision", exact=True).select_option("bf16")
    page.wait_for_url("**/free?precision=bf16&accelerator=h100")
    page.get_by_label("registered", exact=True).check()
    page.wait_for_url("**&registered=1")
    assert page.evaluate("window.isTheSame") is True
    assert "registered=1" in str(page.get_by_role("link", name="CSV").get_attribute("href"))
    page.go_back()
    page.wait_for_url("**/free?precision=bf16&accelerator=h100")
    page.get_by_role("link", name="show all").click()
    wait_for_status(page, "40 submissions")


def test_another_edition_is_chosen_in_the_form_or_by_a_link(open_page: Opener) -> None:
    page = open_page(BOARD)
    edition = page.get_by_label("Edition of the rules", exact=True)
    assert edition.locator("option:checked").inner_text() == "0.10, the newest"
    edition.select_option("0.9")
    wait_for_status(page, "8 submissions of edition 0.9")
    assert page.url.endswith("?edition=0.9")
    assert ranks(page)[0] == "1"
    edition.select_option("all")
    wait_for_status(page, "48 submissions of all editions")
    assert page.get_by_text("do not compare, so nobody has a rank here").is_visible()
    assert set(ranks(page)) == {NO_VALUE}
    page.get_by_role("link", name="edition 0.10").click()
    wait_for_status(page, "40 submissions of edition 0.10")
    assert page.url.endswith(BOARD)


def test_a_filter_that_leaves_nothing_says_what_to_do(open_page: Opener) -> None:
    page = open_page(BOARD)
    page.get_by_label("Accelerator").fill("abacus")
    wait_for_status(page, "0 of 40")
    assert page.get_by_text("No submission is like that.").is_visible()


def test_a_header_sorts_and_says_so(open_page: Opener) -> None:
    page = open_page(BOARD)
    page.evaluate("window.isTheSame = true")
    header = page.get_by_role("columnheader", name="Time")
    assert header.get_attribute("aria-sort") is None
    page.locator("a[data-sort=time]").click()
    page.wait_for_url("**?sort=time")
    assert header.get_attribute("aria-sort") == "ascending"
    page.locator("a[data-sort=time]").click()
    page.wait_for_url("**?sort=-time")
    page.wait_for_selector("th[aria-sort=descending]")
    assert page.locator("th[aria-sort]").count() == 1
    assert page.evaluate("window.isTheSame") is True
    page.get_by_label("energy measured").check()
    page.wait_for_url("**energy=1&sort=-time")


def test_filter_and_order_work_with_the_keyboard_alone(open_page: Opener) -> None:
    page = open_page(BOARD)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.get_by_label("Accelerator").focus()
    page.keyboard.type("mi300")
    page.keyboard.press("Enter")
    wait_for_status(page, "of 40 submissions")
    page.locator("a[data-sort=per_watt]").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**sort=per_watt")
    page.wait_for_function("document.activeElement.dataset.sort === 'per_watt'")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


def test_everything_works_without_scripts(open_page: Opener) -> None:
    page = open_page(BOARD, java_script_enabled=False)
    page.get_by_label("Accelerator").fill("h100")
    page.get_by_label("Nodes from").fill("2")
    page.get_by_role("button", name="Apply").click()
    assert "of 40 submissions" in page.locator("#status").inner_text()
    assert accelerators(page) == {"NVIDIA H100 80GB HBM3"}
    page.get_by_role("link", name="per watt").click()
    assert page.url.endswith("nodes_min=2&sort=per_watt") or "sort=per_watt" in page.url
    assert page.get_by_role("columnheader", name="per watt").get_attribute("aria-sort") == "descending"
    page.locator("table.board .who a").first.click()
    assert page.get_by_role("heading", level=1).inner_text() == "Aurora Borealis"
    page.get_by_role("link", name="Report with all plots").click()
    assert page.get_by_role("heading", name="Report").is_visible()


def test_two_are_ticked_and_compared(open_page: Opener) -> None:
    page = open_page(BOARD)
    boxes = page.locator("table.board input[name=submission]")
    boxes.nth(0).check()
    boxes.nth(1).check()
    page.get_by_role("button", name="Compare those ticked").click()
    assert page.get_by_role("heading", name="Compare submissions").is_visible()
    assert page.get_by_role("row", name="VFLOPS, times the first").is_visible()


def test_a_submission_is_opened_from_the_start_page(open_page: Opener) -> None:
    page = open_page("/")
    page.get_by_role("link", name="Lighthouse").first.click()
    assert page.get_by_role("heading", level=1).inner_text() == "Lighthouse"
    with page.expect_download() as download:
        page.get_by_role("link", name="the whole submission").click()
    assert download.value.suggested_filename.startswith("lighthouse-")


@pytest.mark.parametrize("path", ["/", BOARD, "/history/2020", "/history/resnet50/official/free", "/audit", "SHA"])
def test_on_a_phone_nothing_is_wider_than_the_screen(open_page: Opener, path: str) -> None:
    page = open_page(path.replace("SHA", f"/submissions/{make_submission(7).sha256}"), PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_on_a_phone_rank_and_name_stay_while_the_table_scrolls(open_page: Opener) -> None:
    page = open_page(BOARD, PHONE)
    assert not page.get_by_label("Accelerator").is_visible()
    page.get_by_text("Show only").first.click()
    assert page.get_by_label("Accelerator").is_visible()
    rank, name = page.locator("tbody td.rank").first, page.locator("tbody th.system").first
    before = [rank.bounding_box(), name.bounding_box()]
    page.locator(".scroll.wide").evaluate("element => { element.scrollLeft = 400; }")
    after = [rank.bounding_box(), name.bounding_box()]
    for old, new in zip(before, after, strict=True):
        assert old is not None
        assert new is not None
        assert new["x"] == pytest.approx(old["x"], abs=1)
    date = page.locator("tbody td.date").first
    page.locator(".scroll.wide").evaluate("element => { element.scrollLeft = 10000; }")
    box = date.bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= PHONE["width"]


def test_on_a_wide_screen_the_table_fits_and_its_header_stays(open_page: Opener) -> None:
    page = open_page(BOARD)
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDE["width"]
    page.evaluate("window.scrollTo(0, 1500)")
    page.wait_for_function("window.scrollY > 1000")
    box = page.locator("table.board thead th.system").bounding_box()
    assert box is not None
    assert box["y"] == pytest.approx(0, abs=1)


LOOKS = ((WIDE, "light"), (PHONE, "dark"))
PAGES = {
    "start": "/",
    "board": f"{BOARD}?nodes_min=64",
    "all editions": f"{BOARD}?edition=all&nodes_min=64",
    "practice": "/boards/resnet50/mini/free",
    "nothing found": f"{BOARD}?accelerator=abacus",
    "wrong filter": f"{BOARD}?year=x&sort=time&nodes_min=128",
    "submission": f"/submissions/{make_submission(7).sha256}",
    "withdrawn": f"/submissions/{make_submission(3).sha256}",
    "challenge": f"/submissions/{make_submission(1).sha256}/challenge",
    "system": "/systems/alpine/matterhorn",
    "history": "/history/resnet50/official/free",
    "2020": "/history/2020",
    "compare": f"/compare?submission={make_submission(0).sha256}&submission={make_submission(1).sha256}",
    "nothing to compare": "/compare",
    "audit": "/audit",
    "about": "/about",
    "missing": "/submissions/nothing",
}


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(open_page: Opener, name: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    for viewport, scheme in LOOKS if name in ("board", "submission") else LOOKS[:1]:
        page = open_page(PAGES[name], viewport, color_scheme=scheme, bypass_csp=True)
        for summary in page.locator("main summary").all():
            summary.click()
        found = Axe().run(page).response["violations"]
        bad = [(one["id"], [node["html"][:200] for node in one["nodes"]][:3]) for one in found]
        assert bad == []


def test_exported_files_filter_in_the_browser(
    open_page: Opener, board: tuple[Database, Storage], tmp_path: Path
) -> None:
    export_board(*board, tmp_path / "out")
    page = open_page(f"{BOARD}/index.html", root=f"file://{tmp_path / 'out'}")
    assert len(ranks(page)) == 40
    like_above = page.locator("table.board .mark.plain:visible")
    assert like_above.count() > 0
    page.get_by_label("Accelerator").fill("h100")
    wait_for_status(page, "of 40 submissions on this page; ranks are those of the whole board")
    assert accelerators(page) == {"NVIDIA H100 80GB HBM3"}
    assert like_above.count() == 0  # the rows above are hidden
    page.get_by_label("Precision", exact=True).select_option("fp32")
    wait_for_status(page, "take away a filter")
    page.locator("a[data-sort=time]").click()
    assert page.locator("th[aria-sort=ascending]").count() == 1
    wait_for_status(page, "take away a filter")
    assert page.get_by_label("Accelerator").input_value() == "h100"
    page.get_by_label("Accelerator").fill("")
    page.get_by_label("Precision", exact=True).select_option("")
    page.wait_for_function("!document.getElementById('status').textContent.includes('of 40')")
    assert len(ranks(page)) == 40
    page.locator("table.board .who a").first.click()
    assert page.get_by_role("heading", level=1).inner_text() == "Lighthouse"
