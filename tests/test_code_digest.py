"""The digest of the workload's code: the same wherever it lies, another after any change of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcai500.code_digest import CODE_FILES, CODE_FOLDERS, PACKAGE_FOLDER, code_files, code_sha256


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The workload's code and some of the glue, in another place."""
    for name in [*CODE_FOLDERS, "comm"]:
        shutil.copytree(PACKAGE_FOLDER / name, tmp_path / "copy" / name)
    for name in [*CODE_FILES, "train.py"]:
        shutil.copy(PACKAGE_FOLDER / name, tmp_path / "copy" / name)
    return tmp_path / "copy"


def test_models_workloads_pipelines_and_the_loop_are_workload_code_and_glue_is_not() -> None:
    names = set(code_files())
    assert {"models/resnet.py", "workloads/policy.py", "pipelines/dali.py", "engine.py", "sample_order.py"} <= names
    assert not names & {"train.py", "comm/mpi.py", "ledger.py", "checkpoint.py", "code_digest.py"}
    assert all(name.endswith(".py") for name in names)


def test_a_copy_elsewhere_has_the_same_digest(copy: Path) -> None:
    (copy / "models" / "__pycache__").mkdir(exist_ok=True)
    (copy / "models" / "__pycache__" / "resnet.cpython-311.pyc").write_bytes(b"compiled")
    assert code_sha256(copy) == code_sha256()


def test_a_compiled_or_touched_file_and_changed_glue_change_nothing(copy: Path) -> None:
    (copy / "train.py").write_text("# something else\n")
    (copy / "comm" / "mpi.py").unlink()
    (copy / "models" / "resnet.py").touch()
    assert code_sha256(copy) == code_sha256()


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda copy: append(copy / "engine.py"),
        lambda copy: append(copy / "models" / "__init__.py"),
        lambda copy: append(copy / "pipelines" / "torch_loader.py"),
        lambda copy: (copy / "models" / "fpn.py").rename(copy / "models" / "fpn2.py"),
        lambda copy: (copy / "workloads" / "mine.py").write_text(""),
        lambda copy: (copy / "models" / "fpn.py").unlink(),
    ],
    ids=["a byte more", "a comment in an empty file", "in a pipeline", "renamed", "added", "removed"],
)
def test_any_change_of_workload_code_gives_another_digest(copy: Path, change: Callable[[Path], object]) -> None:
    change(copy)
    assert code_sha256(copy) != code_sha256()


def test_bytes_cannot_move_from_one_file_to_the_next(copy: Path) -> None:
    """Names and lengths are in the digest: the same bytes cut otherwise are other files."""
    first, second = copy / "models" / "anchors.py", copy / "models" / "boxes.py"
    content = first.read_bytes() + second.read_bytes()
    first.write_bytes(content[:100])
    second.write_bytes(content[100:])
    assert code_sha256(copy) != code_sha256()


def test_a_rank_spends_less_than_10_ms_on_it() -> None:
    def once() -> float:
        code_sha256.cache_clear()
        begin_ns = time.perf_counter_ns()
        code_sha256()
        return (time.perf_counter_ns() - begin_ns) / 1e6

    assert min(once() for _ in range(20)) < 10


def test_it_is_printed_for_a_release() -> None:
    command = [sys.executable, "-m", "hpcai500.code_digest"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed == f"{code_sha256()}\n"
