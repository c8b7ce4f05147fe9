"""The report in a real browser: accessible, nothing too wide, no request, on a phone and a desk, light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recording import EDITION

from hpcai500.report.page import render_report

pytestmark = pytest.mark.browser
BACKGROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 19, 24)"}


@pytest.fixture(scope="module")
def pages(recorded: Path, recorded_resumed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of one submission, and one of two."""
    folder = tmp_path_factory.mktemp("pages")
    for name, paths in (("one", [recorded]), ("two", [recorded, recorded_resumed])):
        (folder / f"{name}.html").write_text(render_report(paths, edition=EDITION), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in ("one", "two")}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1440, 900)])
@pytest.mark.parametrize("name", ["one", "two"])
def test_a_report_can_be_read_by_everybody(
    name: str, width: int, height: int, scheme: str, browser: Any, pages: dict[str, Path]
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    requests: list[str] = []
    complaints: list[str] = []
    page = context.new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(pages[name].as_uri())
    assert requests == [pages[name].as_uri()]
    assert complaints == []
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == BACKGROUNDS[scheme]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for details in page.locator("details").all():
        details.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    violations = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in violations] == []
    context.close()


def test_a_report_is_used_by_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["one"].as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the figures"
    summary = page.locator("summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("details").first.get_attribute("open") is not None
    page.close()


def test_a_report_prints_light_without_what_paper_cannot_do(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(pages["one"].as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == BACKGROUNDS["light"]
    assert not page.locator("nav").first.is_visible()
    assert not page.locator("summary").first.is_visible()
    assert page.locator("svg").first.is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF-")
    page.close()
