"""Which check applies which rule, read off the checks themselves, so that there is no list to forget.

A check applies the rules whose ids it, or a function of this package that it calls, has among its constants; and all
rules of a group that its docstring names as "rules GROUP.*", where the findings come ready-made from somewhere else.
Of rules that no check applies, those of a replay are applied by hpcai500.replay, and the others while the files are
read, by hpcai500.verify.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

from hpcai500.checks import CONTENT_CHECKS, FORM_CHECKS
from hpcai500.rulebook import RULEBOOK

Function = Callable[..., Any]


def check_name(check: Function) -> str:
    """How people are told of a check, as "counts.check_epochs"."""
    return f"{check.__module__.rpartition('.')[2]}.{check.__name__}"


def checks_of(rule: str) -> list[Function]:
    """The checks that apply a rule; empty if it is applied while the files are read."""
    return [check for check in (*FORM_CHECKS, *CONTENT_CHECKS) if rule in rules_of(check)]


def appliers_of(rule: str) -> list[str]:
    """Names of the checks that apply a rule, "replay" for a rule of a replay; empty if it is applied in reading."""
    return [check_name(check) for check in checks_of(rule)] or (["replay"] if rule.startswith("replay.") else [])


@functools.cache
def rules_of(check: Function) -> frozenset[str]:
    """The rules that a check applies."""
    groups = re.findall(r"rules (\w+)\.\*", check.__doc__ or "")
    rules = {rule for rule in RULEBOOK if rule.split(".")[0] in groups}
    return frozenset(rules | {text for text in _texts(check, set()) if text in RULEBOOK})


def _texts(function: Function, seen: set[object]) -> Iterator[str]:
    """All strings in a function and in those of this package that it calls, and the global strings it uses."""
    if not isinstance(function, FunctionType) or function in seen or not function.__module__.startswith("hpcai500."):
        return
    seen.add(function)
    for code in _codes(function.__code__):
        yield from (constant for constant in code.co_consts if isinstance(constant, str))
        for name in code.co_names:
            used = function.__globals__.get(name)
            if isinstance(used, str):
                yield used
            else:
                yield from _texts(used, seen)  # type: ignore[arg-type]


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and those of the functions and comprehensions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
