"""A rank that stages a file: python stage.py SOURCE FOLDER OUTPUT; writes what it reads to OUTPUT/RANK."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

from hpcai500.comm.communicator import end_process, open_communicator
from hpcai500.comm.launchers import find_place
from hpcai500.staging import Stage, collect


def main() -> None:
    source, folder, output = map(Path, sys.argv[1:])
    stage = Stage(source, folder) if find_place().local_rank == 0 else None
    if stage is not None:
        stage.start()
    with open_communicator("torchdist") as comm:
        path, staged = collect(stage, comm, source)
        found = {
            "host": socket.gethostname(),
            "path": str(path),
            "first_bytes": list(path.read_bytes()[:5]),
            "event": staged.event() if staged else None,
        }
        (output / str(comm.rank)).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
    end_process()
