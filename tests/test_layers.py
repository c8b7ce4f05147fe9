"""The judge half imports nothing of the run half, so that anybody can check a submission in a moment."""

from __future__ import annotations

import subprocess
import sys

import pytest

JUDGE_HALF = (
    "hpcai500",
    "hpcai500.applied_rules",
    "hpcai500.checks",
    "hpcai500.code_digest",
    "hpcai500.deviations",
    "hpcai500.convergence",
    "hpcai500.edition",
    "hpcai500.equivalence.command",
    "hpcai500.equivalence.proof",
    "hpcai500.events",
    "hpcai500.explain",
    "hpcai500.export",
    "hpcai500.finding",
    "hpcai500.flop_forms",
    "hpcai500.formats",
    "hpcai500.junit",
    "hpcai500.leaderboard.archive",
    "hpcai500.leaderboard.cli",
    "hpcai500.leaderboard.client",
    "hpcai500.learning_rate",
    "hpcai500.ledger",
    "hpcai500.metrics",
    "hpcai500.micro.table",
    "hpcai500.micro_record",
    "hpcai500.mllog",
    "hpcai500.qualities",
    "hpcai500.record",
    "hpcai500.register.cli",
    "hpcai500.register.server",
    "hpcai500.register.ticket",
    "hpcai500.report.command",
    "hpcai500.report.page",
    "hpcai500.roofline",
    "hpcai500.rulebook",
    "hpcai500.sarif",
    "hpcai500.scaling.command",
    "hpcai500.schemas",
    "hpcai500.sign",
    "hpcai500.straggler_record",
    "hpcai500.signature",
    "hpcai500.submission",
    "hpcai500.verdict",
    "hpcai500.verify",
)
HEAVY = (
    "torch",
    "cryptography",
    "numpy",
    "pandas",
    "h5py",
    "mpi4py",
    "horovod",
    "nvidia",
    "rich",
    "jsonschema",
    "submitit",
    "sqlalchemy",
    "fastapi",
)
RUN_HALF = ("comm", "pipelines", "models", "workloads", "engine", "train", "system", "collector", "flop", "launch")
RUN_HALF += ("step_files", "stragglers")
RUN_HALF += ("replay",)


@pytest.mark.parametrize("module", JUDGE_HALF)
def test_the_judge_half_imports_neither_heavy_libraries_nor_the_run_half(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert module in loaded
    unwanted = {*HEAVY, *(f"hpcai500.{name}" for name in RUN_HALF)}
    assert unwanted.intersection(loaded) == set()


def test_a_boards_server_imports_nothing_of_the_run_half() -> None:
    modules = ", ".join(f"hpcai500.leaderboard.{name}" for name in ("operating", "judge", "pages", "export"))
    code = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    unwanted = {"torch", "h5py", "mpi4py", "horovod", "nvidia", *(f"hpcai500.{name}" for name in RUN_HALF)}
    assert unwanted.intersection(loaded) == set()
