"""`hpcai500 report`: the page, the tables, mistakes; and the report that lies beside a new submission."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from forging import Forger
from recording import EDITION
from report_pages import Page

from hpcai500 import over
from hpcai500.__main__ import main
from hpcai500.report import tables
from hpcai500.report.subject import read_subject
from hpcai500.verify import verify_submission

pytestmark = pytest.mark.usefixtures("edition_of_recorded")


@pytest.fixture(autouse=True)
def same_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("hpcai500.report.command", "hpcai500.over"):
        monkeypatch.setattr(f"{module}.load_edition", lambda: EDITION)


def test_the_command_writes_a_page_and_tables(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html, table, figures = (tmp_path / name for name in ("a.html", "a.csv", "a.json"))
    words = ["report", recorded.parent, "--output", html, "--csv", table, "--json", figures]
    assert main(list(map(str, words))) == 0
    assert [Path(line.removeprefix("wrote ")).name for line in capsys.readouterr().out.splitlines()] == [
        "a.html",
        "a.csv",
        "a.json",
    ]
    assert "VALID" in Page(html.read_text(encoding="utf-8")).text
    verdict = verify_submission(recorded)
    rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"))))
    assert [float(row["vflops"]) for row in rows] == [result.vflops for result in verdict.results]
    assert [row["seed"] for row in rows] == ["100", "101"]
    assert rows[0]["valid"] == "True"
    content = json.loads(figures.read_bytes())
    (subject,) = content["subjects"]
    assert verdict.summary is not None
    assert subject["verdict"]["valid"] is True
    assert subject["summary"]["vflops"] == verdict.summary.vflops
    assert [run["wall_s"] for run in subject["runs"]] == [result.wall_s for result in verdict.results]
    assert subject["runs"][0]["energy_j"] is None
    assert len(subject["curves"][0]["evaluations"]) == 2


def test_of_several_the_table_has_all_runs(recorded: Path, recorded_resumed: Path) -> None:
    subjects = [read_subject(path, EDITION) for path in (recorded, recorded_resumed)]
    assert len(tables.runs_frame(subjects)) == 4
    assert len(json.loads(tables.as_json(subjects))["subjects"]) == 2


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\r\n=1", "%1"])
def test_no_text_is_a_formula_of_a_spreadsheet(name: str, forger: Forger) -> None:
    forger.edit_json(forger.run() / "config.json", lambda content: content.update(run_id=name or "x", device=name))
    forger.edit_submission(lambda content: content["system"]["nodes"][0].update(processor=name))
    text = tables.as_csv([read_subject(forger.path, EDITION)])
    cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
    assert not [cell for cell in cells if cell.strip()[:1] in ("=", "+", "@", "\t", "\r", "%")]
    assert not [cell for cell in cells if cell.startswith("-") and not _is_number(cell)]
    assert any(cell.startswith("'") for cell in cells)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_numbers_stay_numbers() -> None:
    assert tables.plain_cell(-1.5) == -1.5
    assert tables.plain_cell("plain") == "plain"
    assert tables.plain_cell("a\x1b[0m") == "a\\x1b[0m"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "'nowhere' is nothing to report on; name a submission.json"),
        (["a"] * 21, "21 are too many to stand side by side; name at most 20"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_report_is_written_anew_and_never_over_a_record(
    forger: Forger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = forger.path.read_bytes()
    for option in ("--output", "--csv", "--json"):
        assert main(["report", str(forger.path), option, str(forger.path)]) == 2
        assert "submission.json' exists and was not written by this command" in capsys.readouterr().err
    assert forger.path.read_bytes() == before
    written = [str(tmp_path / name) for name in ("a.html", "a.csv", "a.json")]
    words = ["report", str(forger.path), "--output", written[0], "--csv", written[1], "--json", written[2]]
    assert main(words) == 0
    assert main(words) == 0


def test_a_place_that_cannot_be_written_is_named(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(recorded), "--output", str(tmp_path / "none" / "a.html")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_a_new_submission_has_its_report_beside_it(forger: Forger, capsys: pytest.CaptureFixture[str]) -> None:
    assert over.show_verdict(forger.path)
    report = forger.path.with_name("report.html")
    assert f"report: {over.os.path.relpath(report)}" in capsys.readouterr().out.splitlines()
    assert "VALID" in Page(report.read_text(encoding="utf-8")).text
    assert verify_submission(forger.path).findings == []  # it is nobody's business there
    report.write_text("mine")
    assert over.show_verdict(forger.path)
    assert report.read_text() == "mine"


def test_a_report_that_fails_costs_no_submission(
    forger: Forger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hpcai500.report.page.render_subjects", fail)
    assert over.show_verdict(forger.path)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("report: none, since OSError: [Errno 28] No space left on device")
    assert not forger.path.with_name("report.html").exists()
