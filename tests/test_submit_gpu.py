"""The smoke size on a GPU: every pipeline and precision makes a valid submission."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hpcai500.verify import verify_submission

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine shows no CUDA device"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("pipeline", ["torch", pytest.param("dali", marks=pytest.mark.dali)])
def test_a_gpu_makes_a_valid_submission(pipeline: str, precision: str, smoke_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hpcai500.submit", "--size", "smoke", "--device", "cuda", "--ranks", "1"]
    command += ["--data", str(smoke_data), "--output", str(tmp_path / "out")]
    command += ["--set", f"pipeline={pipeline}", "--set", f"precision={precision}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    verdict = verify_submission(tmp_path / "out" / "submission.json")
    assert verdict.findings == []
