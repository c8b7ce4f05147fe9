"""The fuzzer starts from the golden submission; thousands of altered files show no bug. `make fuzz` takes longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).parents[1] / "tools" / "fuzz_reader.py"
LIMITS = ["-rss_limit_mb=1024", "-timeout=10", "-seed=1", "-len_control=0"]

pytestmark = pytest.mark.atheris


def fuzz(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FUZZER), *words, *LIMITS]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("words", [["-runs=4000"], ["--judge", "-runs=120"]], ids=["readers", "verifier"])
def test_altered_files_show_no_bug(tmp_path: Path, words: list[str]) -> None:
    done = fuzz(tmp_path, *words)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "DONE" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bug_is_found_and_kept(tmp_path: Path) -> None:
    """A reader that does not know a form of its own any more ends the fuzzer with the input that shows it."""
    program = tmp_path / "broken.py"
    text = FUZZER.read_text().replace("decode(content[1:], FORMS[chosen])", "FORMS[chosen](**{})")
    program.write_text(text.replace("parents[1]", f"parents[0] / '{FUZZER.parents[1]}'"))
    done = subprocess.run(
        [sys.executable, program, "-runs=100", *LIMITS], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "TypeError" in done.stdout + done.stderr
    assert len(list(tmp_path.glob("crash-*"))) == 1
