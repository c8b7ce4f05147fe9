"""Times single calls of operations under the conditions of a training step.

In a step nearly all that an operation reads and writes has left the processor's caches since, or never was in them. So
each call gets operands of its own from a ring that no cache holds, and what it returns is kept for as long: the memory
for the next result is then not that of the last, which would still be in the cache.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hpcai500.micro.recorder import Call, tensors_of

CACHE_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")
UNKNOWN_CACHE_BYTES = 2**25
MAX_RING = 16  # operands of a call; small ones stay in a cache, as they do in a step
POOL_LENGTH = 2**22
LEAST_S = 1e-9  # events of a GPU tell half a microsecond, and may tell nothing of less
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


class Timer:
    """Times calls on one device.

    Args:
        device: where operands are made.
        clock_s: of the host; that of the processor's time tells more where other programs run.
    """

    def __init__(self, device: torch.device, clock_s: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.clock_s = device, clock_s
        self.cache_bytes = last_cache_bytes(device)
        generator = torch.Generator().manual_seed(0)
        self._pool = torch.empty(POOL_LENGTH).uniform_(-1, 1, generator=generator).to(device)

    def times_s(self, call: Call, *, num_repeats: int, budget_s: float) -> list[float]:
        """Seconds of each of so many calls, or of fewer, but one, once the budget is spent; one before does not count.

        In a step the operation is not called for the first time either: libraries have chosen and prepared its code.
        """
        operand_bytes = sum(part.numel() * part.element_size() for part in tensors_of(call.operands))
        length = min(MAX_RING, num_repeats, -(-2 * self.cache_bytes // max(1, operand_bytes)))
        operands = [pytree.tree_map(self._made, call.operands) for _ in range(max(1, length))]
        results: deque[Any] = deque(maxlen=len(operands))
        marks: list[tuple[Any, Any]] = []
        with torch.no_grad():
            args, kwargs = operands[-1]
            results.append(call.function(*args, **kwargs))
            self._wait()
            end_s = time.perf_counter() + budget_s
            while len(marks) < num_repeats and (not marks or time.perf_counter() < end_s):
                args, kwargs = operands[len(marks) % len(operands)]
                begin = self._mark()
                result = call.function(*args, **kwargs)
                marks.append((begin, self._mark()))
                results.append(result)
        self._wait()
        return [self._between_s(*pair) for pair in marks]

    def _mark(self) -> Any:
        """A moment of the host's clock, or of the stream of a GPU, which nobody waits for in a step either."""
        if self.device.type != "cuda":
            return self.clock_s()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _between_s(self, begin: Any, end: Any) -> float:
        seconds = float(begin.elapsed_time(end)) / 1e3 if self.device.type == "cuda" else end - begin
        return max(seconds, LEAST_S)

    def whole_s(self, work: Callable[[], object]) -> float:
        """Seconds of some work, from the beginning to when the device has done it."""
        self._wait()
        begin_s = self.clock_s()
        work()
        self._wait()
        return self.clock_s() - begin_s

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _made(self, part: Any) -> Any:
        """A tensor of the form; floats are of -1 to 1, so that nothing overflows and nothing is denormal."""
        if not isinstance(part, Tensor):
            return part
        if not part.is_meta:
            return part.clone()
        made = torch.empty_strided(part.shape, part.stride(), dtype=part.dtype, device=self.device)
        flat = torch.empty(0, dtype=part.dtype, device=self.device).set_(made.untyped_storage())
        for piece in torch.split(flat, POOL_LENGTH):
            piece.copy_(self._pool[: len(piece)])
        return made


def last_cache_bytes(device: torch.device) -> int:
    """Of the last cache before memory, on a processor as Linux tells it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [path.read_text(encoding="ascii").strip() for path in CACHE_FOLDER.glob("index*/size")]
    known = [int(size[:-1]) * UNITS[size[-1]] for size in sizes if size[-1:] in UNITS]
    return max(known, default=UNKNOWN_CACHE_BYTES)
