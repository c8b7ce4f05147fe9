"""What settings need that a machine may not have: libraries and devices.

Asked before anything starts, so nothing of it imports those libraries, nor torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from hpcai500.edition import SettingValue
from hpcai500.errors import BackendUnavailableError, UsageError

# What a setting needs beyond the package's own dependencies: the module, and how to get it.
BACKENDS = {
    "mpi": ("mpi4py", "pip install 'hpcai500[mpi]'"),
    "horovod": ("horovod", "`make horovod` in a checkout of hpcai500, since pip cannot build it for a current torch"),
    "dali": ("nvidia.dali", "pip install 'hpcai500[dali]'"),
}


def check_backends(settings: Mapping[str, SettingValue]) -> None:
    """Refuse settings whose library is not installed.

    Raises:
        BackendUnavailableError: says how to get it.
    """
    for key in ("communicator", "pipeline"):
        module, how_to_get = BACKENDS.get(str(settings[key]), ("torch", ""))
        try:
            is_installed = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # the package above it is missing
            is_installed = False
        if not is_installed:
            raise BackendUnavailableError(
                f"{key} {settings[key]!r} needs {module}, which is not installed here; get it with {how_to_get}"
            )


def check_device(settings: Mapping[str, SettingValue], device: str) -> None:
    """Refuse settings that the device has not.

    Raises:
        UsageError: fp16 or CUDA graphs on a processor; CUDA graphs without the compiler that makes them.
    """
    on_cuda = device.startswith("cuda")
    if settings["precision"] == "fp16" and not on_cuda:
        raise UsageError(
            f"precision 'fp16' needs a CUDA device and this run uses {device!r}; use --set precision=bf16 or fp32"
        )
    if not settings.get("cuda_graphs"):
        return
    if not on_cuda:
        raise UsageError(f"cuda_graphs needs a CUDA device and this run uses {device!r}; use --set cuda_graphs=false")
    if not settings["torch_compile"]:
        raise UsageError(
            "cuda_graphs = true does nothing with torch_compile = false, since the compiler makes the graphs; "
            "add --set torch_compile=true"
        )
