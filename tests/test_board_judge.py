"""What the server's judge finds in an archive, and what it survives."""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
from pathlib import Path

import msgspec
import pytest
from boards import record_for_board
from forging import Forger, forger_of_copy

from hpcai500.errors import RecordError
from hpcai500.leaderboard.archive import pack
from hpcai500.leaderboard.entries import SIZE_CLASSES, read_entry, size_class
from hpcai500.leaderboard.judge import Limits, Outcome, judge_archive
from hpcai500.leaderboard.tables import Submission
from hpcai500.register.ticket import TicketRequest, issue_ticket, ticket_sha256
from hpcai500.register.trusted import TrustedKeys
from hpcai500.verify import verify_submission

NOBODY = TrustedKeys()


@pytest.fixture(scope="module")
def submission(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_for_board(tmp_path_factory.mktemp("recorded"), num_runs=2)


@pytest.fixture
def copy(submission: Path, tmp_path: Path) -> Forger:
    return forger_of_copy(submission, tmp_path / "copy")


def judge(submission: Path, tmp_path: Path, **words: object) -> Outcome:
    pack(submission, tmp_path / "a.tar.gz")
    return judge_archive(tmp_path / "a.tar.gz", tmp_path / "judged", NOBODY, **words)  # type: ignore[arg-type]


def test_a_valid_submission_has_the_figures_of_the_verifier(submission: Path, tmp_path: Path) -> None:
    outcome = judge(submission, tmp_path)
    verdict = verify_submission(submission)
    assert outcome.submission_sha256 == hashlib.sha256(submission.read_bytes()).hexdigest()
    entry, summary = outcome.entry, verdict.summary
    assert entry is not None
    assert summary is not None
    assert outcome.problem is None
    assert (entry.workload, entry.level, entry.size) == ("resnet50", "free", "smoke")
    assert (entry.vflops, entry.vflops_low, entry.vflops_high) == (summary.vflops, *summary.vflops_interval)
    assert (entry.accelerator, entry.num_devices, entry.size_class) == ("A processor", 1, "1")
    assert entry.vflops_per_device == entry.vflops
    assert (entry.energy_j, entry.vflops_per_w, entry.rankable) == (None, None, False)
    assert entry.facts["runs"][0]["vflops"] == verdict.results[0].vflops
    written = json.loads((tmp_path / "judged" / "verdict.json").read_bytes())
    assert (written["valid"], written["submission"]) == (True, "submission.json")
    assert not (tmp_path / "judged" / "submission").exists()
    assert set(msgspec.structs.asdict(entry)) <= set(Submission.__table__.columns.keys())


def test_what_the_submitter_says_of_his_score_is_not_believed(copy: Forger, tmp_path: Path) -> None:
    copy.edit_submission(lambda content: content["summary"].update(vflops=1e18))
    outcome = judge(copy.path, tmp_path)
    assert outcome.entry is None
    assert outcome.problem is not None
    assert "summary.vflops" in outcome.problem


def test_another_file_than_the_listed_one_is_found(copy: Forger, tmp_path: Path) -> None:
    copy.ledger().write_bytes(copy.ledger().read_bytes() + b"\n")
    outcome = judge(copy.path, tmp_path)
    assert outcome.entry is None
    assert outcome.submission_sha256 == hashlib.sha256(copy.path.read_bytes()).hexdigest()
    assert "node-00000.jsonl" in (outcome.problem or "")


def test_energy_that_all_devices_tell_gives_a_score_per_watt(copy: Forger, tmp_path: Path) -> None:
    for number, watts in ((1, 100), (2, 300)):

        def draw(lines: list[dict[str, object]], watts: float = watts) -> None:
            start, stop = (
                next(line for line in lines if line["event"] == f"clock_{word}") for word in ("start", "stop")
            )
            duration_ns = stop["time_ns"] - start["time_ns"]  # type: ignore[operator]
            value = {"source": "rapl", "num_devices": 1, "energy_j": watts * duration_ns * 1e-9}
            value |= {"wall_ns": start["time_ns"], "duration_ns": duration_ns}
            value |= {"num_readings": 3, "longest_gap_ns": duration_ns}
            lines.insert(-1, {**lines[-2], "event": "energy", "value": value})

        copy.edit_lines(draw, number=number)
        copy.edit_json(copy.run(number) / "result.json", lambda result: result.pop("energy"))
    copy.forge(configs=False, figures=False)
    verdict = verify_submission(copy.path)
    entry = read_entry(copy.path, verdict)
    assert verdict.summary is not None
    assert entry.vflops_per_w == pytest.approx(verdict.summary.vflops / 200, rel=0.1)  # ranks start moments apart
    assert entry.energy_j is not None
    assert (entry.energy_label, entry.facts["energy_of"]) == ("informative", "processor packages (RAPL)")


def test_a_ticket_comes_out_with_the_entry(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    request = TicketRequest(workload="resnet50", level="free", size="smoke", num_runs=1, submitter="somebody")
    issued_ns = 1_780_000_000 * 10**9
    signed = issue_ticket(Ed25519PrivateKey.generate(), request, issuer="A Board", now_ns=issued_ns)
    outcome = judge(record_for_board(tmp_path / "recorded", num_runs=1, ticket=signed), tmp_path)
    assert outcome.ticket == signed
    assert outcome.entry is not None
    assert outcome.entry.ticket_sha256 == ticket_sha256(signed.ticket)


def test_what_is_no_submission_is_a_problem_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "submission.json").write_text("[]")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(tmp_path / "submission.json", "submission.json")
    outcome = judge_archive(tmp_path / "a.tar.gz", tmp_path / "one", NOBODY)
    assert outcome.entry is None
    assert "not valid: form.schema" in (outcome.problem or "")
    (tmp_path / "b.tar.gz").write_bytes(b"hello")
    assert "no archive" in (judge_archive(tmp_path / "b.tar.gz", tmp_path / "two", NOBODY).problem or "")


def test_too_little_memory_is_the_submissions_problem(submission: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-c", "bytes(1 << 40)"]
    assert "more time or memory" in (judge(submission, tmp_path, program=program).problem or "")


def test_a_judge_that_never_ends_is_ended_with_all_that_it_started(submission: Path, tmp_path: Path) -> None:
    code = "import subprocess, sys, time; subprocess.Popen(['sleep', '987']); time.sleep(987)"
    outcome = judge(submission, tmp_path, program=[sys.executable, "-c", code], limits=Limits(wall_s=0.5))
    assert "more time or memory" in (outcome.problem or "")


def test_endless_work_is_ended_by_the_limit_of_processor_time(submission: Path, tmp_path: Path) -> None:
    code = "from hpcai500.leaderboard import judge; judge.look_at = lambda *_: [0 for _ in iter(int, 1)]; judge.main()"
    outcome = judge(submission, tmp_path, program=[sys.executable, "-c", code], limits=Limits(cpu_s=2))
    assert "more time or memory" in (outcome.problem or "")


def test_a_broken_judge_says_nothing_about_a_submission(submission: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="judge failed with exit code 3"):
        judge(submission, tmp_path, program=[sys.executable, "-c", "raise SystemExit(3)"])


def test_every_number_of_devices_has_one_size_class() -> None:
    for number in range(1, 2000):
        least, most = SIZE_CLASSES[size_class(number)]
        assert least <= number <= (most or number)


def test_files_that_changed_since_they_were_verified_cannot_be_read(copy: Forger) -> None:
    verdict = verify_submission(copy.path)
    (copy.run() / "config.json").unlink()
    with pytest.raises(RecordError):
        read_entry(copy.path, verdict)
