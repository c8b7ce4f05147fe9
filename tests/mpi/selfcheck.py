"""A rank of a self-check with faults: python selfcheck.py COMMUNICATOR faults|death FOLDER."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from hpcai500.comm.communicator import end_process, open_communicator
from hpcai500.probes.report import as_dictionary
from hpcai500.selfcheck import CheckOptions, check_machine


def main() -> None:
    name, how, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    os.environ.setdefault("HOROVOD_CYCLE_TIME", "1")
    with open_communicator(name) as comm:
        clock_ns = time.time_ns
        if how == "faults":
            os.environ["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
            if comm.rank == 1:
                sys.path.insert(0, str(folder / "site-packages"))
                clock_ns = lambda: time.time_ns() + 200_000_000  # noqa: E731
        elif comm.rank == 1:
            clock_ns = lambda: os._exit(9)  # noqa: E731
        verdict = check_machine(comm, CheckOptions(quick=True), clock_ns=clock_ns)
        if verdict is not None:
            (folder / "verdict.json").write_text(json.dumps(as_dictionary(verdict)))


if __name__ == "__main__":
    main()
    end_process()
