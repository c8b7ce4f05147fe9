"""Checkpoints: whole or not at all, the last two kept, verified when loaded, the newest good one found."""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hpcai500.checkpoint import Checkpoints, find_checkpoint, load_checkpoint
from hpcai500.errors import RecordError
from hpcai500.events import Checkpoint
from hpcai500.record import Position


def trained_state() -> dict[str, Any]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def save(checkpoints: Checkpoints, epoch: int, step: int = 0) -> Checkpoint:
    saved = checkpoints.save(Position(epoch, step), trained_state())
    return Checkpoint(epoch=epoch, step=step, duration_ns=1, **saved)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_loaded_checkpoint_is_the_saved_one_to_the_bit(tmp_path: Path) -> None:
    saved = save(Checkpoints(tmp_path / "checkpoints", every_s=0), 3, 17)
    state, loaded = trained_state(), load_checkpoint(tmp_path / "checkpoints" / saved.path, sha256=saved.sha256)
    assert saved.path == "epoch-0003-step-000017-segment-000.pt"
    for name, tensor in state["model"].items():
        assert torch.equal(tensor, loaded["model"][name])
    for name, tensors in state["optimizer"]["state"].items():
        assert torch.equal(tensors["momentum_buffer"], loaded["optimizer"]["state"][name]["momentum_buffer"])


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every_s=0, segment=2)
    saved = [save(checkpoints, epoch, step) for epoch, step in ((0, 900), (1, 5), (1, 40), (2, 0))]
    assert sorted(path.name for path in tmp_path.iterdir()) == [saved[2].path, saved[3].path]


def test_the_newest_good_one_is_found_and_damaged_ones_are_set_aside(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every_s=0)
    saved = [save(checkpoints, epoch) for epoch in (1, 2, 3)]
    assert find_checkpoint(tmp_path, saved).path == saved[2].path
    damage(tmp_path / saved[2].path)
    found = find_checkpoint(tmp_path, saved)
    assert (found.position, found.path, found.sha256) == (Position(2, 0), saved[1].path, saved[1].sha256)
    assert found.damaged == [saved[2].path]
    assert (tmp_path / saved[2].path).with_suffix(".damaged").is_file()
    later = Checkpoints(tmp_path, every_s=0, segment=1)
    save(later, 2, 5)
    assert (tmp_path / saved[1].path).is_file(), "the damaged one must not count among the last two"


def test_without_a_good_one_the_run_begins_again(tmp_path: Path) -> None:
    saved = [save(Checkpoints(tmp_path, every_s=0), 1)]
    damage(tmp_path / saved[0].path)
    found = find_checkpoint(tmp_path, saved)
    assert (found.position, found.path, found.damaged) == (Position(0, 0), "", [saved[0].path])
    assert find_checkpoint(tmp_path, []).position == Position(0, 0)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    saved = save(Checkpoints(tmp_path, every_s=0), 1)
    damage(tmp_path / saved.path)
    with pytest.raises(RecordError, match=r"epoch-0001-.*pt' is damaged.*use the one before"):
        load_checkpoint(tmp_path / saved.path, sha256=saved.sha256)


def test_a_file_that_torch_cannot_load_is_refused(tmp_path: Path) -> None:
    (tmp_path / "epoch-0001.pt").write_bytes(b"no checkpoint")
    with pytest.raises(RecordError, match=r"cannot be loaded; use the one before"):
        load_checkpoint(tmp_path / "epoch-0001.pt")


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "epoch-0001.pt", sha256="0" * 64)


def test_a_checkpoint_that_cannot_be_written_leaves_the_others(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every_s=0)
    first = save(checkpoints, 1)
    (tmp_path / "epoch-0002-step-000000-segment-000.partial").mkdir()  # the name is taken, as by another user's file
    with pytest.raises(RecordError, match="cannot be written"):
        save(checkpoints, 2)
    assert (tmp_path / first.path).is_file()


def test_a_full_disk_leaves_the_others_and_no_rubbish(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every_s=0)
    first = save(checkpoints, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # bytes; the kernel then refuses to write more
    try:
        with pytest.raises(RecordError, match="cannot be written; free some space"):
            save(checkpoints, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == [first.path]


def test_one_is_due_when_its_time_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr("hpcai500.checkpoint.time.monotonic", lambda: now_s[0])
    checkpoints, never = Checkpoints(tmp_path, every_s=60), Checkpoints(tmp_path, every_s=0)
    now_s[0] = 159.0
    assert not checkpoints.is_due()
    now_s[0] = 160.0
    assert checkpoints.is_due()
    assert not never.is_due()
    save(checkpoints, 1)
    now_s[0] = 219.0
    assert not checkpoints.is_due()
