"""The command `hpcai500 data`: verbs, exit status, what it prints, Ctrl-C."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pictures import make_class_folders
from rich.console import Console

from hpcai500 import data_progress
from hpcai500.__main__ import main
from hpcai500.data_progress import DataProgress
from hpcai500.pipelines.hdf5 import open_images

GENERATE = ["data", "generate", "--classes", "3", "--train", "30", "--validation", "6", "--image-size", "32"]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "generated.h5"
    assert main([*GENERATE, "--output", str(path)]) == 0
    return path


@pytest.mark.parametrize(
    "verb",
    [
        ["generate"],
        ["info"],
        ["check"],
        ["prepare"],
        *(["prepare", kind] for kind in ("imagenet", "fashion-mnist", "folder", "mini")),
    ],
)
def test_each_verb_explains_itself_with_an_example(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["data", *verb, "--help"])
    assert stopped.value.code == 0
    assert f"example:\n  hpcai500 data {verb[0]}" in capsys.readouterr().out


def test_info_says_what_a_file_holds(generated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "info", str(generated)]) == 0
    text = capsys.readouterr().out
    for part in ("generated", "3: disc with", "30 pictures", "6 pictures", "32 x 32", "36 jpeg_colour"):
        assert part in text
    assert open_images(generated).dataset_sha256 in text


def test_info_as_json_can_be_read_by_a_program(generated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "info", "--json", str(generated)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["provenance"]["source"] == "generated"
    assert facts["provenance"]["seed"] == 0
    assert facts["num_classes"] == len(facts["class_names"]) == 3
    assert facts["splits"]["train"]["num_samples"] == 30
    assert facts["file_bytes"] == generated.stat().st_size


def test_check_exits_with_0_1_or_2(generated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "--decode", str(generated)]) == 0
    assert capsys.readouterr().out == f"{generated}: good\n"

    damaged = tmp_path / "damaged.h5"
    content = bytearray(generated.read_bytes())
    content[open_images(generated).splits["train"].position_bytes] ^= 1
    damaged.write_bytes(content)
    assert main(["data", "check", str(damaged)]) == 1
    assert "train sample 0 (train-000000): its bytes differ from their SHA-256" in capsys.readouterr().out
    assert main(["data", "check", "--json", str(damaged)]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert findings == [
        {"split": "train", "index": 0, "name": "train-000000", "what": "its bytes differ from their SHA-256"}
    ]

    assert main(["data", "check", str(tmp_path / "none.h5")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_many_findings_are_cut_short_in_print_only(
    generated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged.h5"
    content = bytearray(generated.read_bytes())
    table = open_images(generated).splits["train"]
    for offset in table.offsets[:-1].tolist():
        content[table.position_bytes + offset] ^= 1
    damaged.write_bytes(content)
    assert main(["data", "check", str(damaged)]) == 1
    assert "... and 10 more; --json prints all" in capsys.readouterr().out
    assert main(["data", "check", "--json", str(damaged)]) == 1
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 30


def test_a_folder_is_prepared_and_not_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_class_folders(tmp_path / "flowers", ["rose", "lily"], 10)
    command = ["data", "prepare", "folder", "--source", str(tmp_path / "flowers"), "--output", str(tmp_path / "f.h5")]
    assert main([*command, "--validation-share", "0.2", "--workers", "1"]) == 0
    assert "2: lily, rose" in capsys.readouterr().out
    assert main(command) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "0"], "0 workers cannot work"),
        (["--classes", "0"], "0 classes do not fit"),
        (["--classes", "7"], "7 classes do not fit 6 pictures"),
        (["--image-size", "8"], "image size 8 is not possible; valid are 16 to 4096"),
        (["--seed", "-1"], "seed -1 is not possible"),
    ],
)
def test_impossible_numbers_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*GENERATE, *words, "--output", str(tmp_path / "g.h5")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "g.h5").exists()


def test_ctrl_c_keeps_what_is_done_and_the_same_command_resumes(tmp_path: Path) -> None:
    output, spool = tmp_path / "g.h5", tmp_path / "g.h5.spool"
    words = ["data", "generate", "--train", "6000", "--validation", "10", "--workers", "2", "--output", str(output)]
    command = [sys.executable, "-m", "hpcai500", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not list(spool.glob("*.npy")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 130
    assert errors.endswith("interrupted; what is done is kept, and the same command goes on from there\n")
    assert not output.exists()
    made = {path: path.stat().st_mtime_ns for path in spool.glob("*.npy")}
    assert made
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while len(list(spool.glob("*.npy"))) <= len(made):
            assert process.poll() is None
            time.sleep(0.02)
        assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in made.items()), "made a second time"
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 130, errors


def test_the_command_line_loads_no_heavy_library() -> None:
    code = "import hpcai500.data, sys; print(sorted({'numpy', 'h5py', 'torch', 'PIL', 'rich'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_progress, "PLAIN_PERIOD_S", 0.0)
    text = io.StringIO()
    with DataProgress(Console(file=text)) as progress:
        progress.report("writing", 500, 2000)
    assert text.getvalue() == "writing: 25% of 2,000\n"


def test_progress_is_a_bar_on_a_terminal() -> None:
    text = io.StringIO()
    with DataProgress(Console(file=text, force_terminal=True, width=100)) as progress:
        progress.report("writing", 0, 2000)
        progress.report("writing", 2000, 2000)
    assert "writing" in text.getvalue()
    assert "100%" in text.getvalue()
