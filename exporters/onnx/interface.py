"""The inputs and the output of a model of one attention, the same in every mode."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, cast

from onnx import TensorProto, helper

import sparse_ref as sr

from .request import Request

INTEGERS, TRUTHS = TensorProto.INT64, TensorProto.BOOL
ELEMENTS = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}
RUNTIME = {  # fields that may be a Runtime: element type and axes after the batch
    "tokens": (TRUTHS, ["positions"]),
    "ids": (INTEGERS, ["positions"]),
    "key_ids": (INTEGERS, ["positions"]),
    "prefix": (INTEGERS, []),
}


def inputs(request: Request) -> list[Any]:
    """ValueInfos of q, k, v, then key_length, q_start, sinks and the pattern's run-time inputs.

    Every integer is int64. An input with a batch axis may also have one row, for all.

    >>> [one.name for one in inputs(Request(sr.Causal(), heads=2, head_dim=3, sinks=True))]
    ['q', 'k', 'v', 'sinks']
    """
    kind, (m, n) = element_type(request), lengths(request)
    given = {
        "q": (kind, ["batch", request.heads, m, request.head_dim]),
        "k": (kind, ["batch", request.kv_heads, n, request.head_dim]),
        "v": (kind, ["batch", request.kv_heads, n, request.value_dim]),
        "key_length": (INTEGERS, ["batch"]),
        "q_start": (INTEGERS, ["batch"]),
        "sinks": (kind, [request.heads]),
    }
    off = {name for name in ("key_length", "q_start", "sinks") if not getattr(request, name)}
    tables = {
        name: (element, ["batch", *axes]) for name, (element, axes) in runtime(request).items()
    }
    if clash := sorted(set(tables) & {*given, "y"}):
        raise ValueError(f"Runtime must have a name of its own, got {clash[0]!r}")
    named = {name: info for name, info in given.items() if name not in off} | tables
    return [helper.make_tensor_value_info(name, *info) for name, info in named.items()]


def outputs(request: Request) -> list[Any]:
    """The ValueInfo of y [batch, heads, q_len, value_dim]."""
    shape = ["batch", request.heads, lengths(request)[0], request.value_dim]
    return [helper.make_tensor_value_info("y", element_type(request), shape)]


def element_type(request: Request) -> int:
    """The TensorProto constant of the request's dtype."""
    return ELEMENTS[request.dtype]


def lengths(request: Request) -> tuple[Any, Any]:
    """q_len and kv_len: names where they are free."""
    if request.dynamic:
        return "q_len", "kv_len"
    return request.pattern.covers, request.pattern.covers


def runtime(request: Request) -> dict[str, tuple[int, list[str]]]:
    """The run-time inputs of the pattern by name: element type, and axes after the batch."""
    found: dict[str, tuple[int, list[str]]] = {}
    for pattern in _all(request.pattern):
        for field in fields(cast(Any, pattern)):
            value = getattr(pattern, field.name)
            if isinstance(value, sr.Runtime):
                info = RUNTIME[field.name]
                if found.setdefault(value.name, info) != info:
                    raise ValueError(f"Runtime must be one kind of input, got {value.name!r} twice")
    return found


def _all(pattern: sr.Pattern) -> list[sr.Pattern]:
    return [pattern, *(one for child in pattern.children for one in _all(child))]
