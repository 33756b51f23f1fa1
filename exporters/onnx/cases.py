"""Inputs to judge a model with: several lengths, drawn for whatever inputs it has."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from .observed import Observed, runtime_names

LENGTHS = [(1, 1), (7, 7), (33, 33), (100, 100), (257, 257)]
UNEQUAL = [(1, 100), (7, 33), (33, 7)]
TIED = 100  # keys of the longest case with ties
BUFFER = 128  # what the buffer of a cache is a multiple of


class Case(NamedTuple):
    """Inputs by name, and what to call them."""

    label: str
    feed: dict[str, NDArray[Any]]


def draw(model: Any, attentions: list[Observed]) -> list[Case]:
    """Cases of 1 to 257 queries and keys, not multiples of a block; unequal where inputs allow.

    Numbers are normal, integers 0 or 1, but for the inputs that an attention reads by name: key
    lengths, positions of the first query, sinks, tables. A file that chooses by content gets sizes
    a second time with small whole numbers, whose scores are exact and often equal.
    """
    own = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in own]
    shapes = {one.name: _dims(one) for one in inputs}
    batch: set[int | str] = {
        shape[0] for shape in shapes.values() if shape and isinstance(shape[0], str)
    }
    free = {dim for shape in shapes.values() for dim in shape if isinstance(dim, str)} - batch
    choices = [one.choice.scored for one in attentions if one.choice is not None]
    of_queries = _lengths(shapes, [*(one.query for one in attentions), *(x[0] for x in choices)])
    of_keys = _lengths(shapes, [*(one.key for one in attentions), *(x[1] for x in choices)])
    apart = bool(of_keys - of_queries)
    sizes = _sizes(attentions, set(shapes), apart) if free else [(0, 0)]  # all fixed: one case
    cases = []
    rows = [one.pattern.batches for one in attentions if one.pattern.batches is not None]
    for seed, (m, n) in enumerate(sizes):
        b = max(rows, default=2 if m == n else 1)
        known: dict[int | str, int] = dict.fromkeys(free, n)
        known |= dict.fromkeys(of_queries, m) | dict.fromkeys(batch, b)
        known |= {"max_len": -(-n // BUFFER) * BUFFER}
        feed = {
            one.name: _values(one, [known.get(d, d) for d in shapes[one.name]], m, n, attentions,
                              np.random.default_rng(seed))
            for one in inputs
        }  # fmt: skip
        label = f"{m} x {n}" if free else "as it is"
        cases.append(Case(label, feed))
        if choices and n <= TIED:
            cases.append(Case(f"{label}, ties", {x: _whole(y, seed) for x, y in feed.items()}))
    return cases


def _whole(x: NDArray[Any], seed: int) -> NDArray[Any]:
    """Whole numbers from -2 to 2 in place of floats."""
    rng = np.random.default_rng(seed)
    return rng.integers(-2, 3, x.shape).astype(x.dtype) if x.dtype.kind == "f" else x


def _sizes(attentions: list[Observed], inputs: set[str], apart: bool) -> list[tuple[int, int]]:
    """Numbers of queries and keys; `apart` says that they may differ."""
    covers = [one.pattern.covers for one in attentions if one.pattern.covers is not None]
    sizes = [*LENGTHS, *((n, n) for n in covers)]
    if apart or any(one.kv_len for one in attentions):
        sizes += [(m, n) for m, n in UNEQUAL if apart or m < n]
    if any(one.key_length in inputs and not one.q_start for one in attentions):
        sizes = [(m, n) for m, n in sizes if m >= n]  # else it is not said where queries stand
    if covers or any(one.only_past for one in attentions):
        sizes = [(m, n) for m, n in sizes if m <= n]
    return [(m, n) for m, n in sizes if n <= min(covers, default=n)]


def _dims(info: Any) -> list[int | str]:
    """Numbers, and names of the axes that are free."""
    dims = info.type.tensor_type.shape.dim
    return [
        one.dim_value if one.HasField("dim_value") else one.dim_param or f"{info.name}.{axis}"
        for axis, one in enumerate(dims)
    ]


def _lengths(shapes: dict[str, list[int | str]], names: list[str]) -> set[int | str]:
    """The free lengths of inputs that are somebody's queries (or keys)."""
    dims = [shapes[name][2] for name in names if len(shapes.get(name, ())) == 4]
    return {dim for dim in dims if isinstance(dim, str)}


def _values(
    info: Any, shape: list[Any], m: int, n: int, attentions: list[Observed], rng: Any
) -> Any:
    kind = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    name, count = info.name, math.prod(shape)
    if name in {one.kv_len for one in attentions}:
        return np.full(shape, n, kind)
    if name in {one.key_length for one in attentions}:
        return np.resize([n, n // 2, 0], count).reshape(shape).astype(kind)
    if name in {one.q_start for one in attentions}:
        return np.resize([max(n - m, 0), 0], count).reshape(shape).astype(kind)
    if kind.kind in "fV":
        numbers = rng.standard_normal(shape).astype(kind)
        return numbers.astype(np.float32) if kind.kind == "V" else numbers  # bfloat16: NumPy's not
    tables = {table for one in attentions for table in runtime_names(one.pattern)}
    if name in tables and kind.kind != "b":
        if len(shape) == 1:
            return rng.integers(0, n + 1, shape).astype(kind)  # lengths of prefixes
        return np.sort(rng.integers(-1, 3, shape), axis=-1).astype(kind)  # documents, -1: none
    return (rng.random(shape) < 0.3).astype(kind)
