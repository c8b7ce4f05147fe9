"""Hypothesis strategies for values of msgspec types: all that a type allows, the ends of its ranges above all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from msgspec import inspect

LARGEST_FLOAT = 1.7976931348623157e308
TEXTS = st.one_of(
    st.sampled_from(["x", "0", "..", "/", "\x00x", "\u202ex", "\x1b[2J", "cpu", "cuda", "smoke", "free", "resnet50"]),
    st.text(min_size=1, max_size=20).filter(lambda text: bool(text.strip())),
)


def json_trees() -> st.SearchStrategy[Any]:
    """Any JSON, deep and with odd numbers."""
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=10),
    )
    return st.recursive(leaves, lambda one: st.lists(one, max_size=4) | st.dictionaries(st.text(max_size=8), one))


def values_of(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Any value of a type, as JSON would have it."""
    makers: dict[type[inspect.Type], Callable[[Any], st.SearchStrategy[Any]]] = {
        inspect.Metadata: lambda kind: values_of(kind.type),
        inspect.UnionType: lambda kind: st.one_of([values_of(one) for one in kind.types]),
        inspect.StructType: _structs,
        inspect.ListType: lambda kind: st.lists(values_of(kind.item_type), min_size=kind.min_length or 0, max_size=3),
        inspect.TupleType: lambda kind: st.tuples(*map(values_of, kind.item_types)),
        inspect.DictType: _dictionaries,
        inspect.IntType: _integers,
        inspect.FloatType: _floats,
        inspect.StrType: _texts,
        inspect.LiteralType: lambda kind: st.sampled_from(kind.values),
        inspect.BoolType: lambda _: st.booleans(),
        inspect.NoneType: lambda _: st.none(),
        inspect.AnyType: lambda _: json_trees(),
    }
    return makers[type(kind)](kind)


def _structs(kind: inspect.StructType) -> st.SearchStrategy[Any]:
    required = {field.encode_name: values_of(field.type) for field in kind.fields if field.required}
    others = {field.encode_name: values_of(field.type) for field in kind.fields if not field.required}
    return st.fixed_dictionaries(required, optional=others)


def _dictionaries(kind: inspect.DictType) -> st.SearchStrategy[Any]:
    keys, values = values_of(kind.key_type), values_of(kind.value_type)
    return st.dictionaries(keys, values, min_size=kind.min_length or 0, max_size=3)


def _integers(kind: inspect.IntType) -> st.SearchStrategy[int]:
    low = kind.ge if kind.ge is not None else -(2**63)
    high = kind.le if kind.le is not None else 2**63 - 1
    return st.one_of(st.sampled_from([low, high]), st.integers(low, min(high, low + 5)), st.integers(low, high))


def _floats(kind: inspect.FloatType) -> st.SearchStrategy[float]:
    low = next((bound for bound in (kind.ge, kind.gt) if bound is not None), -LARGEST_FLOAT)
    high = kind.le if kind.le is not None else LARGEST_FLOAT
    return st.floats(low, high, exclude_min=kind.gt is not None, allow_nan=False, allow_infinity=False)


def _texts(kind: inspect.StrType) -> st.SearchStrategy[str]:
    if kind.pattern is not None and kind.pattern != r"\S":
        return st.from_regex(kind.pattern.replace("$", r"\Z"), alphabet=st.characters(max_codepoint=127))
    return TEXTS if kind.min_length else st.one_of(st.just(""), TEXTS)
