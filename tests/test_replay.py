"""Steps of a real run are trained again on two ranks: to the bit here, elsewhere within an envelope."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import run_folders
import torch
from forging import Forger

from hpcai500.edition import load_edition
from hpcai500.errors import ReplayError, UsageError
from hpcai500.events import Checkpoint, Window
from hpcai500.formats import read_config
from hpcai500.launch.local import run_ranks
from hpcai500.record import Position, RunRecord, read_run
from hpcai500.replay.checkpoint_file import container_problem, content_problem, copy_checkpoint, largest_bytes
from hpcai500.replay.compare import ENVELOPE_FLOOR, Envelope, Sums, WindowPair, compare_losses, compare_samples
from hpcai500.replay.machine import Need, check_memory, count_need
from hpcai500.replay.replay import Replayed, ReplayRequest, replay_submission
from hpcai500.replay.stretch import choose_stretch
from hpcai500.submission import assemble_submission
from hpcai500.verify import main

NUM_PARAMETERS = load_edition().workload("resnet50").size("smoke").num_parameters


@pytest.fixture(scope="module")
def trained(smoke_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A submission of one run on two ranks with checkpoints beside it; a window holds two steps."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {"checkpoint_every_s": "0.5", "report_steps": "2"}
    run_folder = run_folders.make_run(folder, smoke_data, comm="torchdist", num_ranks=2, settings=settings)
    assert run_ranks("torchdist", 2, [sys.executable, "-m", "hpcai500.train", str(run_folder)]) == 0
    assemble_submission([run_folder], folder / "submission.json")
    return folder / "submission.json"


@pytest.fixture
def submitted(trained: Path, tmp_path: Path) -> Path:
    """A copy that may be forged; checkpoints are links to those of the run."""
    shutil.copytree(trained.parent, tmp_path / "copy", copy_function=link_checkpoint)
    return tmp_path / "copy" / "submission.json"


def link_checkpoint(source: str, target: str) -> str:
    if source.endswith(".pt"):
        os.link(source, target)
        return target
    return shutil.copy2(source, target)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where replays have their folders."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def replay(path: Path, **request: Any) -> Replayed:
    return replay_submission(path, ReplayRequest(quiet=True, **{"num_steps": 1, **request}))


def read(path: Path) -> RunRecord:
    folder = path.parent / "run-1"
    return read_run(folder, read_config(folder)[0])


def saved(path: Path) -> list[Checkpoint]:
    """The checkpoints of the run that are still there."""
    events = [event for root in read(path).roots for event in root.values(Checkpoint)]
    return [event for event in events if (path.parent / "run-1" / "checkpoints" / event.path).exists()]


@pytest.mark.mpi
def test_from_a_checkpoint_losses_are_equal_to_the_bit(
    trained: Path, temporary: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(trained), "--replay", "2"]) == 0
    output, progress = capfd.readouterr()
    assert re.search(r"replayed steps \d to \d of epoch \d of run-1 on 2 ranks from checkpoint epoch-\S+\.pt: ", output)
    number, of = re.search(r"(\d+) of (\d+) windows are equal to the bit", output).groups()  # type: ignore[union-attr]
    assert number == of
    assert re.search(r"replaying steps .* samples, 0\.\d+ TFLOP, on this machine about \d+ s", progress)
    assert "replay of run-1: step" in progress
    assert list(temporary.iterdir()) == []


@pytest.mark.mpi
def test_from_the_beginning_what_was_altered_is_found_and_the_other_losses_are_equal_to_the_bit(
    submitted: Path,
) -> None:
    def first_window(lines: list[dict[str, Any]]) -> dict[str, Any]:
        return next(line["value"] for line in lines if line["event"] == "window")

    forger, (left_out, _) = Forger(submitted), read(submitted).ledgers[0].values(Window)[:2]
    forger.edit_lines(lambda lines: first_window(lines).update(samples=left_out.samples - 1), rank=0)
    forger.edit_lines(lambda lines: first_window(lines).update(loss_sum=first_window(lines)["loss_sum"] * 0.99), rank=1)
    replayed = replay(submitted, origin="beginning", num_steps=2)
    finding, of_samples = replayed.findings
    assert finding.rule == "replay.losses"
    assert finding.place.startswith("run-1/ledger/node-00000.jsonl:")
    assert "to the bit, as replayed" in finding.expected
    (window, *_) = read(submitted).ledgers[1].values(Window)
    assert repr(window.loss_sum) in finding.found
    equal, of = map(int, re.search(r"(\d) of (\d) windows are equal to the bit", replayed.notes[0]).groups())  # type: ignore[union-attr]
    assert equal == of - 1
    assert (of_samples.rule, of_samples.found) == ("replay.data", str(left_out.samples - 1))
    assert of_samples.place.startswith("run-1/ledger/node-00000.jsonl:")


@pytest.mark.mpi
@pytest.mark.slow  # 9 s, and like the one above
def test_a_run_of_another_seed_is_found(submitted: Path) -> None:
    Forger(submitted).edit_config(lambda config: config.update(seed=8), numbers=(1,))
    replayed = replay(submitted, origin="beginning")
    assert {finding.rule for finding in replayed.findings} >= {"replay.losses"}
    assert len([finding for finding in replayed.findings if finding.rule == "replay.losses"]) == 2


@pytest.mark.mpi
@pytest.mark.slow  # 27 s, three replays
def test_on_another_machine_sums_in_another_order_are_within_the_envelope(submitted: Path) -> None:
    """The ledger's losses are those of the other memory format: the same training with sums in another order."""
    forger = Forger(submitted)
    forger.edit_config(lambda config: config["settings"].update(memory_format="contiguous"), numbers=(1,))
    found = replay(submitted, origin="beginning", num_steps=3).findings
    assert {finding.rule for finding in found} == {"replay.losses"}
    forger.edit_json(
        submitted.parent / "run-1" / "system.json", lambda system: system["nodes"][0].update(processor="Another")
    )
    replayed = replay(submitted, origin="beginning", num_steps=3)
    assert replayed.findings == []
    agreement = re.search(r"the losses differ by at most (\S+) where (\S+) is allowed", replayed.notes[0])
    assert agreement is not None
    assert 0 < float(agreement.group(1)) < float(agreement.group(2)) < 0.1
    assert "instead of 'Another'" in replayed.notes[1]


@pytest.mark.mpi
@pytest.mark.slow  # 9 s, one replay
@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs, which would do other sums")
def test_a_run_of_gpus_is_replayed_in_fp32_where_there_are_none(submitted: Path) -> None:
    """This one was trained in fp32 on processors, whatever it says now."""

    def pretend(config: dict[str, Any]) -> None:
        config["device"] = "cuda"
        config["settings"].update(precision="bf16")

    Forger(submitted).edit_config(pretend, numbers=(1,))
    replayed = replay(submitted)
    assert replayed.findings == []
    assert re.search(r"(\d) of \1 windows are equal to the bit", replayed.notes[0])


def test_the_newest_checkpoint_with_enough_steps_after_it_is_taken(trained: Path) -> None:
    run, events = read(trained), saved(trained)
    newest = choose_stretch(run, "run-1", num_steps=1, origin=None)
    assert newest.checkpoint == events[-1]
    most = choose_stretch(run, "run-1", num_steps=1000, origin=None)
    assert most.checkpoint == min(events, key=lambda event: (-(4 - event.step), -event.epoch))
    assert most.end == 4
    beginning = choose_stretch(run, "run-1", num_steps=3, origin="beginning")
    assert (beginning.start, beginning.checkpoint) == (Position(0, 0), None)
    assert beginning.num_steps in (3, 4)  # 3 where a checkpoint ended the window


def test_without_a_checkpoint_at_hand_it_begins_at_the_seed_and_says_so_if_asked(submitted: Path) -> None:
    shutil.rmtree(submitted.parent / "run-1" / "checkpoints")
    assert choose_stretch(read(submitted), "run-1", num_steps=1, origin=None).origin == "the beginning"
    with pytest.raises(ReplayError, match=r"run-1 has no checkpoint to begin at.*use --replay-from beginning"):
        replay(submitted, origin="checkpoint")


def test_what_is_not_possible_is_said_in_a_sentence(submitted: Path, smoke_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--replay 0 is not possible; give at least 1 step"):
        replay(submitted, num_steps=0)
    with pytest.raises(UsageError, match=r"--replay-run 2 is no completed run of .*; choose of 1"):
        replay(submitted, run=2)
    with pytest.raises(ReplayError, match=r"the data of run-1 is not at '/nowhere.h5' on this machine; name it with"):
        replay(submitted, data=Path("/nowhere.h5"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ReplayError, match="is not at"):
        replay(submitted, data=tmp_path / "pipe")


def test_other_data_is_refused(submitted: Path, tmp_path: Path) -> None:
    from hpcai500.datasets.generated import Recipe, prepare

    other = prepare(
        tmp_path / "other.h5", Recipe(seed=1, num_classes=10, image_size=32, num_samples=(128, 50)), num_workers=1
    )
    with pytest.raises(ReplayError, match=r"other.h5' holds data set [0-9a-f]{64} and run-1 was trained on"):
        replay(submitted, data=other)


def test_a_submission_whose_files_are_not_in_order_is_not_replayed(
    submitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Forger(submitted).edit_config(lambda config: config["settings"].update(num_workers="; rm -rf"), numbers=(1,))
    assert main([str(submitted), "--replay", "2"]) == 1
    assert re.search(r"nothing was replayed, since it breaks .*level\.setting_value", capsys.readouterr().out)


def replace_checkpoint(path: Path, change: Callable[[Path], object]) -> Path:
    """Put another file in the place of the newest checkpoint, with the digests a forger gives it."""
    event = saved(path)[-1]
    file = path.parent / "run-1" / "checkpoints" / event.path
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    change(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()

    def rename(value: dict[str, Any]) -> None:
        if value["path"] == event.path:
            value["sha256"] = digest

    Forger(path).edit_events("checkpoint", rename)
    return file


@pytest.mark.mpi
def test_a_checkpoint_of_other_hyper_parameters_does_not_pass_for_the_runs_own(submitted: Path) -> None:
    def change(file: Path) -> None:
        state = torch.load(file, weights_only=True)
        state["optimizer"]["param_groups"][0]["momentum"] = 0.5
        torch.save(state, file)

    replace_checkpoint(submitted, change)
    with pytest.raises(ReplayError, match=r"is none of this run: its optimizer has other momentum or weight decay"):
        replay(submitted)


def test_a_checkpoint_that_is_not_the_ledgers_is_found(submitted: Path) -> None:
    event = saved(submitted)[-1]
    file = submitted.parent / "run-1" / "checkpoints" / event.path
    file.unlink()
    file.write_bytes(b"another")
    (finding,) = replay(submitted).findings
    assert finding.rule == "replay.checkpoint"
    assert finding.expected == f"the file with sha256 {event.sha256}, as the ledgers say"


def test_a_bomb_is_refused_before_it_is_unpacked(submitted: Path) -> None:
    def change(file: Path) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for number in range(5):
                archive.writestr(f"archive/data/{number}", bytes(100 << 20))
        make_64(file)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    replace_checkpoint(submitted, change)
    (finding,) = replay(submitted).findings
    assert finding.rule == "replay.checkpoint"
    assert "unpacks to 524288000, and torch.save compresses nothing" in finding.found
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10  # KiB; the test itself takes 290


def make_64(file: Path, *, directory_bytes: int | None = None) -> None:
    """Give an archive the 64-bit end that torch.save writes."""
    content = file.read_bytes()
    _, *_, number, size, offset, _ = struct.unpack("<4s4H2LH", content[-22:])
    size_64 = size if directory_bytes is None else directory_bytes
    end_64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, number, number, size_64, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(content) - 22, 1)
    file.write_bytes(content[:-22] + end_64 + locator + content[-22:])


def test_an_archive_with_a_huge_directory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "many.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    make_64(tmp_path / "many.pt")
    assert container_problem(tmp_path / "many.pt", num_ranks=2) is None
    make_64(tmp_path / "many.pt", directory_bytes=1 << 30)
    assert "a directory of 1073741824 bytes" in str(container_problem(tmp_path / "many.pt", num_ranks=2))
    (tmp_path / "short.pt").write_bytes(b"PK")
    assert container_problem(tmp_path / "short.pt", num_ranks=2) == "no archive as torch.save writes it"


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ([torch.zeros(2)], "a file without model, optimizer, scaler and ranks"),
        ({"model": torch.zeros(1).expand(1 << 40)}, "a tensor that claims 1099511627776 values and has fewer"),
        ({"model": [torch.zeros(1 << 16)] * 4}, "tensors that claim 1048576 bytes and share fewer"),
        ({"model": torch.zeros(2, device="meta")}, "a tensor of another kind"),
        ({"model": torch.zeros(2).to_sparse()}, "a tensor of another kind"),
    ],
)
def test_tensors_that_claim_more_than_the_file_has_are_refused(tmp_path: Path, state: Any, problem: str) -> None:
    if isinstance(state, dict):
        state = {"optimizer": {}, "scaler": {}, "ranks": [], **state}
    torch.save(state, tmp_path / "state.pt")
    assert problem in str(content_problem(tmp_path / "state.pt"))


class Hundred:
    """Unpickles to a hundred gigabytes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (10**11,)


class Remove:
    """Unpickles to an action."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.unlink, ("victim",)


@pytest.mark.parametrize(("content", "problem"), [(Hundred(), "MemoryError"), (Remove(), "UnpicklingError")])
def test_a_pickle_neither_takes_all_memory_nor_runs_anything(tmp_path: Path, content: object, problem: str) -> None:
    torch.save({"model": torch.zeros(2)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for entry in good.infolist():
            pickled = pickle.dumps(content, protocol=2)
            bad.writestr(entry, pickled if entry.filename.endswith(".pkl") else good.read(entry))
    limit = resource.getrlimit(resource.RLIMIT_AS)
    assert problem in str(content_problem(tmp_path / "bad.pt"))
    assert resource.getrlimit(resource.RLIMIT_AS) == limit


def test_only_a_regular_file_of_a_plausible_size_is_copied(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    digest = hashlib.sha256(b"1234").hexdigest()

    def copied(name: str, max_bytes: int = 4) -> str | None:
        return copy_checkpoint(tmp_path / name, tmp_path / f"copy-{name}", sha256=digest, max_bytes=max_bytes)

    assert copied("file") is None
    assert (tmp_path / "copy-file").read_bytes() == b"1234"
    assert "cannot be read" in str(copied("link"))
    assert copied("pipe") == "no regular file"
    assert copied("file", max_bytes=3) == "4 bytes, and a checkpoint of this model has at most 3"
    size_bytes = (trained.parent / "run-1" / "checkpoints" / saved(trained)[-1].path).stat().st_size
    assert size_bytes < largest_bytes(NUM_PARAMETERS, 2) < 3 * size_bytes


def test_a_checkpoints_name_cannot_lead_out_of_the_run(submitted: Path) -> None:
    Forger(submitted).edit_events("checkpoint", lambda value: value.update(path="../../../victim.pt"))
    with pytest.raises(ReplayError, match="is no file in the run's own folder; it is not read"):
        replay(submitted)


def test_what_this_machine_has_not_the_memory_for_is_refused(trained: Path, tmp_path: Path) -> None:
    stretch = choose_stretch(read(trained), "run-1", num_steps=1, origin="beginning")
    size = load_edition().workload("resnet50").size("smoke")
    need = count_need(stretch, size)
    assert need.num_samples == 32 * stretch.num_steps
    assert need.flop == need.num_samples * size.flop_training_per_sample
    assert need.memory_bytes > 2 * 16 * size.num_parameters
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    1048576 kB\n")
    check_memory(Need(1, 1, 2**30), num_ranks=1, path=tmp_path / "meminfo")
    with pytest.raises(ReplayError, match=r"on 2,048 ranks takes about 1,500.0 GiB .* has 1.0 GiB left"):
        check_memory(Need(1, 1, 1500 * 2**30), num_ranks=2048, path=tmp_path / "meminfo")


def pair(step: int, recorded: float, replayed: float, *, rate: float = 0.1) -> WindowPair:
    return WindowPair(f"ledger:{step}", range(step, step + 1), Sums(recorded, 16, 0.1), Sums(replayed, 16, rate))


def test_the_envelope_looks_one_step_ahead_on_all_ranks_and_never_narrows() -> None:
    first = [dict.fromkeys(range(7, 12), 2.0)] * 2
    second = [{7: 2.0, 8: 2.0, 9: 2.002, 10: 2.0, 11: 2.0}, {7: 2.0, 8: 2.0, 9: 2.0, 10: 1.996, 11: 2.0}]
    envelope = Envelope(first, second)
    assert envelope.of([7]) == ENVELOPE_FLOOR
    assert envelope.of([8]) == pytest.approx(5 * 0.001, rel=2e-3)
    assert envelope.of([9]) == envelope.of([10]) == pytest.approx(5 * 0.002)
    assert envelope.of([11]) == pytest.approx(10 * 5 * 0.002)  # there is no step ahead of it
    assert envelope.of([8, 9]) == pytest.approx(5 * 0.0015, rel=1e-3)


def test_a_loss_beyond_the_envelope_is_found() -> None:
    envelope = Envelope([{7: 2.0, 8: 2.0, 9: 2.0}], [{7: 2.0, 8: 2.0, 9: 2.002}])
    assert compare_losses([[pair(7, 2.0, 2.0 + 1e-6), pair(8, 2.0, 2.009)]], envelope) == []
    (finding,) = compare_losses([[pair(7, 2.0, 2.0), pair(8, 2.0, 2.02), pair(9, 0.0, 1.0)]], envelope)
    assert finding.place == "ledger:8:loss_sum"
    assert "2 of 3 windows of this rank differ" in finding.found
    assert "within a relative difference of 5.0e-03, as replayed" in finding.expected


def test_another_number_of_samples_is_found() -> None:
    other = WindowPair("ledger:3", range(1), Sums(2.0, 15, 0.1), Sums(2.0, 16, 0.1))
    (finding,) = compare_samples([[pair(0, 2.0, 2.0)], [pair(0, 2.0, 2.0), other]])
    assert (finding.rule, finding.place, finding.found) == ("replay.data", "ledger:3:samples", "15")


def test_bits_are_demanded_where_no_envelope_is_given_and_learning_rates_always() -> None:
    assert compare_losses([[pair(1, 2.0, 2.0)]], None) == []
    assert len(compare_losses([[pair(1, 2.0, 2.0 + 5e-16)]], None)) == 1
    assert len(compare_losses([[pair(1, 2.0, 2.0, rate=0.1001)]], Envelope([{1: 1.0}], [{1: 9.0}]))) == 1
    assert compare_losses([[pair(1, 2.0, 2.0, rate=0.1 + 1e-16)]], None) == []


@pytest.mark.mpi
def test_ctrl_c_ends_the_ranks_and_removes_their_folder(trained: Path, temporary: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "hpcai500.verify",
        str(trained),
        "--replay",
        "4",
        "--replay-from",
        "beginning",
        "--quiet",
    ]
    env = os.environ | {"TMPDIR": str(temporary)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline_s = time.monotonic() + 100
    while not list(temporary.glob("hpcai500-replay-*/replay/ledger/*.jsonl")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "hpcai500-verify: interrupted" in output
    assert "Traceback" not in output
    assert list(temporary.iterdir()) == []
    ranks = subprocess.run(["pgrep", "-f", str(temporary)], capture_output=True, text=True, check=False).stdout.split()
    assert ranks == []
