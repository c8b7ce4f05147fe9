"""Anything at all as a submission: the verifier says in words what is wrong, soon, and in little memory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forging import Forger

from hpcai500.errors import RecordError
from hpcai500.finding import MAX_FINDINGS, MAX_TEXT, Finding, begin_findings
from hpcai500.formats import MAX_RECORD_BYTES, RunConfig, RunResult, Submission, System, decode
from hpcai500.verify import main

SECONDS = 20.0  # on a busy machine; alone most take a tenth of one
OTHER = {"sha256": "1" * 64, "size_bytes": 1}


pytestmark = pytest.mark.usefixtures("edition_of_recorded")


@pytest.fixture
def forger(resumed: Forger) -> Forger:
    return resumed


@pytest.fixture
def exit_code(capsys: pytest.CaptureFixture[str]) -> Callable[[Path], int]:
    """Verifies, prints, and gives the exit code; what nobody expected is raised, not called unreadable."""

    def verify(path: Path) -> int:
        began_s = time.monotonic()
        code = main(["--debug", "--jobs", "1", str(path)])
        assert time.monotonic() - began_s < SECONDS
        printed = capsys.readouterr()
        text = printed.out + printed.err
        assert len(text) < 200_000
        assert "Traceback" not in text
        assert all(letter.isprintable() or letter == "\n" for letter in text), "what could steer a terminal"
        return code

    return verify


# ---- contents --------------------------------------------------------------------------------------------------------

NO_JSON = {
    "nothing": b"",
    "blanks": b" \n\t ",
    "100,000 brackets": b"[" * 100_000,
    "100,000 objects in each other": b'{"a":' * 100_000,
    "closed brackets": b"[" * 100_000 + b"]" * 100_000,
    "31 MB of brackets": b"[" * (31 << 20),
    "too many brackets": b"[" * (MAX_RECORD_BYTES + 1),
    "not a number": b'{"seed": NaN}',
    "infinity": b"[Infinity, -Infinity]",
    "UTF-16": '{"format": 1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"format": 1}',
    "no UTF-8": b'{"edition": "\xff\xfe"}',
    "a surrogate as bytes": b'{"edition": "\xed\xa0\x80"}',
    "a lone surrogate": b'{"edition": "\\ud800"}',
    "half a file": b'{"format": 1, "edition": "0.1", "runs": [{"folder": "run',
    "zeros": bytes(1000),
    "two of them": b"{}{}",
}
OTHER_JSON = {
    "null": b"null",
    "a number": b"-0",
    "a large number": b"1e400",
    "a long number": b"1" + b"0" * 400,
    "a text": b'"submission"',
    "a list": b"[]",
    "an empty object": b"{}",
    "500 levels": b"[" * 500 + b"]" * 500,
    "a key twice": b'{"format": 1, "format": 2}',
}


@pytest.mark.parametrize("content", [*NO_JSON.values(), *OTHER_JSON.values()], ids=[*NO_JSON, *OTHER_JSON])
def test_a_submission_of_any_bytes(tmp_path: Path, exit_code: Callable[[Path], int], content: bytes) -> None:
    path = tmp_path / "submission.json"
    path.write_bytes(content)
    assert exit_code(path) == (2 if content in NO_JSON.values() else 1)


@pytest.mark.parametrize("form", [Submission, RunConfig, RunResult, System], ids=lambda form: form.__name__)
@pytest.mark.parametrize("content", [*NO_JSON.values(), *OTHER_JSON.values()], ids=[*NO_JSON, *OTHER_JSON])
def test_a_record_of_any_bytes(form: type, content: bytes) -> None:
    with contextlib.suppress(RecordError):
        assert isinstance(decode(content, form), list)


@pytest.mark.parametrize("name", ["config.json", "result.json", "system.json", "system-001.json", "ledger", "sig"])
def test_files_of_any_bytes(forger: Forger, exit_code: Callable[[Path], int], name: str) -> None:
    places = {"ledger": forger.ledger(), "sig": forger.path.with_name("submission.json.sig")}
    path = places.get(name, forger.run() / name)
    for content in [*NO_JSON.values(), *OTHER_JSON.values()]:
        if len(content) < 10**6:
            for ending in (b"", b"\n", b"\n" + content):
                path.write_bytes(content + ending)
                assert exit_code(forger.path) == 1


HOSTILE_NUMBERS = ["1e400", "-1e400", "NaN", "Infinity", "-0", "-0.0", "1" + "0" * 400, "9223372036854775807",
                   "9223372036854775808", "-1", "1.7e308", "5e-324", "1e-400", '"1"', "true", "null", "[]"]  # fmt: skip


@pytest.mark.parametrize("number", HOSTILE_NUMBERS, ids=lambda number: number[:22])
def test_hostile_numbers_in_the_place_of_every_number(
    forger: Forger, exit_code: Callable[[Path], int], number: str
) -> None:
    """Of each file one number after the other, every seventh; each is a number that a record has."""
    files = [forger.path, *(forger.run() / name for name in ("config.json", "result.json", "system.json"))]
    for path in [*files, forger.ledger(), forger.ledger(segment=1)]:
        content = path.read_bytes()
        tokens = [token for token in _numbers(content) if not _is_same(content[token].decode(), number)]
        for token in tokens[::7]:
            path.write_bytes(content[: token.start] + number.encode() + content[token.stop :])
            assert exit_code(forger.path) in (1, 2)
        path.write_bytes(content)


def _is_same(one: str, other: str) -> bool:
    with contextlib.suppress(ValueError):
        return float(one) == pytest.approx(float(other), rel=0, abs=1e-300)
    return False


def _numbers(content: bytes) -> list[slice]:
    return [
        slice(*match.span(1)) for match in re.finditer(rb"[:\[,] ?(-?\d+(?:\.\d+)?(?:e-?\d+)?)(?=[,}\]\n])", content)
    ]


NAMES = ["..", "../run-1", "/", "/etc", "run-1/../run-1", "./run-1", "run-1/", "run-1//", "\0", "run-1\0", "a" * 300,
         "a/" * 2000, "a" * 4096, "\u202egnp.run", "\x1b[2J\x1b[31mVALID", "run\n1", "\U0001f600", "e" + "\u0301" * 500,
         "\ufeff", "%s%n", "{0}", "~", "$HOME", "con", "run-1\\..\\..", " x ", "\uffff"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:20]))
def test_names_of_folders_files_and_people(forger: Forger, exit_code: Callable[[Path], int], name: str) -> None:
    original = forger.path.read_bytes()

    def try_it(change: Callable[[dict[str, Any]], object]) -> None:
        forger.path.write_bytes(original)
        forger.edit_submission(change)
        assert exit_code(forger.path) in (1, 2)

    try_it(lambda s: s["runs"][0].update(folder=name))
    try_it(lambda s: s["runs"][0]["files"].update({name: OTHER}))
    try_it(lambda s: s["runs"][0].update(run_id=name))
    try_it(lambda s: s.update(submitter=name, workload=name))
    try_it(lambda s: (s["system"]["nodes"][0].update(host=name), s.update(data_source=name)))


@pytest.mark.parametrize("name", ["\ud800", "a\udfff"], ids=ascii)
def test_lone_surrogates_everywhere(forger: Forger, exit_code: Callable[[Path], int], name: str) -> None:
    for change in (
        lambda s: s["runs"][0].update(folder=name),
        lambda s: s["runs"][0]["files"].update({name: OTHER}),
        lambda s: s.update(submitter=name),
    ):
        forger.edit_submission(change)
        assert exit_code(forger.path) in (1, 2)


# ---- files that are none ---------------------------------------------------------------------------------------------


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def _sparse(num_bytes: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(num_bytes)

    return make


KINDS: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "a folder": Path.mkdir,
    "a link to zeros": _link("/dev/zero"),
    "a link to random bytes": _link("/dev/urandom"),
    "a link to a terminal": _link("/dev/tty"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": _link("nowhere"),
    "a link to its folder": _link("."),
    "a link to another file": _link("/etc/passwd"),
    "a gigabyte": _sparse(1 << 30),
    "10 terabytes": _sparse(10 << 40),
}
PLACES = ["submission.json", "submission.json.sig", "equivalence.json", "run-1", "run-1/config.json",
          "run-1/result.json", "run-1/system.json", "run-1/system-001.json", "run-1/steps.h5", "run-1/ledger",
          "run-1/ledger/node-00000.jsonl", "run-1/ledger/segment-001", "run-1/ledger/segment-001/node-00000.jsonl",
          "run-1/selfcheck.json"]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_plain_file_neither_blocks_nor_is_read(
    forger: Forger, exit_code: Callable[[Path], int], place: str
) -> None:
    path = forger.path.parent / place
    aside = path.with_name("aside")
    if path.exists():
        path.rename(aside)
    for kind, make in KINDS.items():
        make(path)
        allowed = (0, 1) if place in ("equivalence.json", "run-1/selfcheck.json") else (1, 2)  # nobody asked for these
        assert exit_code(forger.path) in allowed, kind
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("place", PLACES)
def test_what_must_not_be_read_is_named(forger: Forger, exit_code: Callable[[Path], int], place: str) -> None:
    path = forger.path.parent / place
    if path.exists():
        path.chmod(0)
        try:
            assert exit_code(forger.path) in (1, 2)
        finally:
            path.chmod(0o700)


def test_a_loop_of_folders_ends(forger: Forger, exit_code: Callable[[Path], int]) -> None:
    for name, target in {"segment-002": ".", "segment-003": "..", "segment-004": "segment-004", "x": "/"}.items():
        (forger.run() / "ledger" / name).symlink_to(target)
    (forger.path.parent / "loop").symlink_to(".")
    assert exit_code(forger.path) == 1
    assert exit_code(forger.path.parent) == 1


@pytest.mark.parametrize(
    "name", ["node-99999999999999999999999.jsonl", "node-0000\u0661.jsonl", "node-000000.jsonl", "node-00000.jsonl.gz"]
)
def test_ledgers_with_odd_names(forger: Forger, exit_code: Callable[[Path], int], name: str) -> None:
    shutil.copy(forger.ledger(), forger.run() / "ledger" / name)
    assert exit_code(forger.path) in ((0,) if name.endswith(".gz") else (1,))


def test_bombs_that_nobody_opens_are_digested(forger: Forger, exit_code: Callable[[Path], int]) -> None:
    """What would burst in whoever unpacks it; the verifier does not."""
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(50 << 20))
    for content in (bomb.getvalue(), b"\x89HDF\r\n\x1a\n" + b"\xff" * 4000):
        (forger.run() / "steps.h5").write_bytes(content)
        forger.forge()
        assert exit_code(forger.path) == 0


# ---- very many -------------------------------------------------------------------------------------------------------


def _many_ledgers(forger: Forger) -> None:
    for node in range(1, 8000):
        os.link(forger.ledger(), forger.ledger(node=node))


def _many_empty_ledgers(forger: Forger) -> None:
    empty = forger.ledger(node=1)
    empty.touch()
    for node in range(2, 20_000):
        os.link(empty, forger.ledger(node=node))


def _many_segments(forger: Forger) -> None:
    for segment in range(2, 3000):
        folder = forger.run() / "ledger" / f"segment-{segment:03d}"
        folder.mkdir()
        os.link(forger.ledger(segment=1), folder / "node-00000.jsonl")


def _many_systems(forger: Forger) -> None:
    for segment in range(2, 5000):
        os.link(forger.run() / "system-001.json", forger.run() / f"system-{segment:03d}.json")


def _many_runs(forger: Forger) -> None:
    forger.edit_submission(lambda s: s.update(runs=s["runs"][:1] * 20_000))


def _one_run_many_times(forger: Forger) -> None:
    forger.edit_submission(
        lambda s: s.update(runs=[s["runs"][0] | {"folder": "run-1" + "/." * number} for number in range(1000)])
    )


def _many_missing_runs(forger: Forger) -> None:
    forger.edit_submission(
        lambda s: s.update(runs=[s["runs"][0] | {"folder": f"r{number}", "files": {}} for number in range(1000)])
    )


def _many_files(forger: Forger) -> None:
    forger.edit_submission(lambda s: s["runs"][0]["files"].update({f"{number:x}": OTHER for number in range(30_000)}))


def _one_file_many_times(forger: Forger) -> None:
    """Two sparse gigabytes, to be digested a thousand times."""
    _sparse(2 << 30)(forger.run() / "steps.h5")
    names = ["./" * number + "steps.h5" for number in range(1000)]
    forger.edit_submission(
        lambda s: s["runs"][0]["files"].update({name: OTHER | {"size_bytes": 2 << 30} for name in names})
    )


def _many_nodes(forger: Forger) -> None:
    nodes = [json.loads((forger.run() / "system.json").read_bytes())["nodes"][0]] * 4000
    for number in (1, 2):
        forger.edit_json(forger.run(number) / "system.json", lambda system: system.update(nodes=nodes))


def _many_blank_lines(forger: Forger) -> None:
    forger.ledger().write_bytes(b"\n" * 200_000)


def _many_wrong_windows(forger: Forger) -> None:
    def change(lines: list[dict[str, Any]]) -> None:
        place = next(index for index, line in enumerate(lines) if line["event"] == "window")
        lines[place:place] = lines[place : place + 1] * 4000

    forger.edit_lines(change)
    forger.forge()


def _a_million_ranks(forger: Forger) -> None:
    forger.edit_config(lambda config: config.update(num_ranks=2**60, num_nodes=2**60))
    forger.forge()


def _an_epoch_of_any_size(forger: Forger) -> None:
    def change(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            line["value"].update({"epoch": 2**62} if "epoch" in line["value"] else {})

    for rank in (0, 1):
        forger.edit_lines(change, rank=rank)
        forger.edit_lines(change, rank=rank, segment=1)
    forger.forge()


MANY = [_many_ledgers, _many_empty_ledgers, _many_segments, _many_systems, _many_runs, _one_run_many_times,
        _many_missing_runs, _many_files, _one_file_many_times, _many_nodes, _many_blank_lines, _many_wrong_windows,
        _a_million_ranks, _an_epoch_of_any_size]  # fmt: skip


@pytest.mark.parametrize("make", MANY, ids=lambda make: make.__name__.strip("_"))
def test_very_many_of_anything_takes_seconds(
    forger: Forger, exit_code: Callable[[Path], int], make: Callable[[Forger], None]
) -> None:
    make(forger)
    assert exit_code(forger.path) == (0 if make is _many_systems else 1)


def test_texts_are_cut_and_of_very_many_findings_only_the_rule_is_kept() -> None:
    begin_findings()
    first = Finding("form.files", "x", "y" * 10 * MAX_TEXT, "z")
    assert len(first.expected) < MAX_TEXT + 50
    last = [Finding("form.files", f"{number}", "y", "z") for number in range(MAX_FINDINGS)][-1]
    assert (last.rule, last.found) == ("form.files", last.place)
    begin_findings()
    assert Finding("form.files", "x", "y", "z").found == "z"


# ---- memory ----------------------------------------------------------------------------------------------------------

MEASURED = """
import sys
from hpcai500.verify import main
code = main(["--quiet", "--jobs", "1", *sys.argv[1:]])
with open("/proc/self/status") as status:
    print(code, *(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


def _objects(forger: Forger) -> None:
    forger.path.write_bytes(b'{"format":1,"runs":[' + b"{}," * (10 << 20) + b"{}]}")


def _short_texts(forger: Forger) -> None:
    forger.edit_submission(lambda s: s["summary"].update(why_not=["ab"] * (4 << 20)))


def _large_systems(forger: Forger) -> None:
    system = json.loads((forger.run() / "system.json").read_bytes())
    system["environment"] = {f"{number:x}": "" for number in range(1_500_000)}
    (forger.run() / "system-001.json").write_text(json.dumps(system))
    for segment in range(2, 20):
        (forger.run() / "ledger" / f"segment-{segment:03d}").mkdir()
        os.link(forger.ledger(segment=1), forger.ledger(segment=segment))
        os.link(forger.run() / "system-001.json", forger.run() / f"system-{segment:03d}.json")


@pytest.mark.parametrize("make", [_objects, _short_texts, _large_systems], ids=lambda make: make.__name__.strip("_"))
def test_memory_stays_below_a_gigabyte(forger: Forger, make: Callable[[Forger], None]) -> None:
    make(forger)
    command = [sys.executable, "-c", MEASURED, str(forger.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10 * SECONDS)
    code, kib = map(int, done.stdout.split())
    assert code == 1
    assert kib < 1 << 20
