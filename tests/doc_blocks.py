"""The code blocks of pages, and whether the commands in them are possible: held against the real parsers."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import re
import shlex
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from hpcai500.__main__ import COMMANDS
from hpcai500.command import make_parser

ROOT = Path(__file__).parent.parent
GENERATED = {"commands.rst", "findings.rst", "rules.rst"}  # by docs/conf.py, from what they describe
PAGES = sorted(
    page
    for pattern in ("*.rst", "docs/*.rst", "datasets/**/*.rst", "benchmarks/*.rst")
    for page in ROOT.glob(pattern)
    if page.name not in GENERATED
)
DIRECTIVE = re.compile(r"^( *)\.\. (?:code-block|code|sourcecode):: *(\w*)$")
SEPARATORS = {"&&", "||", "|", ";", "&"}
STARTERS = {"srun", "mpiexec", "mpirun", "apptainer", "exec", "time", "sudo"}  # what follows their options is a command
INTERPRETERS = {"python", "python3"}


class Block(NamedTuple):
    """A literal block: its page, the line it begins at, its language ("" if it names none) and its text."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    """All literal blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").split("\n")
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        directive = DIRECTIVE.match(line)
        if not directive and not (line.rstrip().endswith("::") and not line.lstrip().startswith("..")):
            continue
        outer = len(line) - len(line.lstrip())
        body, first = [], number
        while number < len(lines) and (not lines[number].strip() or _indent(lines[number]) > outer):
            body.append(lines[number])
            number += 1
        text = "\n".join(line for line in body if not re.match(r"^ +:\w+:", line)) if directive else "\n".join(body)
        yield Block(page, first + 1, directive[2] if directive else "", _dedented(text))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _dedented(text: str) -> str:
    lines = text.strip("\n").rstrip().split("\n")
    least = min((_indent(line) for line in lines if line.strip()), default=0)
    return "\n".join(line[least:] for line in lines)


def inline_commands(page: Path) -> set[str]:
    """What stands between double backquotes and begins like a command of ours."""
    text = re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
    found = re.findall(r"``((?:hpcai500|hpcai500-verify|make|sbatch|python -m hpcai500\S*) [^`]+)``", text)
    return {command for command in found if "|" not in command}


def problems_of_line(line: str) -> list[str]:
    """Why the commands of a line of shell cannot be; nothing for those of other programs."""
    problems = []
    for inner in re.findall(r"\$\(([^()]*)\)", line):
        problems += problems_of_line(inner)
    for words in _commands(line):
        problems += problems_of(words)
    return problems


def _commands(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    command: list[str] = []
    for word in [*lexer, ";"]:
        if word in SEPARATORS:
            yield command
            command = []
        else:
            command.append(word)


def problems_of(words: list[str]) -> list[str]:
    """Why one command cannot be; nothing if it can, or is another program's."""
    while words and re.match(r"^[A-Z_0-9]+=", words[0]):
        words = words[1:]
    if not words:
        return []
    name, *rest = words
    check = CHECKS.get(name.rpartition("/")[2])
    return check(rest) if check else []


def _problems_of_umbrella(words: list[str]) -> list[str]:
    if not words or words[0] in ("--version", "--help"):
        return []
    if words[0] not in COMMANDS:
        return [f"hpcai500 has no command {words[0]!r}"]
    return problems_of_words(COMMANDS[words[0]][0], words[1:])


def problems_of_words(module: str, words: list[str]) -> list[str]:
    """What the parser of a module's command says of words; nothing if it takes them."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            parser_of(module).parse_args(words)
        except SystemExit as end:
            if end.code:
                return [said.getvalue().strip().split("\n")[-1]]
    return []


@functools.cache
def parser_of(module: str) -> argparse.ArgumentParser:
    return make_parser(module, import_module(module))


def _problems_of_python(words: list[str]) -> list[str]:
    if words[:1] == ["-m"] and words[1].startswith("hpcai500"):
        if find_spec(words[1]) is None:
            return [f"there is no module {words[1]}"]
        if words[1] == "hpcai500":
            return _problems_of_umbrella(words[2:])
        has_parser = hasattr(import_module(words[1]), "add_arguments")
        return problems_of_words(words[1], words[2:]) if has_parser else []
    ours = [word for word in words[:1] if word.startswith(("benchmarks/", "tools/", "tests/", "docs/"))]
    return [f"there is no file {word}" for word in ours if not (ROOT / word).exists()]


def _problems_of_make(words: list[str]) -> list[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"\$\(([A-Z_]+)\)", makefile))
    problems = [f"make has no target {word!r}" for word in words if word.isalpha() and word not in known]
    named = (word.partition("=")[0] for word in words if "=" in word)
    return problems + [f"the Makefile has no variable {name}" for name in named if name not in variables]


def _problems_of_sbatch(words: list[str]) -> list[str]:
    scripts = [index for index, word in enumerate(words) if word.endswith(".sbatch")]
    if not scripts:
        return []
    script = words[scripts[0]]
    if "NAME" not in script and not (ROOT / script).exists():
        return [f"there is no job script {script}"]
    return problems_of_words("hpcai500.submit", words[scripts[0] + 1 :])


def _problems_of_pip(words: list[str]) -> list[str]:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = {name for word in words for name in ",".join(re.findall(r"\[(.+)\]", word)).split(",") if name}
    return [f"there is no extra {name!r}" for name in extras - set(config["options.extras_require"])]


def _problems_of_started(words: list[str]) -> list[str]:
    """Of what srun, mpiexec and their like start."""
    ours = (
        index for index, word in enumerate(words) if word in INTERPRETERS or word in ("hpcai500", "hpcai500-verify")
    )
    first = next(ours, None)
    return [] if first is None else problems_of(words[first:])


CHECKS: dict[str, Callable[[list[str]], list[str]]] = {
    "hpcai500": _problems_of_umbrella,
    "hpcai500-verify": functools.partial(problems_of_words, "hpcai500.verify"),
    "make": _problems_of_make,
    "sbatch": _problems_of_sbatch,
    "pip": _problems_of_pip,
    **dict.fromkeys(INTERPRETERS, _problems_of_python),
    **dict.fromkeys(STARTERS, _problems_of_started),
}


def unknown_options(command: str) -> list[str]:
    """Options in a command that need not be whole, as text has them, which its parser does not know."""
    words = command.split()
    if words[0] == "hpcai500" and len(words) > 1 and words[1] in COMMANDS:
        module, words = COMMANDS[words[1]][0], words[2:]
    elif words[0] == "hpcai500-verify":
        module, words = "hpcai500.verify", words[1:]
    elif words[:1] == ["hpcai500"] and words[1] not in ("--version", "--help"):
        return [f"hpcai500 has no command {words[1]!r}"]
    else:
        return [] if words[0] != "make" else _problems_of_make(words[1:2])
    parser = parser_of(module)
    known = set(parser._option_string_actions)
    for word in words:
        choices = {name: part for action in parser._actions for name, part in (_parsers(action)).items()}
        if word in choices:
            parser = choices[word]
            known |= set(parser._option_string_actions)
    typed = (word.partition("=")[0].rstrip(",;") for word in words if re.match(r"^--[a-z]", word))
    return [f"{command!r}: there is no option {option}" for option in typed if option not in known]


def _parsers(action: argparse.Action) -> dict[str, argparse.ArgumentParser]:
    return dict(action.choices) if isinstance(action, argparse._SubParsersAction) else {}
