"""The report of one submission or run: its figures are the verifier's, its text is escaped, and it loads nothing."""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from forging import Forger
from recording import EDITION, record_submission
from report_pages import Page

from hpcai500.entries import KeptEntries
from hpcai500.errors import RecordError, UsageError
from hpcai500.events import RunOpen, Window
from hpcai500.formats import read_config
from hpcai500.record import RunRecord, Segment, read_segments
from hpcai500.report.amounts import flops_text, quality_text, seconds_text
from hpcai500.report.page import render_report, render_subjects
from hpcai500.report.run_figures import figures_of, percentiles
from hpcai500.report.subject import Subject, read_subject
from hpcai500.verify import verify_submission

SECTIONS = (
    "Quality and loss over time",
    "Where the time went",
    "Before the clock",
    "Speed and stragglers",
    "Throughput over time",
    "Step times over the ranks",
    "Compute: what the device could do, and did",
    "Energy",
    "Runs",
    "Verdict",
    "Deviations from the reference",
    "System and settings",
)
HOSTILE = '"><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>\x1b[31m\u202etxt'


def render(*paths: Path) -> str:
    return render_report(paths, edition=EDITION)


def page(*paths: Path) -> Page:
    return Page(render(*paths))


def subject_of(path: Path) -> Subject:
    return read_subject(path, EDITION)


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(b"".join(b"\0" + b"\x80" * width for _ in range(height)))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def detected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A submission of the detector with a sheet of pictures in its first run."""
    folder = tmp_path_factory.mktemp("detected")
    path = record_submission(folder, workload="fasterrcnn")
    (folder / "run-1" / "evaluation").mkdir()
    (folder / "run-1" / "evaluation" / "sheet.png").write_bytes(png(40, 20))
    return path


def test_the_figures_are_those_of_the_verdict(recorded: Path) -> None:
    verdict = verify_submission(recorded, EDITION)
    assert verdict.summary is not None
    shown = page(recorded).text
    summary = verdict.summary
    low, high = map(flops_text, summary.vflops_interval)
    assert flops_text(summary.vflops, "VFLOPS") in shown
    assert f"median of 2 runs, 95 % interval {low} to {high}" in shown
    assert f"Ranked clock {seconds_text(summary.wall_s)}" in shown
    assert f"Training alone {seconds_text(summary.train_s)}" in shown
    for result in verdict.results:
        assert result.flops is not None
        assert flops_text(result.flops) in shown
        assert quality_text(result.achieved_quality) in shown
    assert [run.result for run in subject_of(recorded).runs] == verdict.results


@pytest.mark.parametrize("kind", ["recorded", "detected"])
def test_each_section_is_there_for_both_workloads(kind: str, request: pytest.FixtureRequest) -> None:
    shown = page(request.getfixturevalue(kind))
    assert [heading for heading in SECTIONS if heading not in shown.headings] == []
    assert ("What was found" in shown.headings) == (kind == "detected")
    assert len(shown.ids) == len(set(shown.ids))
    links = {attributes["href"][1:] for tag, attributes in shown.tags if tag == "a"}
    assert links <= set(shown.ids)
    assert "multiply-add" in shown.text  # the convention


def test_the_page_loads_nothing_and_runs_nothing(detected: Path) -> None:
    html = render(detected)
    shown = Page(html)
    assert [reference[:22] for reference in shown.loads] == ["data:image/png;base64,"]
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in shown.tags}
    assert not [name for _, attributes in shown.tags for name in attributes if name.startswith("on")]
    assert re.findall(r"url\(|@import|https?:", html) == []


def test_every_drawing_has_a_name_and_its_numbers(recorded: Path) -> None:
    html = render(recorded)
    shown = Page(html)
    drawings = [attributes for tag, attributes in shown.tags if tag == "svg"]
    assert len(drawings) == 9  # where the time went has one for desks and one for phones, twice
    for attributes in drawings:
        assert attributes["role"] == "img"
        assert set(attributes["aria-labelledby"].split()) <= set(shown.ids)
    assert html.count("<summary>The numbers: ") == 6  # the roofline's stand beside it
    assert "nan" not in re.findall(r'(?:points|x|y|cx|cy|width)="([^"]*)"', html)


def test_where_the_time_went_adds_up_to_the_clock(recorded: Path) -> None:
    for run in subject_of(recorded).runs:
        assert run.parts is not None
        assert run.elapsed_s is not None
        assert sum(msgspec.structs.astuple(run.parts)) == pytest.approx(run.elapsed_s)
        assert run.start_up_s["import"] == 1.0
        assert sum(run.start_up_s.values()) == pytest.approx(5.0)  # as tests/recording.py writes it


def test_curves_are_those_of_the_ledgers(recorded: Path) -> None:
    run = subject_of(recorded).runs[0]
    config, _ = read_config(recorded.parent / "run-1")
    root = read_segments(recorded.parent / "run-1", place="")[0].ledgers[0]
    windows = root.values(Window)
    assert len(run.stretches) == len(windows)
    # a step of a second with 16 samples on each of two ranks
    assert [point.samples_per_s for point in run.stretches] == pytest.approx([32.0] * len(windows))
    assert run.stretches[0].loss == pytest.approx(windows[0].loss_sum / windows[0].num_steps, rel=0.1)
    assert run.curve[-1].quality == run.result.achieved_quality
    assert run.result.wall_s is not None
    assert 0 < run.curve[0].time_s < run.curve[-1].time_s <= run.result.wall_s
    assert config.seed == 100


def test_an_invalid_submission_has_a_report_with_its_findings(forger: Forger) -> None:
    def lie(result: dict[str, Any]) -> None:
        result["flops"] *= 2

    forger.edit_json(forger.run() / "result.json", lie)
    shown = page(forger.path).text
    assert "INVALID 2 findings . It proves nothing." in shown
    assert "An invalid submission has no score" in shown
    assert "figures.result" in shown or "form.files" in shown
    assert "expected" in shown
    assert "What to do:" in shown


def test_a_damaged_ledger_gives_no_figures_and_says_so(forger: Forger) -> None:
    path = forger.ledger()
    path.write_bytes(path.read_bytes().replace(b'"event":"window"', b'"event":"widow"', 1))
    subject = subject_of(forger.path)
    assert subject.verdict is not None
    assert not subject.verdict.valid
    assert [bool(run.damage) for run in subject.runs] == [True, False]
    shown = Page(render_subjects([subject])).text
    assert "run-1 gives no figures, since its ledgers are damaged" in shown


def test_runs_that_cannot_be_read_are_named(forger: Forger) -> None:
    (forger.run(2) / "config.json").write_text("{")
    forger.edit_submission(lambda content: content["runs"][0].update(folder="../run-1"))
    subject = subject_of(forger.path)
    assert subject.runs == ()
    shown = Page(render_subjects([subject])).text
    assert "run ../run-1 cannot be read: its folder does not lie beneath the submission's" in shown
    assert "run run-2 cannot be read" in shown


def test_a_submission_of_another_form_has_a_report_of_findings(forger: Forger) -> None:
    forger.edit_submission(lambda content: content.update(level=7, more=1))
    shown = page(forger.path).text
    assert "INVALID" in shown
    assert "form.schema" in shown


def test_a_resumed_run_keeps_its_clock_and_says_so(recorded_resumed: Path) -> None:
    subject = subject_of(recorded_resumed)
    run = subject.runs[0]
    assert run.result.segments == 2
    assert run.parts is not None
    assert run.parts.restart_s > 900
    shown = Page(render_subjects([subject])).text
    assert "completed, resumed 1x" in shown
    assert "restart 98 %" in shown


def test_a_failed_run_is_listed_with_its_reason(tmp_path: Path) -> None:
    path = record_submission(tmp_path, num_failed=1)
    subject = subject_of(path)
    failed = subject.runs[-1]
    assert failed.result.status == "failed"
    assert failed.parts is not None  # up to where it came
    shown = Page(render_subjects([subject])).text
    assert "run-3 ended as failed: the loss is nan." in shown


def test_a_run_alone_is_not_judged(recorded: Path) -> None:
    subject = subject_of(recorded.parent / "run-1")
    assert subject.verdict is None
    shown = Page(render_subjects([subject])).text
    assert "NOT JUDGED A run by itself is not judged" in shown
    assert subject.summary is not None
    assert subject.summary.vflops == subject.runs[0].result.vflops


def test_a_running_run_shows_how_far_it_is(forger: Forger) -> None:
    path, left = forger.ledger(), b""
    lines = path.read_bytes().splitlines(keepends=True)
    for rank in (0, 1):
        mine = [line for line in lines if json.loads(line)["rank"] == rank]
        first = next(number for number, line in enumerate(mine) if b'"event":"checkpoint"' in line)
        left += b"".join(mine[: first + 2])
    path.write_bytes(left + mine[first + 2][:20])  # its next line is being written
    (forger.run() / "result.json").unlink()
    subject = subject_of(forger.run())
    run = subject.runs[0]
    assert run.is_open
    assert run.parts is not None
    assert run.elapsed_s is not None
    assert sum(msgspec.structs.astuple(run.parts)) == pytest.approx(run.elapsed_s)
    shown = Page(render_subjects([subject])).text
    assert "No run has completed, so there is no score yet." in shown
    assert f"Quality so far, run-1 {run.curve[-1].quality:.4f} of 0.3" in shown
    assert "running or cut off" in shown


def test_runs_without_a_submission_have_a_report(recorded: Path, forger: Forger) -> None:
    forger.path.unlink()
    subject = subject_of(forger.path.parent)
    assert len(subject.runs) == 2
    assert subject.summary == verify_submission(recorded, EDITION).summary
    assert "there is no submission.json yet" in Page(render_subjects([subject])).text


def test_names_of_strangers_are_escaped_everywhere(forger: Forger) -> None:
    def rename(system: dict[str, Any]) -> None:
        node = system["nodes"][0]
        node |= {"host": HOSTILE, "processor": HOSTILE, "instruction_sets": [HOSTILE]}
        node |= {"network": [{"name": HOSTILE, "state": "up", "speed_bits_per_s": 1}]}
        system |= {"os": HOSTILE, "kernel": HOSTILE, "libraries": {HOSTILE: HOSTILE}, "environment": {HOSTILE: HOSTILE}}

    for number in (1, 2):
        forger.edit_json(forger.run(number) / "system.json", rename)
    forger.edit_submission(lambda content: (rename(content["system"]), content.update(submitter=HOSTILE)))
    forger.edit_config(lambda content: content["settings"].update({HOSTILE: HOSTILE}))
    forger.edit_events("run_open", lambda value: value.update(host=HOSTILE))
    forger.edit_events("run_close", lambda value: value.update(reason=HOSTILE, status="failed"), rank=0)
    forger.edit_events("window", lambda value: value.update(communication_ns=0, duration_ns=9 * 10**9), rank=1)
    html = render(forger.path)
    shown = Page(html)
    assert not {"script", "img"} & {tag for tag, _ in shown.tags}
    assert shown.loads == []
    assert not set("\x1b\u202e") & set(html)
    assert shown.text.count("alert(1)") >= 10
    assert all(letter.isprintable() or letter == "\n" for letter in html)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_bytes(b"GIF89a" + bytes(100)), "is no PNG of a size that can be shown"),
        (lambda path: path.write_bytes(png(4, 4) + bytes(1 << 20)), "too many for a page"),
        (lambda path: path.write_bytes(png(8, 8)[:16] + struct.pack(">II", 1 << 20, 1 << 20)), "is no PNG"),
        (lambda path: path.symlink_to("/dev/zero"), "it is not a regular file"),
    ],
)
def test_a_sheet_that_is_no_small_picture_stays_out(
    make: Callable[[Path], object], reason: str, detected: Path, tmp_path: Path
) -> None:
    path = record_submission(tmp_path, workload="fasterrcnn")
    (tmp_path / "run-1" / "evaluation").mkdir()
    make(tmp_path / "run-1" / "evaluation" / "sheet.png")
    shown = page(path)
    assert "img" not in {tag for tag, _ in shown.tags}
    assert reason in shown.text


def test_the_sheet_stands_in_the_page_as_it_was(detected: Path) -> None:
    sources = [attributes["src"] for tag, attributes in page(detected).tags if tag == "img"]
    assert [base64.b64decode(source.partition(",")[2]) for source in sources] == [png(40, 20)]


def test_a_page_of_several_has_no_more_pictures_than_it_can_hold(detected: Path) -> None:
    subject = subject_of(detected)
    sheet = "data:image/png;base64," + "A" * (1 << 20)
    large = replace(subject, runs=(replace(subject.runs[0], sheet=sheet), *subject.runs[1:]))
    html = render_subjects([large, large, subject])
    shown = Page(html)
    assert len([tag for tag, _ in shown.tags if tag == "img"]) == 2
    assert "No pictures: the page would be too large with them" in shown.text
    assert len(html) < 2_000_000


def many_ranks(folder: Path, number: int, slow: int) -> RunRecord:
    """A run of so many ranks like the first of a recorded one, of which one takes twice as long by itself."""
    config, _ = read_config(folder)
    ledgers = read_segments(folder, place="")[0].ledgers
    copies = [replace(ledgers[0], rank=0)] + [replace(ledgers[1], rank=rank) for rank in range(1, number)]
    late = KeptEntries()
    for entry in ledgers[1].entries:
        value = entry.value
        if isinstance(value, Window):
            value = msgspec.structs.replace(value, duration_ns=2 * value.duration_ns)
        elif isinstance(value, RunOpen):
            value = msgspec.structs.replace(value, host="node77")
        late.append(msgspec.structs.replace(entry, value=value) if isinstance(entry, msgspec.Struct) else entry)
    copies[slow] = replace(ledgers[1], rank=slow, entries=late)
    return RunRecord(folder, msgspec.structs.replace(config, num_ranks=number), [Segment(0, copies)])


def test_two_thousand_ranks_make_a_small_page_that_names_the_straggler(recorded: Path) -> None:
    size = EDITION.workload("resnet50").size("smoke")
    small = subject_of(recorded)
    run = many_ranks(recorded.parent / "run-1", 2048, slow=1234)
    figures = figures_of(run, size, name="run-1", system=None)
    assert figures.ranks is not None
    assert figures.ranks.num_ranks == 2048
    assert [(slow.rank, slow.host) for slow in figures.ranks.stragglers] == [(1234, "node77")]
    assert figures.ranks.stragglers[0].ratio == pytest.approx(1.9 / 0.9)
    assert figures.ranks.own_s[3] == pytest.approx(0.9)
    html = render_subjects([replace(small, runs=(figures,) * 5)])
    assert "rank 1234 on node77 (1.90 s, 2.11 x the median)" in Page(html).text
    assert len(html) < 1.2 * len(render_subjects([replace(small, runs=small.runs[:1] * 5)]))
    assert len(html) < 100_000


def test_percentiles_are_those_of_a_line_through_the_values() -> None:
    assert percentiles([4.0, 0.0, 1.0, 2.0, 3.0]) == (0.0, 0.2, 1.0, 2.0, 3.0, 3.8, 4.0)
    assert percentiles([7.0]) == (7.0,) * 7


@pytest.mark.parametrize("name", ["nothing", "empty", "text"])
def test_a_path_with_nothing_to_report_on_is_an_error_in_a_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no JSON")
    with pytest.raises(UsageError if name != "text" else RecordError, match=name):
        render(tmp_path / name)


def test_a_submission_that_was_kept_for_its_form_has_a_report() -> None:
    golden = Path(__file__).parent / "golden/format-1"
    shown = Page(render_report([golden]))
    assert [heading for heading in SECTIONS if heading not in shown.headings] == []
    assert len(subject_of(golden).runs) == 3


def test_a_report_is_the_same_each_time(recorded: Path) -> None:
    assert render(recorded) == render(recorded)


def test_any_number_of_runs_makes_a_small_page(recorded: Path) -> None:
    subject = subject_of(recorded)
    html = render_subjects([replace(subject, runs=subject.runs * 250)])
    assert len(html) < 600_000
    assert "500 runs" in Page(html).text
    assert "and 400 more." in Page(html).text


def test_settings_that_deviate_are_listed(tmp_path: Path) -> None:
    path = record_submission(tmp_path, settings={"momentum": "0.9"})
    shown = page(path).text
    assert "momentum 0.9 0.875 8 free level" in shown
    assert json.loads(path.read_bytes())["level"] == "free"
