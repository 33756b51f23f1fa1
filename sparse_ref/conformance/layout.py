"""How a kernel wants its arrays laid out: dense, packed one after another, or in pages.

A layout says by itself how many keys there are in each row, and which tokens belong together; what
is left of the pattern and of the attributes is `pattern` and `attributes`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from sparse_ref._arrays import Ints
from sparse_ref.patterns import (
    And,
    Causal,
    Document,
    Full,
    Offsets,
    Pattern,
    SlidingWindow,
    Strided,
    WithinDocument,
)

LAYOUTS = ("bhsd", "bshd", "thd", "paged")
DISTANCES = (Causal, Full, Offsets, SlidingWindow, Strided)  # which packing does not change
LOUD = (2.0, 512.0)  # keys and values in memory that belongs to nobody: finite in float16, and far


class Shape(NamedTuple):
    """Batch, query heads, key/value heads, queries, keys."""

    b: int
    h: int
    g: int
    m: int
    n: int


@dataclass(frozen=True)
class Dense:
    """Arrays (b, h, s, d), or (b, s, h, d)."""

    heads_last: bool
    shape: Shape
    pattern: Any
    attributes: dict[str, Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    lengths_said = False

    def queries(self, x: Any) -> Any:
        """An array of queries, as q."""
        return np.ascontiguousarray(x.swapaxes(1, 2)) if self.heads_last else x

    def keys(self, x: Any) -> Any:
        """An array of keys, as k."""
        return self.queries(x)

    def values(self, x: Any) -> Any:
        """An array of values, as v."""
        return self.keys(x)

    def queries_back(self, x: Any) -> Any:
        """What `queries` was."""
        return x.swapaxes(1, 2) if self.heads_last else x

    def keys_back(self, x: Any) -> Any:
        """What `keys` was."""
        return self.queries_back(x)

    def lse_back(self, x: Any) -> Any:
        """An lse (b, h, m) of the kernel's."""
        return x


class Segment(NamedTuple):
    """Tokens of one batch row that attend to each other: queries and keys, from and up to."""

    row: int
    queries: slice
    keys: slice


@dataclass(frozen=True)
class Packed:
    """Arrays (tokens, h, d): sequences one after another, told apart by where they start."""

    shape: Shape
    segments: list[Segment]
    pattern: Any
    attributes: dict[str, Any]
    lengths_said = True

    @property
    def arguments(self) -> dict[str, Any]:
        """Where each sequence starts, as varlen kernels are told."""
        found: dict[str, Any] = {}
        for letter, of in (("q", [one.queries for one in self.segments]),
                           ("k", [one.keys for one in self.segments])):  # fmt: skip
            sizes: list[int] = [one.stop - one.start for one in of]
            found[f"cu_seqlens_{letter}"] = np.cumsum([0, *sizes]).astype(np.int32)
            found[f"max_seqlen_{letter}"] = max(sizes, default=0)
        return found

    def queries(self, x: Any) -> Any:
        """Queries of all segments (tokens, h, d)."""
        return self._packed(x, [(one.row, one.queries) for one in self.segments])

    def keys(self, x: Any) -> Any:
        """Keys of all segments (tokens, g, d)."""
        return self._packed(x, [(one.row, one.keys) for one in self.segments])

    def values(self, x: Any) -> Any:
        """Values of all segments."""
        return self.keys(x)

    def queries_back(self, x: Any) -> Any:
        """Tokens (tokens, h, e) where they came from; 0 at what is in no segment."""
        places = [(one.row, one.queries) for one in self.segments]
        return self._unpacked(x, places, self.shape.m)

    def keys_back(self, x: Any) -> Any:
        """As `queries_back`, for arrays of keys."""
        return self._unpacked(x, [(one.row, one.keys) for one in self.segments], self.shape.n)

    def lse_back(self, x: Any) -> Any:
        """An lse (h, tokens) of the kernel's as (b, h, m); -inf at what is in no segment."""
        inside = self.queries_back(np.ones((x.shape[1], x.shape[0], 1), bool))[..., 0]
        return np.where(inside, self.queries_back(x.T[..., None])[..., 0], -np.inf).astype(x.dtype)

    def _packed(self, x: Any, places: list[tuple[int, slice]]) -> Any:
        parts = [x[row, :, at].swapaxes(0, 1) for row, at in places]
        return np.concatenate([np.zeros((0, x.shape[1], x.shape[3]), x.dtype), *parts])

    def _unpacked(self, x: Any, places: list[tuple[int, slice]], length: int) -> Any:
        whole = np.zeros((self.shape.b, x.shape[1], length, x.shape[2]), x.dtype)
        start = 0
        for row, at in places:
            stop = start + at.stop - at.start
            whole[row, :, at] = x[start:stop].swapaxes(0, 1)
            start = stop
        return whole


@dataclass(frozen=True)
class Paged(Dense):
    """Queries (b, s, h, d); keys and values in pages (pages, page size, g, d), in no order."""

    page_size: int = 16
    lengths_said = True

    def keys(self, x: Any) -> Any:
        """The cache of keys; what belongs to no sequence is loud."""
        return self._cache(x, LOUD[0])

    def values(self, x: Any) -> Any:
        """The cache of values."""
        return self._cache(x, LOUD[1])

    def _cache(self, x: Any, filler: float) -> Any:
        b, g, _, d = x.shape
        table, size = self.arguments["block_table"], self.page_size
        cache = np.full((b * table.shape[1] + 1, size, g, d), filler, x.dtype)
        for row, length in enumerate(self.arguments["cache_seqlens"]):
            for i, start in enumerate(range(0, int(length), size)):
                page = x[row, :, start : min(start + size, length)].swapaxes(0, 1)
                cache[table[row, i], : len(page)] = page
        return cache

    def keys_back(self, x: Any) -> Any:
        """A cache has no gradient."""
        raise NotImplementedError("a cache of pages has no gradient")


def lay(
    layout: str, pattern: Any, attributes: dict[str, Any], shape: Shape, page_size: int
) -> Dense | Packed:
    """The layout of one call.

    >>> ids = [0, 0, 0, 1, 1]
    >>> found = lay("thd", Causal() & Document(ids), {}, Shape(1, 1, 1, 5, 5), 16)
    >>> found.pattern, found.arguments["cu_seqlens_q"].tolist()
    (Causal(), [0, 3, 5])
    """
    if layout in ("bhsd", "bshd"):
        return Dense(layout == "bshd", shape, pattern, attributes)
    given = attributes.get("kv_lengths")
    lengths = np.broadcast_to(shape.n if given is None else given, shape.b).astype(np.int32)
    if layout == "paged":
        arguments = {"cache_seqlens": lengths, "block_table": _table(lengths, shape, page_size)}
        return Paged(True, shape, pattern, attributes, arguments, page_size)
    inner, runs = _documents(pattern, attributes, shape)
    if runs is None:
        segments = [
            Segment(i, slice(0, shape.m), slice(0, int(size))) for i, size in enumerate(lengths)
        ]
    else:
        segments = [Segment(i, run, run) for i in range(shape.b) for run in runs]
    return Packed(shape, segments, inner, attributes)


def _table(lengths: Any, shape: Shape, size: int) -> Any:
    """Where each page of each row is; pages past its end are the last one, which nobody has."""
    columns = max(-(-shape.n // size), 1)
    count = shape.b * columns
    pages = np.random.default_rng(count).permutation(count).reshape(shape.b, columns)
    used = np.arange(columns) * size < lengths[:, None]
    return np.where(used, pages, count).astype(np.int32)


def _documents(
    pattern: Any, attributes: dict[str, Any], shape: Shape
) -> tuple[Any, list[slice] | None]:
    """What holds within each document, and the documents; None if there are none to be packed."""
    if shape.m != shape.n or {"q_start", "kv_lengths", "kv_positions"} & set(attributes):
        return pattern, None
    if isinstance(pattern, WithinDocument):
        inner, ids = pattern.pattern, pattern.ids
    else:
        parts = pattern.patterns if isinstance(pattern, And) else [pattern]
        documents = [one for one in parts if isinstance(one, Document)]
        others = [one for one in parts if not isinstance(one, Document)]
        if len(documents) != 1 or documents[0].key_ids is not None:
            return pattern, None
        if not all(isinstance(one, DISTANCES) for one in others):
            return pattern, None
        inner, ids = _intersection(others), documents[0].ids
    runs = _runs(np.asarray(ids.values)[: shape.n])
    return (pattern, None) if runs is None else (inner, runs)


def _intersection(patterns: list[Any]) -> Pattern:
    joined: Pattern = Full()
    for i, one in enumerate(patterns):
        joined = joined & one if i else one
    return joined


def _runs(ids: Ints) -> list[slice] | None:
    """Each document's tokens; None if one of them has gaps. A negative id is no document."""
    starts = [0, *(np.flatnonzero(np.diff(ids)) + 1), len(ids)] if len(ids) else [0]
    runs = [slice(int(a), int(b)) for a, b in pairwise(starts)]
    runs = [run for run in runs if ids[run.start] >= 0]
    found = [int(ids[run.start]) for run in runs]
    return runs if len(set(found)) == len(found) else None
