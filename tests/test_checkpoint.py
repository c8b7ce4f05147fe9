"""Checkpoints: whole or not at all, the last two kept, verified when loaded."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from hpcai500.checkpoint import Checkpoints, load_checkpoint
from hpcai500.errors import RecordError


def trained_parts() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def test_a_loaded_checkpoint_is_the_saved_one_to_the_bit(tmp_path: Path) -> None:
    model, optimizer = trained_parts()
    saved = Checkpoints(tmp_path / "checkpoints", every_epochs=1).save(3, model, optimizer)
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    other_optimizer = torch.optim.SGD(other.parameters(), 0.1, momentum=0.9)
    path = tmp_path / "checkpoints" / saved["path"]
    assert load_checkpoint(path, sha256=saved["sha256"], model=other, optimizer=other_optimizer) == 3
    for mine, theirs in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
    for mine, state in zip(momenta, other_optimizer.state.values(), strict=True):
        assert torch.equal(mine, state["momentum_buffer"])


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every_epochs=1)
    for epoch in range(1, 5):
        checkpoints.save(epoch, *trained_parts())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0003.pt", "epoch-0004.pt"]


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    model, optimizer = trained_parts()
    saved = Checkpoints(tmp_path, every_epochs=1).save(1, model, optimizer)
    path = tmp_path / saved["path"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"epoch-0001.pt' is damaged.*use the one before"):
        load_checkpoint(path, sha256=saved["sha256"], model=model)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "epoch-0001.pt", sha256="0" * 64, model=nn.Linear(1, 1))


def test_a_checkpoint_that_cannot_be_written_leaves_the_others(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every_epochs=1)
    checkpoints.save(1, *trained_parts())
    (tmp_path / "epoch-0002.partial").mkdir()  # the name is taken, as by a file of another user
    with pytest.raises(RecordError, match="cannot be written"):
        checkpoints.save(2, *trained_parts())
    assert (tmp_path / "epoch-0001.pt").is_file()


def test_a_full_disk_leaves_the_others_and_no_rubbish(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every_epochs=1)
    checkpoints.save(1, *trained_parts())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # bytes; the kernel then refuses to write more
    try:
        with pytest.raises(RecordError, match="cannot be written; free some space"):
            checkpoints.save(2, *trained_parts())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001.pt"]


@pytest.mark.parametrize(("every", "due"), [(0, []), (1, [1, 2, 3, 4]), (2, [2, 4]), (5, [])])
def test_when_one_is_due(tmp_path: Path, every: int, due: list[int]) -> None:
    checkpoints = Checkpoints(tmp_path, every_epochs=every)
    assert [epoch for epoch in range(1, 5) if checkpoints.is_due(epoch)] == due
