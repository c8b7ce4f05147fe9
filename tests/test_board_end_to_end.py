"""A board as people use it: trained, uploaded, ranked and read; doubted in a browser, and decided."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from board_server import serving

from hpcai500.leaderboard.app import create_app
from hpcai500.leaderboard.board import BoardConfig

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]
WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


def hpcai500(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpcai500", *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def submission(smoke_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that this machine made."""
    folder = tmp_path_factory.mktemp("trained") / "smoke"
    words = ["--size", "smoke", "--data", smoke_data, "--ranks", 1, "--runs", 1, "--output", folder]
    hpcai500("submit", *words)
    return folder / "submission.json"


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("board")


@pytest.fixture(scope="module")
def address(board: Path) -> Iterator[str]:
    with serving(create_app(BoardConfig(folder=board))) as address:
        yield address


@pytest.fixture(scope="module")
def tokens(board: Path, address: str) -> dict[str, str]:
    """Of two organisations."""
    found = {}
    for slug, name in (("our-centre", "Our Centre"), ("rivals", "The Rivals")):
        hpcai500("leaderboard", "admin", "organisation", "add", slug, name, "--folder", board)
        made = hpcai500("leaderboard", "admin", "token", "create", slug, "--folder", board, "--label", "tests")
        found[slug] = re.findall(r"hpcai500_\w+", made.stdout)[0]
    return found


def serious(page: Page) -> list[str]:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['help']}" for one in found if one["impact"] in ("serious", "critical")]


@pytest.mark.parametrize(("viewport", "scripts"), [(WIDE, True), (PHONE, False)], ids=["wide", "phone without scripts"])
def test_from_training_to_a_decided_challenge(
    browser: Browser,
    address: str,
    board: Path,
    tokens: dict[str, str],
    submission: Path,
    viewport: dict[str, int],
    scripts: bool,
) -> None:
    sent = hpcai500("leaderboard", "upload", submission, "--to", address, HPCAI500_TOKEN=tokens["our-centre"])
    page_url = re.findall(rf"{address}/submissions/\w+", sent.stdout)[0]
    context = browser.new_context(viewport=viewport, java_script_enabled=scripts)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(address)
    page.get_by_role("link", name=re.compile("free")).first.click()
    board_url = page.url
    assert page.locator("table.board tbody tr").count() == 1
    page.goto(f"{board_url}?accelerator=nothing-of-that-name")
    assert page.locator("table.board tbody tr").count() == 0
    page.goto(board_url)
    page.locator(f"a[href*='{page_url.rsplit('/', 1)[1]}']").first.click()
    assert page.url == page_url
    page.get_by_role("link", name="Report with all plots").click()
    assert "VALID" in page.inner_text("body")
    page.go_back()

    page.get_by_role("link", name="challenge this submission").click()
    assert not scripts or serious(page) == []
    page.get_by_label("What is wrong").fill("Loss <b>falls</b> too fast")
    page.get_by_label("Evidence").fill("Run 1, rank 0, line 9.\nA replay gave 2.31.")
    page.get_by_label("Token").fill("hpcai500_0123456789abcdef_" + "0" * 43)
    page.get_by_role("button", name="File the challenge").click()
    assert "It was not filed" in page.inner_text("[role=alert]")
    assert page.get_by_label("Evidence").input_value() == "Run 1, rank 0, line 9.\nA replay gave 2.31."
    assert page.get_by_label("Token").input_value() == ""
    page.get_by_label("Token").fill(tokens["our-centre"])
    page.get_by_role("button", name="File the challenge").click()
    assert "your own" in page.inner_text("[role=alert]")
    page.get_by_label("Token").fill(tokens["rivals"])
    page.get_by_role("button", name="File the challenge").click()
    assert page.url == f"{page_url}#challenges"
    assert "Loss <b>falls</b> too fast" in page.inner_text("body")
    page.goto(board_url)
    assert "challenged" in page.inner_text("table.board")

    folder = ("--folder", board)
    open_ones = hpcai500("leaderboard", "admin", "challenge", "list", *folder).stdout
    challenge = re.findall(r"\b[0-9a-f]{32}\b", open_ones)[0]
    words = ("--dismiss", "--decision", "A replay on the board's machine gave the very losses.")
    hpcai500("leaderboard", "admin", "challenge", "decide", challenge, *words, *folder)
    page.goto(page_url)
    assert "gave the very losses" in page.inner_text("body")
    page.goto(board_url)
    assert "challenged" not in page.inner_text("table.board")
    context.close()
