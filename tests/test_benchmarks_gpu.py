"""The script that measures one GPU: it runs, here at its smallest and on the processor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
LOOPS = ("synthetic", "engine", "real data", "detector")


def measure(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


def test_the_script_measures_all_loops_at_its_smallest_size(tmp_path: Path) -> None:
    words = ("--device", "cpu", "--tiny", "--precision", "fp32", "--steps", 1, "--repeats", 1)
    done = measure(*words, "--json", tmp_path / "times.json")
    assert done.returncode == 0, done.stderr
    times_s = json.loads((tmp_path / "times.json").read_text(encoding="utf-8"))
    assert sorted(times_s) == sorted(LOOPS)
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in times_s.values())
    assert "no figure to keep" in done.stdout
    assert "engine / bare, step time" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_how_to_try_it() -> None:
    done = measure()
    assert done.returncode == 2
    assert "shows no CUDA device; --device cpu --tiny" in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_script_measures_all_loops(tmp_path: Path) -> None:
    done = measure("--tiny", "--steps", 2, "--repeats", 1, "--json", tmp_path / "times.json")
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads((tmp_path / "times.json").read_text(encoding="utf-8"))) == sorted(LOOPS)
