"""The command line: what it says of itself, and what it does with a mistake."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest

from hpcai500.__main__ import COMMANDS, main
from hpcai500.command import run_command
from hpcai500.errors import DataError, RunError
from hpcai500.version import __version__


def test_help_lists_every_command_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"\n    {command}\s", text)
    assert "hpcai500 submit --size mini" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: hpcai500 {command}" in text
    assert "example" in text


def test_an_unknown_command_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sumbit"])
    assert ended.value.code == 2
    assert "sumbit" in capsys.readouterr().err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"hpcai500 {__version__}"


@pytest.mark.parametrize("module", ["submit", "train", "verify"])
def test_commands_also_run_as_modules(module: str) -> None:
    command = [sys.executable, "-m", f"hpcai500.{module}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "usage:" in done.stdout


def failing(error: BaseException) -> SimpleNamespace:
    def run(args: object) -> int:
        raise error

    return SimpleNamespace(__doc__="Fail.", add_arguments=lambda parser: None, run=run)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (DataError("'x.h5' is damaged; copy it again"), 2, "hpcai500 x: 'x.h5' is damaged; copy it again\n"),
        (RunError("it ended"), 1, "hpcai500 x: it ended\n"),
        (KeyboardInterrupt(), 130, "hpcai500 x: interrupted\n"),
    ],
)
def test_errors_of_users_are_one_line_and_an_exit_code(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("hpcai500 x", failing(error), []) == code
    assert capsys.readouterr().err == text


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command("hpcai500 x", failing(ZeroDivisionError()), [])


def test_the_message_of_an_error_names_its_cause() -> None:
    error = DataError("cannot write 'x'")
    error.__cause__ = OSError("no space left")
    assert str(error) == "cannot write 'x': no space left"


def test_every_command_has_a_module_that_can_run_it() -> None:
    for module, _ in COMMANDS.values():
        loaded = import_module(module)
        assert callable(loaded.add_arguments)
        assert callable(loaded.run)
