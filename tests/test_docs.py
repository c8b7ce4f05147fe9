"""README and documentation render, build and link; what they name exists; project files are what they should be."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from doc_blocks import PAGES, ROOT
from docutils.core import publish_doctree
from docutils.utils import SystemMessage

from hpcai500.edition import load_edition
from hpcai500.rulebook import RULEBOOK
from hpcai500.version import __version__

if TYPE_CHECKING:
    from playwright.sync_api import Browser

GENERATED = {"commands", "findings", "rules"}
# of https://www.apache.org/licenses/LICENSE-2.0.txt
APACHE_2_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module", name="site")
def site_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation as HTML."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-d", str(folder / "trees")]
    done = subprocess.run(
        [*command, str(ROOT / "docs"), str(folder / "html")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent != ROOT / "docs"], ids=page_id)
def test_pages_render_without_a_warning(page: Path) -> None:
    settings = {"halt_level": 2, "report_level": 2, "file_insertion_enabled": False}
    publish_doctree(page.read_text(encoding="utf-8"), source_path=str(page), settings_overrides=settings)


def test_a_page_with_a_mistake_does_not_render() -> None:
    with pytest.raises(SystemMessage):
        publish_doctree("Title\n=====\n\n``open", settings_overrides={"halt_level": 2, "report_level": 5})


def test_every_page_is_built_and_can_be_reached(site: Path) -> None:
    pages = {page.stem for page in (ROOT / "docs").glob("*.rst")}
    assert pages >= GENERATED
    built = {page.stem for page in site.glob("*.html")}
    assert built == pages | {"genindex", "py-modindex", "search"}
    index = (site / "index.html").read_text(encoding="utf-8")
    assert [page for page in sorted(pages - {"index"}) if f'href="{page}.html"' not in index] == []


class Links(HTMLParser):
    """Collects what a page links to, and the places in it that can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if value and name in ("href", "src"):
                self.targets.add(value)
            elif value and name == "id":
                self.places.add(value)


def test_links_between_pages_lead_somewhere_and_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    links = {page.name: Links(page.read_text(encoding="utf-8")) for page in site.glob("*.html")}
    broken = []
    for name, page in links.items():
        for target in page.targets:
            if re.match(r"[a-z]+:", target):
                continue
            file, _, place = target.partition("#")
            file = file.partition("?")[0] or name
            if not (site / file).exists() or (place and file in links and place not in links[file].places):
                broken.append(f"{name}: {target}")
    assert broken == []
    for page in site.glob("*.html"):
        loaded = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text("utf-8"))
        assert [address for address in loaded if "hpcai500" not in address] == []


@pytest.mark.browser
def test_pages_are_accessible_and_fit_a_phone(site: Path, browser: Browser) -> None:
    from axe_playwright_python.sync_playwright import Axe

    requests: list[str] = []
    for scheme, width in (("light", 1440), ("dark", 390)):
        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)  # type: ignore[arg-type]
        page.on("request", lambda request: requests.append(request.url))
        for name in ("index", "architecture", "api", "commands", "trouble"):
            page.goto((site / f"{name}.html").as_uri())
            found = Axe().run(page).response["violations"]
            assert [one for one in found if one["impact"] in ("serious", "critical")] == [], f"{name}, {scheme}"
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.close()
    assert [request for request in requests if not request.startswith(("file:", "data:"))] == []


def test_rules_and_findings_are_on_their_pages(site: Path) -> None:
    page = (site / "rules.html").read_text(encoding="utf-8")
    for workload in load_edition().workloads.values():
        assert [setting for setting in workload.settings if setting not in page] == []
    page = (site / "findings.html").read_text(encoding="utf-8")
    assert [rule for rule in RULEBOOK if rule not in page] == []


def test_the_benchmark_is_explained_with_the_figures_of_the_rules() -> None:
    text = (ROOT / "docs/benchmark.rst").read_text(encoding="utf-8")
    table = dict(re.findall(r"^(\w[\w ]*?) {2,}(\S.*)$", text[: text.index("The metric")], re.MULTILINE))
    for index, name in enumerate(("resnet50", "fasterrcnn")):
        size = load_edition().workload(name).size("official")
        shown = {row: re.split(r" {2,}", cells)[index] for row, cells in table.items()}
        assert shown["target quality"].endswith(f" {size.target_quality:g}")
        assert shown["epochs"] == str(size.epochs)
        assert shown["exponent n"] == f"{size.vflops_exponent:g}"
        billions = float(shown["FLOP of a training sample"].removesuffix(" GFLOP").replace(",", ""))
        assert billions == pytest.approx(size.flop_training_per_sample / 1e9, rel=1e-3)
    assert f"{load_edition().workload('resnet50').size('official').num_train_samples:,} training pictures" in text


def test_the_api_can_be_described_without_mpi_horovod_and_dali() -> None:
    names = re.findall(r":: (hpcai500[\w.]+)", (ROOT / "docs/api.rst").read_text(encoding="utf-8"))
    modules = {name if name.islower() and not hasattr_of_module(name) else name.rpartition(".")[0] for name in names}
    hide = "import sys; [sys.modules.__setitem__(name, None) for name in ('mpi4py', 'horovod', 'nvidia')]"
    code = f"{hide}; import {', '.join(sorted(modules))}"
    subprocess.run([sys.executable, "-c", code], check=True)


def hasattr_of_module(name: str) -> bool:
    """Whether a dotted name is of something within a module, and not a module."""
    path = ROOT / name.replace(".", "/")
    return not path.with_suffix(".py").exists() and not path.is_dir()


def test_make_help_explains_every_target() -> None:
    text = subprocess.run(["make", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True).stdout
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert phony is not None
    for target in phony[1].split():
        assert re.search(rf"^  {target} +\w", text, re.MULTILINE), f"make help does not explain {target}"


def test_files_named_in_pages_exist() -> None:
    folders = "hpcai500|docs|tests|rules|datasets|tools|benchmarks|jobs"
    made_by_readers = {"jobs/site.toml", *(f"docs/{name}.rst" for name in GENERATED)}
    missing = [
        f"{page_id(page)} names {name}"
        for page in PAGES
        for name in re.findall(rf"``((?:{folders})/[\w/.-]+)``", page.read_text("utf-8"))
        if not re.search("[A-Z]{4}", name) and name not in made_by_readers and not (ROOT / name).exists()
    ]
    assert missing == []


def test_readme_tells_the_two_commands_and_fits_a_screen_or_two() -> None:
    text = (ROOT / "README.rst").read_text(encoding="utf-8")
    assert "    make run\n" in text
    assert "    make test\n" in text
    assert text.count("\n") <= 80
    for picture in re.findall(r"image:: (\S+)", text):
        assert (ROOT / picture).is_file()
    assert text.count("image:: ") == text.count(":alt: ")


def test_the_license_is_the_whole_text_of_apache_2() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2_SHA256


def test_the_citation_is_of_this_version_and_names_the_papers() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed; `make test` installs it")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", __version__)
    assert citation["authors"] == [{"name": "hpcai500 developers"}]
    papers = {reference["url"].rpartition("/")[2] for reference in citation["references"]}
    assert papers == {"1908.02607", "2007.00279", "2102.12848"}
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()


def test_hooks_before_a_commit_fetch_nothing_and_call_programs_of_the_environment() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed; `make test` installs it")
    content = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in content["repos"]] == ["local"]
    for hook in content["repos"][0]["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv/bin/")
        for word in hook["entry"].split()[1:]:
            assert not word.startswith("tests/") or (ROOT / word).exists()


def test_changes_are_tagged() -> None:
    text = (ROOT / "CHANGELOG.rst").read_text(encoding="utf-8")
    entries = re.findall(r"^- (\S+)", text, re.MULTILINE)
    assert len(entries) > 20
    assert set(entries) <= {"[Code]", "[Rules]", "[Data]", "[Leaderboard]"}
