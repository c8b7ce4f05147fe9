"""Whatever stands in a submission's files, there is a report of it, or one sentence why there is none."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forging import Forger
from recording import EDITION, record_submission
from report_pages import Page

from hpcai500.errors import HpcAi500Error
from hpcai500.report import tables
from hpcai500.report.page import render_subjects
from hpcai500.report.subject import read_subject

NUM_EACH = 8
VALUES = (0, 1, -1, 2**63 - 1, 1e300, 0.0, 0.5, "", "<b>", "=1", "\x1b[1m", None, [], {}, True, [1] * 5, {"a": [1]})


@pytest.fixture(scope="module")
def submissions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("any")
    return [
        record_submission(folder / "resumed", resumed_on=2),
        record_submission(folder / "detector", workload="fasterrcnn", num_failed=1),
    ]


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in JSON, as the keys that lead there."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def change_one(content: Any, source: random.Random) -> None:
    """Put any value in any place."""
    path = source.choice(list(places(content)))
    for key in path[:-1]:
        content = content[key]
    content[path[-1]] = source.choice(VALUES)


def change_lines(lines: list[dict[str, Any]], source: random.Random) -> None:
    """Change a value, drop a line and double another, in any order."""
    for _ in range(source.randrange(1, 4)):
        line = source.choice(lines)
        what = source.random()
        if what < 0.2:
            lines.remove(line)
        elif what < 0.35:
            lines.insert(source.randrange(len(lines)), json.loads(json.dumps(line)))
        else:
            change_one(line["value"], source)


@pytest.mark.parametrize("index", [0, 1], ids=["resumed", "detector"])
@pytest.mark.parametrize("where", ["ledger", "submission", "run"])
def test_any_value_anywhere_gives_a_page_or_a_sentence(
    where: str, index: int, submissions: list[Path], tmp_path: Path
) -> None:
    num_pages, sentences = 0, []
    for number in range(NUM_EACH):
        source = random.Random(f"{where} {index} {number}")
        folder = tmp_path / str(number)
        shutil.copytree(submissions[index].parent, folder)
        forger = Forger(folder / "submission.json")
        if where == "ledger":
            forger.edit_lines(lambda lines, source=source: change_lines(lines, source), rank=source.choice([0, 1]))
        else:
            name = source.choice(["config.json", "system.json", "result.json"])
            path = forger.path if where == "submission" else forger.run() / name
            forger.edit_json(path, lambda content, source=source: change_one(content, source))
        for named in (forger.path, forger.run()):
            try:
                subject = read_subject(named, EDITION)
            except HpcAi500Error as error:
                sentences.append(str(error))
                continue
            page = Page(render_subjects([subject, subject]))
            assert page.loads == []
            assert not {"nan", "inf"} & set(page.text.split())
            assert json.loads(tables.as_json([subject]))["format"] == 1
            assert tables.as_csv([subject])
            num_pages += 1
    assert num_pages >= NUM_EACH
    assert not [sentence for sentence in sentences if "\n" in sentence]
