"""What tests of the leaderboard share: submissions that this package's own rules find valid, and boards that run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
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
from hpcai500.leaderboard.operating import listen

COMMAND = (sys.executable, "-m", "hpcai500", "leaderboard")


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
    listening = listen("127.0.0.1", 0)
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


class ServedBoard:
    """A board served by a process of its own, at a port that stays the same when it is started again."""

    def __init__(self, folder: Path, database: str | None = None, *, workers: int = 1) -> None:
        self.folder, self.database, self.port, self.workers = folder, database, 0, workers
        self.start()

    def start(self) -> None:
        words = ["serve", "--folder", str(self.folder), "--port", str(self.port), "--per-minute", "100000"]
        words += ["--workers", str(self.workers)]
        environment = os.environ | ({"HPCAI500_DATABASE": self.database} if self.database else {})
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, *words], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.url = line.split(" answers at ")[1].partition(",")[0]
        self.port = int(self.url.rpartition(":")[2])

    def admin(self, *words: str) -> str:
        environment = os.environ | ({"HPCAI500_DATABASE": self.database} if self.database else {})
        command = [*COMMAND, "admin", *words, "--folder", str(self.folder)]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()

    def make_token(self, slug: str = "a") -> str:
        """A token of an organisation, which is new."""
        self.admin("organisation", "add", slug, f"Organisation {slug.upper()}")
        return self.admin("token", "create", slug, "--label", "test")

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def stop(self) -> None:
        self.process.terminate()
        self.end()

    def end(self) -> None:
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
