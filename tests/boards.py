"""What tests of the leaderboard share: submissions that this package's own rules find valid, and boards that run."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import recording
import uvicorn
from fastapi import FastAPI

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


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The address at which an application answers over HTTP, in a thread of this process."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="on"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listening.close()
