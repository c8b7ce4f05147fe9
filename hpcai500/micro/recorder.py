"""Writes down which operations a training step calls, with which operands, so that each can be called again alone.

It sees what torch's dispatcher hands to the device, below autograd and autocast: forward, backward and optimizer, with
the copies between number formats. What only changes how a tensor is looked at (a view) computes nothing and is left
out. The two operators of the detector (hpcai500/models/operators.py) are one operation each, whatever they are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from hpcai500.micro_record import Phase
from hpcai500.models import operators

MAX_KEPT_BYTES = 2**20  # floats of the detector's operators that decide what they do: boxes and not features


@dataclass
class Call:
    """Calls of one operation with operands of one form.

    Attributes:
        name: as "aten.convolution".
        function: to call.
        operands: positional and named; floats are tensors on the meta device, which have a form and no values.
        text: the operands in words.
        phase: of the first call.
        flop: of one call.
        num_bytes: that one call moves at least.
        num_calls: how often it was called.
    """

    name: str
    function: Callable[..., Any]
    operands: Any
    text: str
    phase: Phase
    flop: int
    num_bytes: int
    num_calls: int = 0

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the largest operand of floats."""
        floats = [part for part in tensors_of(self.operands) if part.is_floating_point()]
        return max(floats, key=Tensor.numel).dtype if floats else None


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Use it as a context; ``calls`` has what was called within, each form once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: dict[str, Call] = {}
        self.phase: Phase = "forward"
        self._is_inside = False  # one of the detector's operators

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # An operand that is overwritten must be looked at before.
        operands = None if self._is_inside or _computes_nothing(func) else formed(args, kwargs, keep_floats=False)
        output = func(*args, **kwargs)
        if operands is not None:
            name = str(func).rpartition(".")[0]
            flop = flop_registry.get(func._overloadpacket)
            count = int(flop(*args, **kwargs, out_val=output)) if flop else 0
            self._add(
                name,
                func,
                operands,
                flop=count,
                num_bytes=_moved_bytes(args, kwargs, _written(func, args, kwargs, output)),
            )
        return output

    def _add(self, name: str, function: Callable[..., Any], operands: Any, *, flop: int, num_bytes: int) -> None:
        key = repr((name, pytree.tree_map(_description, operands)))
        if key not in self.calls:
            text = ", ".join(map(tensor_text, tensors_of(operands)))
            self.calls[key] = Call(name, function, operands, text, self.phase, flop, num_bytes)
        self.calls[key].num_calls += 1

    @contextmanager
    def watching_operators(self) -> Iterator[None]:
        """Within, the detector's operators are recorded as one operation each."""
        before = operators.suppress_boxes, operators.align_regions
        operators.suppress_boxes = self._watched("suppress_boxes", before[0])
        operators.align_regions = self._watched("align_regions", before[1])
        try:
            yield
        finally:
            operators.suppress_boxes, operators.align_regions = before

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            operands = formed(args, kwargs, keep_floats=True)
            self._is_inside = True
            try:
                output = function(*args, **kwargs)
            finally:
                self._is_inside = False
            self._add(name, function, operands, flop=0, num_bytes=_moved_bytes(args, kwargs, output))
            return output

        return call


def _computes_nothing(func: Any) -> bool:
    return func.namespace == "profiler" or any(
        result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns
    )


def formed(args: Any, kwargs: Any, *, keep_floats: bool) -> Any:
    """The operands, with the values of what decides what is done (indices, masks, boxes), and else with forms alone."""
    return pytree.tree_map(partial(_form, keep_floats=keep_floats), (args, kwargs))


def _form(part: Any, *, keep_floats: bool) -> Any:
    if not isinstance(part, Tensor):
        return part
    part = part.detach()
    num_bytes = part.numel() * part.element_size()
    if not part.is_floating_point() or (keep_floats and num_bytes <= MAX_KEPT_BYTES):
        return part.clone()
    return torch.empty_strided(part.shape, part.stride(), dtype=part.dtype, device="meta")


def tensors_of(operands: Any) -> list[Tensor]:
    """The tensors in any structure of operands."""
    return [part for part in pytree.tree_leaves(operands) if isinstance(part, Tensor)]


def tensor_text(tensor: Tensor) -> str:
    """Number format and shape, as "float32 16x3x224x224"."""
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape}"


def _description(part: Any) -> Any:
    return (tuple(part.shape), part.stride(), part.dtype) if isinstance(part, Tensor) else part


def _moved_bytes(args: Any, kwargs: Any, written: Any) -> int:
    """Each operand read once and each result written once; of what is repeated by a stride of 0 only what is there."""
    return sum(map(_stored_bytes, tensors_of((args, kwargs)))) + sum(map(_stored_bytes, tensors_of(written)))


def _written(func: Any, args: Any, kwargs: Any, output: Any) -> list[Any]:
    """The operands that an operation of torch overwrites, and its results that are none of these."""
    parameters = func._schema.arguments
    given = {parameter.name: value for parameter, value in zip(parameters, args, strict=False)} | kwargs
    overwritten = [given.get(one.name) for one in parameters if one.alias_info is not None and one.alias_info.is_write]
    known = {id(tensor) for tensor in tensors_of(overwritten)}
    return [*overwritten, *(tensor for tensor in tensors_of(output) if id(tensor) not in known)]


def _stored_bytes(tensor: Tensor) -> int:
    count = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= length if stride else min(length, 1)
    return count * tensor.element_size()
