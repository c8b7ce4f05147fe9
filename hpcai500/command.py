"""Runs one command: parses its words, prints a user's error in one line, answers Ctrl-C with 130."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Protocol

from hpcai500.errors import HpcAi500Error

INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, as shells have it
STOPPED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: stopped on request with a checkpoint, to be gone on with later
LOST_RANK_EXIT_CODE = 76  # another rank is gone or a deadline passed; the run can be resumed


class CommandModule(Protocol):
    """A module with a command: its docstring's first line is the command's description."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's words."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work and return the exit status."""


def make_parser(prog: str, module: CommandModule | Any) -> argparse.ArgumentParser:
    """The parser of a module's command.

    Args:
        prog: what the user typed to call it.
        module: has ``add_arguments``, and perhaps an ``EPILOG`` with examples.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=(module.__doc__ or "").split("\n\n")[0],
        epilog=getattr(module, "EPILOG", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    _describe_sub_commands(parser)
    return parser


def _describe_sub_commands(parser: argparse.ArgumentParser) -> None:
    """Have a sub-command's help begin with the words by which its parent lists it, unless it has words of its own."""
    for action in parser._actions:  # argparse has no public way to ask for sub-commands
        if isinstance(action, argparse._SubParsersAction):
            for listed in action._choices_actions:
                part = action.choices[listed.dest]
                if part.description is None and listed.help:
                    part.description = f"{listed.help[0].upper()}{listed.help[1:]}."
                _describe_sub_commands(part)


def run_command(prog: str, module: CommandModule | Any, argv: list[str] | None = None) -> int:
    """Run the command of a module.

    Args:
        prog: what the user typed to call it.
        module: has ``add_arguments`` and ``run``, and perhaps an ``EPILOG`` with examples.
        argv: its words; those of the process by default.

    Returns:
        The exit status.
    """
    args = make_parser(prog, module).parse_args(argv)
    try:
        return int(module.run(args))
    except HpcAi500Error as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
