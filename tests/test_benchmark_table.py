"""The table of ``make bench``: what the entry point measures, and what is said to have moved since another table."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import compare  # noqa: E402
from table import BEGIN, END, HEADLINES, Figure, Table, join, read_table, to_rst, with_headlines, write_table  # noqa: E402

TEN = [float(value) for value in range(100, 110)]
MACHINE = {"processor": "A", "num_cores": 2, "memory_bytes": 2**34, "accelerators": []}


def figure(what: str, values: list[float], **changes: object) -> Figure:
    one = Figure(benchmark="b", what=what, unit="s", better="less", bar=None, values=values)
    return msgspec.structs.replace(one, **changes)


def table(*figures: Figure, **changes: object) -> Table:
    versions = {"Python": "3.11.7", "torch": "2.13.0"}
    whole = Table(
        date="2026-11-27",
        machine=MACHINE,
        versions=versions,
        load=(0.1, 1.9),
        num_rounds=2,
        figures=list(figures),
        failed={},
    )
    return msgspec.structs.replace(whole, **changes)


def run_compare(tmp_path: Path, old: Table, new: Table) -> subprocess.CompletedProcess[str]:
    for name, one in (("old", old), ("new", new)):
        write_table(tmp_path / name, one)
    command = [sys.executable, BENCHMARKS / "compare.py", tmp_path / "old", tmp_path / "new"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def scaled(values: list[float], factor: float) -> list[float]:
    return [value * factor for value in values]


@pytest.mark.parametrize(
    ("factor", "better", "verdict"),
    [
        (1.02, "less", "within noise"),
        (0.98, "more", "within noise"),
        (0.8, "less", "improved"),
        (1.2, "less", "worse"),
        (0.8, "more", "worse"),
        (1.2, "more", "improved"),
    ],
)
def test_a_figure_moved_if_its_values_do_not_overlap(factor: float, better: str, verdict: str) -> None:
    old = figure("a", TEN, better=better)
    assert compare.judge(old, figure("a", scaled(TEN, factor), better=better)) == verdict


def test_few_values_are_judged_by_all_of_them_and_fewer_not_at_all() -> None:
    outlier = [*TEN[:4], 200.0]
    assert compare.judge(figure("a", outlier), figure("a", scaled(outlier, 1.2))) == "within noise"
    assert compare.judge(figure("a", TEN[:4]), figure("a", scaled(TEN[:4], 1.2))) == "worse"
    assert compare.judge(figure("a", TEN), figure("a", [500.0] * 3)) == "too few values"


@pytest.mark.parametrize("num_values", [4, 6, 9, 10, 20])
def test_what_did_not_move_is_rarely_said_to(num_values: int) -> None:
    rng = random.Random(0)
    pairs = [[figure("a", [rng.gauss(10, 1) for _ in range(num_values)]) for _ in range(2)] for _ in range(3000)]
    moved = sum(compare.judge(*pair) in ("worse", "improved") for pair in pairs)
    assert moved / len(pairs) < 0.045


def test_each_change_is_told_and_a_worse_one_fails(tmp_path: Path) -> None:
    old = table(figure("same", TEN), figure("slower", TEN, bar=110.0), figure("gone", TEN))
    new = table(figure("same", TEN), figure("slower", scaled(TEN, 1.5), bar=110.0), figure("added", TEN))
    new = msgspec.structs.replace(new, versions={"Python": "3.11.7", "torch": "2.14.0"})
    done = run_compare(tmp_path, old, new)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "other torch: 2.13.0 -> 2.14.0"
    assert lines[1:] == [
        "within noise    b: same: 104.5 -> 104.5 s, x 1.000",
        "worse           b: slower: 104.5 -> 156.8 s, x 1.500, and misses its bar of 110",
        "new             b: added: none -> 104.5 s",
        "missing         b: gone: 104.5 -> none s",
        "1 within noise, 1 worse, 1 new, 1 missing",
    ]
    assert run_compare(tmp_path, new, new).returncode == 0


def test_tables_of_other_machines_and_no_tables_are_not_compared(tmp_path: Path) -> None:
    done = run_compare(tmp_path, table(), table(machine=MACHINE | {"processor": "B"}))
    assert done.returncode == 2
    assert "of different machines (processor 'A' and 'B')" in done.stderr
    command = [sys.executable, BENCHMARKS / "compare.py", tmp_path / "none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "python benchmarks/all.py" in done.stderr


def test_rounds_are_joined_and_a_missed_bar_is_told() -> None:
    line = '{"what": "w", "unit": "", "better": "more", "bar": 2, "values": [1.0, 1.5]}\n'
    (one,) = join([("b", line), ("c", ""), ("b", line)])
    assert one.values == [1.0, 1.5, 1.0, 1.5]
    text = to_rst(table(one, failed={"c": "it told none"}))
    assert "at least 2: **missed**" in text
    assert "``c`` failed: it told none." in text


def test_the_entry_point_measures_a_benchmark_and_makes_its_table(tmp_path: Path) -> None:
    output = tmp_path / "table.json"
    command = [sys.executable, BENCHMARKS / "all.py", "--only", "start_up", "--rounds", "1", "--output", output]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = read_table(output)
    assert [one.what for one in found.figures][:2] == ["an empty Python", "import hpcai500"]
    assert all(len(one.values) == 7 and min(one.values) > 0 for one in found.figures)
    assert found.figures[1].bar == 0.15
    assert output.with_suffix(".rst").read_text(encoding="utf-8") == to_rst(found)


def test_every_quick_form_is_one_that_its_benchmark_takes() -> None:
    listed = subprocess.run(
        [sys.executable, "-c", "import all, json; print(json.dumps(all.QUICK))"],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        check=True,
    )
    for name, words in msgspec.json.decode(listed.stdout).items():
        script = BENCHMARKS / f"{name}.py"
        if script.exists():
            text = script.read_text(encoding="utf-8")
            assert all(f'"{word}"' in text for word in words if word.startswith("--")), name
            assert "figure(" in text, f"{name} tells the table nothing"


def test_readme_shows_the_figures_of_the_table_that_is_kept() -> None:
    readme = (BENCHMARKS.parent / "README.rst").read_text(encoding="utf-8")
    assert with_headlines(readme, read_table(BENCHMARKS / "table.json")) == readme
    shown = readme.partition(BEGIN)[2].partition(END)[0]
    assert all(words in shown for words in HEADLINES.values())


def test_readme_keeps_what_is_around_its_figures() -> None:
    (benchmark, what), words = next(iter(HEADLINES.items()))
    one = figure(what, TEN, benchmark=benchmark, unit="", bar=2.0)
    text = with_headlines(f"before\n{BEGIN}old\n{END}after\n", table(one))
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"\n{END}after\n")
    assert f"{words}  104.5  at most 2: **missed**" in text
    assert "old" not in text
    with pytest.raises(ValueError, match="not both marks"):
        with_headlines("no marks", table(one))
