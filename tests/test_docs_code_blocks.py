"""Every code block of the pages can be used as it stands: commands parse, data is read, code compiles."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from doc_blocks import PAGES, ROOT, Block, blocks_of, inline_commands, problems_of_line, unknown_options

from hpcai500.launch.site import TAKES, find_site
from hpcai500.leaderboard.client import find_token
from hpcai500.register.trusted import find_trusted_keys

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SHELL = ("", "shell", "bash", "sh", "console")


def of_language(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def place(block: Block) -> str:
    return block.place


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_in_a_block_is_taken_by_the_real_parser(page: Path) -> None:
    problems = []
    for block in blocks_of(page):
        if block.language not in SHELL:
            continue
        for line in block.text.replace("\\\n", " ").split("\n"):
            command = line.strip().removeprefix("$ ")
            if block.language or re.match(
                r"(?:[A-Z_]+=\S+ )*(?:hpcai500|make|sbatch|srun|python|pip|mpiexec)\b", command
            ):
                problems += [f"{block.place}: {command}: {problem}" for problem in problems_of_line(command)]
    assert problems == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_within_text_exist_with_their_options(page: Path) -> None:
    assert [problem for command in inline_commands(page) for problem in unknown_options(command)] == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("hpcai500 submitt --nodes 2", "no command 'submitt'"),
        ("hpcai500 submit --noddes 2", "unrecognized arguments: --noddes"),
        ("cd x && hpcai500 data prepare nothing --output a.h5", "invalid choice"),
        ('eval "$(hpcai500 site --shel1)"', "unrecognized arguments: --shel1"),
        ("COMM=mpi sbatch --nodes=2 jobs/resnet50_fre.sbatch", "no job script"),
        ("sbatch jobs/resnet50_free.sbatch --rums 1", "unrecognized arguments: --rums"),
        ("srun --ntasks-per-node=1 python -m hpcai500.selfchek", "no module"),
        ("make rum", "no target"),
        ("make run WRKLOAD=resnet50", "no variable"),
        ("pip install '.[mpi,dalli]'", "no extra 'dalli'"),
    ],
)
def test_a_command_that_cannot_be_is_found(line: str, problem: str) -> None:
    assert problem in " ".join(problems_of_line(line))


def test_an_option_in_text_that_does_not_exist_is_found() -> None:
    assert unknown_options("hpcai500 submit --resum FOLDER") != []
    assert unknown_options("hpcai500 data check --decode FILE") == []


def test_a_block_is_found_with_its_language_and_line(tmp_path: Path) -> None:
    page = ROOT / "docs/slurm.rst"
    languages = {block.language for block in blocks_of(page)}
    assert {"shell", "toml"} <= languages
    lines = page.read_text(encoding="utf-8").split("\n")
    for block in blocks_of(page):
        assert block.text.split("\n")[0] in "\n".join(lines[block.line - 1 : block.line + 2])


@pytest.mark.parametrize("block", of_language("toml"), ids=place)
def test_toml_is_read_by_the_reader_it_is_meant_for(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tomllib.loads(block.text).keys()
    file = tmp_path / "block.toml"
    file.write_text(block.text, encoding="utf-8")
    if keys & TAKES.keys():
        assert find_site(file).path == file
    elif keys & {"issuers", "signers"}:
        trusted = find_trusted_keys(file)
        assert trusted.issuers or trusted.signers
    elif "tokens" in keys:
        config = tmp_path / "hpcai500/leaderboard.toml"
        config.parent.mkdir()
        config.write_text(block.text, encoding="utf-8")
        config.chmod(0o600)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        monkeypatch.delenv("HPCAI500_TOKEN", raising=False)
        assert find_token("https://board.example").startswith("hpcai500_")
    else:
        pytest.fail("nothing of hpcai500 reads such TOML")


@pytest.mark.parametrize("block", of_language("json"), ids=place)
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", of_language("python"), ids=place)
def test_python_compiles_and_what_it_imports_exists(block: Block) -> None:
    tree = ast.parse(block.text, filename=block.place)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert all(find_spec(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = import_module(str(node.module))
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
