"""The workloads, and the table that says where each one is.

Adding one: modules NAME.py and NAME_data.py here, a line in WORKLOADS, a file in rules/workloads/, a line in
hpcai500/flop_forms.py and in hpcai500/learning_rate.py, and a folder in datasets/.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from hpcai500.errors import UnknownNameError

if TYPE_CHECKING:
    from hpcai500.edition import Size
    from hpcai500.workloads.data_source import DataModule
    from hpcai500.workloads.workload import Workload

WORKLOADS = {
    "resnet50": "hpcai500.workloads.resnet50:ResNet50Workload",
    "fasterrcnn": "hpcai500.workloads.fasterrcnn:FasterRCNNWorkload",
}


def open_workload(name: str, settings: dict[str, Any], *, size: Size, num_ranks: int, device: str) -> Workload:
    """Make the workload ``name`` ready for a rank.

    Args:
        name: a key of WORKLOADS.
        settings: all settings of the workload, as ``Edition.workload(name).resolve`` gives them.
        size: the rules of the size: classes, and shape of what is evaluated.
        num_ranks: ranks of the run; together with the batch size of a rank it scales the learning rate.
        device: where the model lives, "cpu" or "cuda:N".

    Raises:
        UnknownNameError: no such workload.
    """
    if name not in WORKLOADS:
        raise UnknownNameError("workload", name, WORKLOADS)
    module_name, class_name = WORKLOADS[name].split(":")
    workload_class = getattr(import_module(module_name), class_name)
    return cast("Workload", workload_class(settings, size=size, num_ranks=num_ranks, device=device))


def data_module(name: str) -> DataModule:
    """The module that knows the data of the workload ``name``; importing it imports no torch.

    Raises:
        UnknownNameError: no such workload.
    """
    if name not in WORKLOADS:
        raise UnknownNameError("workload", name, WORKLOADS)
    return cast("DataModule", import_module(f"hpcai500.workloads.{name}_data"))
