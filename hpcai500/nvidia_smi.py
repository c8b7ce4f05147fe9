"""Asks nvidia-smi about the GPUs of this machine, without importing torch or starting CUDA.

nvidia-smi comes with the driver and shows what a container or a scheduler's device limits leave visible.
"""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Sequence

from hpcai500.errors import BackendUnavailableError

TIMEOUT_S = (
    30  # without persistence mode the driver first starts every GPU, some seconds each; a sick one takes forever
)


def query_gpus(fields: Sequence[str]) -> list[dict[str, str]]:
    """One dictionary a GPU, in the order of PCI, with the fields asked for (``nvidia-smi --help-query-gpu``).

    Raises:
        BackendUnavailableError: there is no nvidia-smi, it fails or hangs, or it does not answer what was asked.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except FileNotFoundError as error:
        raise BackendUnavailableError("there is no nvidia-smi on PATH; install the driver of NVIDIA GPUs") from error
    except subprocess.TimeoutExpired as error:
        raise BackendUnavailableError(
            f"nvidia-smi gave no answer in {TIMEOUT_S} s; a GPU or its driver hangs, look at dmesg for Xid"
        ) from error
    except (OSError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stdout", "") or getattr(error, "stderr", "") or ""
        said = output.strip().splitlines()[:1]
        raise BackendUnavailableError(
            f"nvidia-smi failed{f' and said {said[0]!r}' if said else ''}; run it by hand on this machine"
        ) from error
    rows = [row for row in csv.reader(done.stdout.splitlines(), skipinitialspace=True) if row]
    if any(len(row) != len(fields) for row in rows):
        raise BackendUnavailableError(
            f"nvidia-smi answered {done.stdout[:200]!r}, which are not the {len(fields)} values a GPU that were asked "
            f"for; run {' '.join(command)!r} by hand"
        )
    return [dict(zip(fields, (word.strip() for word in row), strict=True)) for row in rows]
