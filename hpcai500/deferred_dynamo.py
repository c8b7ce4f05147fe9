"""Spares ranks the import of torch's compiler (torch._dynamo), which takes as long as the import of torch itself.

torch's optimizers import it when they are made, only to tell it that they must not be compiled. Where nothing is
compiled that is half of the start-up of a rank: 1.8 s of processor time with torch 2.13.

``defer_dynamo`` puts a stand-in where ``import torch._dynamo`` looks. It has the functions by which the eager parts of
torch call the compiler, doing what those do when nothing is compiled. Whoever asks it for anything else, as
torch.compile does, gets the real module, imported then and there.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

NAME = "torch._dynamo"


class DeferredRules:
    """Stands for torch._dynamo.trace_rules, of which init_process_group wants that it forgets what it looked up."""

    def clear_lru_cache(self) -> None:
        """Do nothing: nothing was looked up."""

    def __getattr__(self, name: str) -> Any:
        """Import the real module and take the attribute from there."""
        return getattr(load_dynamo().trace_rules, name)


class DeferredDynamo(types.ModuleType):
    """Stands for torch._dynamo until something of it is really needed."""

    trace_rules = DeferredRules()

    def graph_break(self, *_: Any, **__: Any) -> None:
        """Do nothing, as the real one does outside of a compilation."""

    def disable(self, fn: Callable[..., Any] | None = None, recursive: bool = True, **options: Any) -> Any:
        """Give back the function itself: it is not compiled anyway. As a decorator with options, ask the real one."""
        return fn if callable(fn) and recursive else self.__getattr__("disable")(fn, recursive, **options)

    def __getattr__(self, name: str) -> Any:
        """Import the real module and take the attribute from there."""
        if name == "__path__" or not name.startswith("__"):
            return getattr(load_dynamo(), name)
        raise AttributeError(name)


def defer_dynamo() -> None:
    """From now on import the compiler only when something of it is needed; nothing if it is there already."""
    import torch

    if NAME not in sys.modules:
        stand_in = DeferredDynamo(NAME)
        sys.modules[NAME] = stand_in
        torch._dynamo = stand_in


def load_dynamo() -> types.ModuleType:
    """The real module, in its place."""
    if isinstance(sys.modules.get(NAME), DeferredDynamo):
        del sys.modules[NAME]
    return importlib.import_module(NAME)
