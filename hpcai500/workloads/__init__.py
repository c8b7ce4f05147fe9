"""The workloads, and the table that says where each one is.

Adding one: a module here, a line in WORKLOADS, a file in rules/workloads/ and a folder in datasets/.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from hpcai500.errors import UnknownNameError

if TYPE_CHECKING:
    from hpcai500.workloads.workload import Workload

WORKLOADS = {"resnet50": "hpcai500.workloads.resnet50:ResNet50Workload"}


def open_workload(name: str, settings: dict[str, Any], *, num_classes: int, num_ranks: int, device: str) -> Workload:
    """Make the workload ``name`` ready for a rank.

    Args:
        name: a key of WORKLOADS.
        settings: all settings of the workload, as ``Edition.workload(name).resolve`` gives them.
        num_classes: classes of the data set.
        num_ranks: ranks of the run; together with the batch size of a rank it scales the learning rate.
        device: where the model lives, "cpu" or "cuda:N".

    Raises:
        UnknownNameError: no such workload.
    """
    if name not in WORKLOADS:
        raise UnknownNameError("workload", name, WORKLOADS)
    module_name, class_name = WORKLOADS[name].split(":")
    workload_class = getattr(import_module(module_name), class_name)
    return cast("Workload", workload_class(settings, num_classes=num_classes, num_ranks=num_ranks, device=device))
