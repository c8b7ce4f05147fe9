"""The report's section on limits: a micro.json beside a submission, or one that is named, is drawn and put in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from forging import Forger
from micro_records import record, step
from recording import EDITION
from report_pages import Page

from hpcai500.__main__ import main
from hpcai500.micro_record import MicroRecord
from hpcai500.report.amounts import share_text
from hpcai500.report.page import render_subjects
from hpcai500.report.subject import Subject, read_subject

HOSTILE = '"><script>alert(1)</script>'


def page_of(forger: Forger, machine: MicroRecord | None) -> tuple[Page, Subject]:
    if machine is not None:
        (forger.path.parent / "micro.json").write_bytes(msgspec.json.encode(machine))
    subject = read_subject(forger.path, EDITION)
    return Page(render_subjects([subject])), subject


def test_without_a_measurement_there_is_no_section(forger: Forger) -> None:
    page, _ = page_of(forger, None)
    assert not any(heading.startswith("Limits") for heading in page.headings)


def test_a_measurement_beside_the_submission_is_put_in_a_sentence(forger: Forger) -> None:
    page, subject = page_of(forger, record())
    parts = [run.result.parts for run in subject.completed]
    times = [
        part.data_wait_s + part.forward_backward_s + part.communication_s + part.optimizer_s for part in parts if part
    ]
    rates = sorted(run.result.samples / time for run, time in zip(subject.completed, times, strict=True))
    share = sum(rates) / 2 / (2 * 40)  # of two runs; two ranks of 16 samples in 0.4 s each
    assert f"reaches {share_text(share)} of what" in page.text
    assert "of what this machine allows, 80 samples/s, limited by its storage" in page.text
    assert "the next limit is the decoding of pictures, at 2 times that speed" in page.text
    assert (
        "add up to a training step of 120 ms; whole steps took 125 ms in the mean, so the sum is 96 % of it"
        in page.text
    )
    assert {"node-roofline-title", "job-roofline-title", "limits"} <= set(page.ids)


def test_one_rank_alone_has_no_network_to_draw(forger: Forger) -> None:
    page, _ = page_of(forger, record(num_ranks=1, has_network=False, has_input=False))
    assert "job-roofline-title" not in page.ids
    assert "no other limit was measured" in page.text
    assert "One rank measured alone, so the network is not among the limits" in page.text


def test_nodes_and_batches_that_differ_are_told(forger: Forger) -> None:
    page, _ = page_of(forger, record(steps=[step(batch_size=4)]))
    assert "trained 16 samples a rank and step, the kernels were measured with 4" in page.text


def test_a_measurement_of_other_shapes_says_what_it_has(forger: Forger) -> None:
    page, _ = page_of(forger, record(steps=[step(precision="fp16")]))
    assert "holds no training step like this run's; it has resnet50 smoke in fp16" in page.text


def test_a_damaged_measurement_is_a_sentence(forger: Forger) -> None:
    (forger.path.parent / "micro.json").write_text("{", encoding="utf-8")
    page, subject = page_of(forger, None)
    assert subject.micro is None
    assert "micro.json cannot be read" in page.text


def test_names_of_strangers_are_escaped(forger: Forger) -> None:
    machine = record(device=HOSTILE, host=HOSTILE)
    hostile = [msgspec.structs.replace(one, name=HOSTILE, kind=HOSTILE, operands=HOSTILE) for one in step().kernels]
    page, _ = page_of(forger, msgspec.structs.replace(machine, steps=[step(kernels=hostile)]))
    assert [tag for tag, _ in page.tags if tag == "script"] == []
    assert page.text.count("alert(1)") >= 3


@pytest.mark.usefixtures("edition_of_recorded")
def test_the_command_takes_a_measurement_from_elsewhere(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hpcai500.report.command.load_edition", lambda: EDITION)
    (tmp_path / "m.json").write_bytes(msgspec.json.encode(record()))
    words: list[Any] = ["report", recorded, "--micro", tmp_path / "m.json", "--output", tmp_path / "a.html"]
    assert main(list(map(str, words))) == 0
    assert "the next limit is the decoding of pictures" in Page((tmp_path / "a.html").read_text()).text
    words[3] = tmp_path / "none.json"
    assert main(list(map(str, words))) == 2
    assert "none.json" in capsys.readouterr().err
