"""Several submissions side by side: ratios with intervals, what differs, how the machine scales."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from recording import EDITION, record_submission
from report_pages import Page

from hpcai500.report.compare import MEASURES, compare, ratio, scaling, values_of
from hpcai500.report.page import render_report, render_subjects
from hpcai500.report.subject import Subject, read_subject

SCORE, RATE, CLOCK = MEASURES[0], MEASURES[1], MEASURES[3]


def subject_of(path: Path) -> Subject:
    return read_subject(path, EDITION)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject_of(record_submission(tmp_path_factory.mktemp("compare") / "base", num_runs=5))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The same on four ranks, with another momentum."""
    folder = tmp_path_factory.mktemp("compare") / "other"
    return subject_of(record_submission(folder, num_runs=5, num_ranks=4, settings={"momentum": "0.9"}))


def scaled(subject: Subject, factor: float) -> Subject:
    """The same with every score so many times as high."""
    assert subject.verdict is not None
    results = [msgspec.structs.replace(one, vflops=(one.vflops or 0) * factor) for one in subject.verdict.results]
    return replace(subject, verdict=msgspec.structs.replace(subject.verdict, results=results))


def test_a_ratio_is_that_of_the_medians(base: Subject, other: Subject) -> None:
    found = ratio(other, base, CLOCK)
    assert found is not None
    expected = statistics.median(values_of(other, CLOCK)) / statistics.median(values_of(base, CLOCK))
    assert found.value == pytest.approx(expected)
    assert found.low <= found.value <= found.high


def test_the_ratio_of_scores_is_that_of_the_verdicts(base: Subject, other: Subject) -> None:
    found = ratio(other, base, SCORE)
    assert found is not None
    assert base.summary is not None
    assert other.summary is not None
    assert found.value == pytest.approx(other.summary.vflops / base.summary.vflops)


def test_the_interval_covers_what_is_the_same_and_not_what_is_twice_as_fast(base: Subject) -> None:
    same, twice = ratio(base, base, SCORE), ratio(scaled(base, 4), base, SCORE)
    assert same is not None
    assert twice is not None
    assert same.low < 1 < same.high
    assert twice.value == pytest.approx(4)
    assert twice.low == pytest.approx(4 * same.low)  # the same draws of the same runs
    assert twice.low > 1


def test_a_run_that_did_not_complete_counts_as_nothing_in_the_score(tmp_path: Path, base: Subject) -> None:
    failed = subject_of(record_submission(tmp_path, num_runs=2, num_failed=3))
    assert values_of(failed, SCORE).count(0.0) == 3
    assert len(values_of(failed, RATE)) == 2
    found = ratio(failed, base, SCORE)
    assert found is not None
    assert found.low == 0.0
    assert ratio(base, failed, SCORE) is None or failed.summary is not None


def test_what_differs_is_listed_and_nothing_else(base: Subject, other: Subject) -> None:
    found = {(one.kind, one.name): one.values for one in compare([base, other]).differences}
    assert found == {("run", "ranks"): ("2", "4"), ("setting", "momentum"): ("0.875", "0.9")}
    assert compare([base, base]).differences == ()


def test_different_workloads_have_no_ratio(tmp_path: Path, base: Subject) -> None:
    detector = subject_of(record_submission(tmp_path, workload="fasterrcnn"))
    found = compare([base, detector])
    assert found.ratios == ()
    assert found.scaling == ()
    assert found.warnings[0].startswith("They are not of one workload and size")


def test_other_levels_and_invalid_ones_are_warned_of(tmp_path: Path, base: Subject) -> None:
    path = record_submission(tmp_path, level="hardware")
    (tmp_path / "run-1" / "steps.h5").write_bytes(b"others")
    warnings = compare([base, subject_of(path)]).warnings
    assert "They are of different levels (free, hardware), which allow different changes." in warnings
    assert f"{tmp_path.name} is INVALID: its figures prove nothing." in warnings


def on_devices(subject: Subject, number: int, factor: float) -> Subject:
    """The same on so many devices, with a score so many times as high."""
    assert subject.verdict is not None
    assert subject.verdict.summary is not None
    assert subject.machine is not None
    summary = msgspec.structs.replace(
        subject.verdict.summary, vflops=factor * 1e12, vflops_interval=(factor * 0.9e12, factor * 1.1e12)
    )
    verdict = msgspec.structs.replace(subject.verdict, summary=summary)
    one = replace(subject, name=f"on {number}", verdict=verdict)
    one.__dict__["machine"] = replace(subject.machine, num_devices=number)
    return one


def test_efficiency_is_the_score_of_a_device_over_that_of_the_fewest(base: Subject) -> None:
    subjects = [on_devices(base, 8, 6.0), on_devices(base, 1, 1.0), on_devices(base, 4, 3.6)]
    points = list(scaling(subjects))
    assert {point.num_devices: point.efficiency for point in points} == pytest.approx({1: 1.0, 4: 0.9, 8: 0.75})
    shown = Page(render_subjects(subjects)).text
    assert "Each of 8 devices reaches 75 % of what each of 1 reaches." in shown
    assert "perfect scaling" in shown
    assert list(scaling([on_devices(base, 4, 1.0), on_devices(base, 4, 2.0)])) == []


def test_the_page_shows_both_with_the_ratio(base: Subject, other: Subject) -> None:
    shown = Page(render_report([base.path, other.path], edition=EDITION))
    found = ratio(other, base, SCORE)
    assert found is not None
    assert f"VFLOPS 1 {found.value:.3g} x {found.low:.3g} to {found.high:.3g}" in shown.text
    assert shown.headings[:4] == ["2 side by side", "Figures", "Times as much as base", "What differs"]
    assert "momentum setting 0.875 0.9" in shown.text
    assert len(shown.ids) == len(set(shown.ids))
    assert shown.loads == []


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [record_submission(tmp_path / str(number) / "same") for number in (1, 2)]
    shown = Page(render_report(paths, edition=EDITION))
    assert "same (1) same (2)" in shown.text
