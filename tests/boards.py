"""Submissions that this package's own rules find valid, for tests of the leaderboard, whose judge is a process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import recording

from hpcai500.edition import load_edition


def record_for_board(folder: Path, **words: Any) -> Path:
    """As recording.record_submission, by the rules as they are: sizes smoke and mini are quick."""
    with mock.patch.object(recording, "EDITION", load_edition()):
        return recording.record_submission(folder, **words)


def vary(submission: Path, folder: Path, submitter: str) -> Path:
    """A copy that is another submission, by its submitter's name alone."""
    shutil.copytree(submission.parent, folder)
    path = folder / submission.name
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps(content | {"submitter": submitter}))
    return path
