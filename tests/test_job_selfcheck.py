"""What a job does by itself, without a scheduler."""

from __future__ import annotations

from pathlib import Path

from hpcai500.job import keep_selfcheck


def test_the_first_selfcheck_of_a_run_is_kept_beside_it(tmp_path: Path) -> None:
    checked, run_folder = tmp_path / "selfcheck-123.json", tmp_path / "run-1"
    assert keep_selfcheck(checked, run_folder) == ""  # none was made
    checked.write_text("{}")
    assert keep_selfcheck(checked, run_folder) == "No such file or directory"
    run_folder.mkdir()
    assert keep_selfcheck(checked, run_folder) == ""
    checked.write_text("another")
    assert keep_selfcheck(checked, run_folder) == ""
    assert (run_folder / "selfcheck.json").read_text() == "{}"
