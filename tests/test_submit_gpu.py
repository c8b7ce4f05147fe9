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


def submit(data: Path, output: Path, *settings: str) -> None:
    command = [sys.executable, "-m", "hpcai500.submit", "--size", "smoke", "--device", "cuda", "--ranks", "1"]
    command += ["--data", str(data), "--output", str(output)]
    command += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    verdict = verify_submission(output / "submission.json")
    assert verdict.findings == []


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("pipeline", ["torch", pytest.param("dali", marks=pytest.mark.dali)])
def test_a_gpu_makes_a_valid_submission(pipeline: str, precision: str, smoke_data: Path, tmp_path: Path) -> None:
    submit(smoke_data, tmp_path / "out", f"pipeline={pipeline}", f"precision={precision}")


def test_so_it_does_with_cuda_graphs(smoke_data: Path, tmp_path: Path) -> None:
    submit(smoke_data, tmp_path / "out", "torch_compile=true", "cuda_graphs=true")
