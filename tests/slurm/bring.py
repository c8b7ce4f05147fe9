"""In a job: brings an archive to its nodes, starts ranks from it, and removes it.

python bring.py ARCHIVE FOLDER OUTPUT
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from hpcai500.launch.software import ENVIRONMENT, SoftwareError, StagedSoftware

RANK = "import hpcai500, socket, sys; print(socket.gethostname(), hpcai500.__file__, sys.prefix)"


def main() -> None:
    archive, folder, output = map(Path, sys.argv[1:])
    job, num_nodes = os.environ["SLURM_JOB_ID"], int(os.environ["SLURM_JOB_NUM_NODES"])
    staged = StagedSoftware(archive, folder, num_nodes=num_nodes, job=job)
    found: dict[str, object] = {"root": str(staged.root)}
    try:
        staged.bring()
    except SoftwareError as error:
        found["error"] = str(error)
    else:
        srun = ["srun", "--mpi=none", f"--ntasks={2 * num_nodes}", str(staged.python), "-c", RANK]
        env = {**os.environ, **ENVIRONMENT}
        done = subprocess.run(srun, env=env, capture_output=True, text=True, check=True)
        found["ranks"] = sorted(done.stdout.splitlines())
        staged.remove()
    output.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
