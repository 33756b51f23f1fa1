"""The block lists of a pattern, computed inside the graph from the lengths of a run.

The predicate is called on Spans of Symbols, all blocks at once; tiles that stay open are grouped
into kinds, as `sparse_ref.layouts.kinds` does, and one tile of each kind is evaluated.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto

import sparse_ref as sr

from .alike import together
from .graph import Graph, Symbol
from .kinds import Grid, judged
from .predicates import counted

CHUNK = 32  # tiles evaluated together: their memory stays in the cache


class Layout(NamedTuple):
    """The selecting inputs of the operator, in its order."""

    block_indices: Symbol  # int32 [rows, layouts, Lq, KB]
    block_count: Symbol  # int32 [rows, layouts, Lq]
    tile_ids: Symbol
    tile_masks: Symbol  # uint8 [M, size, size]


def layout(
    g: Graph,
    patterns: list[sr.Pattern],
    size: int,
    q_len: Symbol,
    kv_len: Symbol,
    start: Symbol,
) -> Layout:
    """One layout for each of the patterns.

    Parameters
    ----------
    g : Graph
        Its `tables` are `Tables`.
    patterns : list of Pattern
        Of one head and one batch row, or with run-time inputs for batch rows.
    size : int
        Queries and keys of a block.
    q_len, kv_len : Symbol of one element
    start : Symbol [rows]
        Absolute position of the first query; rows is 1 or the batch.
    """
    grid = Grid.of(g, size, q_len, kv_len, start)
    g.tables.row = g.range(grid.rows).reshape(-1, 1, 1, 1)
    may, key = _judged(g, grid, patterns)
    count = may.int64.op("ReduceSum", [3], keepdims=0)
    longest = g.op("Concat", count.reshape(-1), [1], axis=0).op("ReduceMax", keepdims=1)
    indices = g.several("TopK", 2, may.int64 * (grid.nk - grid.j), longest, axis=3)[1]
    live = g.range(longest) < count.op("Unsqueeze", [3])
    listed = live.where(key.op("GatherElements", indices, axis=3), -1)
    # a first entry of its own, so that -1, which is full, comes first whatever is listed
    flat = g.op("Concat", [-1], listed.reshape(-1), axis=0)
    _, first, ids, _ = g.several("Unique", 4, flat, sorted=1)
    tiles = _tiles(g, grid, patterns, indices, first)
    ids = ids.cut(1, 2**62, axis=0).op("Reshape", indices.op("Shape"), allowzero=1)
    indices, count, ids = (x.cast(TensorProto.INT32) for x in (live.where(indices, -1), count, ids))
    return Layout(indices, count, ids, tiles)


def _judged(g: Graph, grid: Grid, patterns: list[sr.Pattern]) -> list[Symbol]:
    """What intervals say of every block, [rows, layouts, nq, nk]."""
    formulas = [partial(judged, g, grid, one, d, len(patterns)) for d, one in enumerate(patterns)]
    groups = [
        (members, [g.op("Expand", x, grid.shape(len(members))) for x in found])
        for members, found in together(g, formulas, lambda x, _: g.lift(x.reshape(1, -1, 1, 1)))
    ]
    if len(groups) == 1:
        return groups[0][1]
    stacked = [
        g.op("Concat", *several, axis=1) for several in zip(*(x for _, x in groups), strict=True)
    ]
    order = np.argsort([d for members, _ in groups for d in members])
    if (order == np.arange(len(order))).all():
        return stacked
    return [x.op("Gather", order, axis=1) for x in stacked]


def _counted(g: Graph, pattern: sr.Pattern, q: Symbol, k: Symbol) -> tuple[Symbol]:
    return (counted(g, pattern, q, k),)


def _tiles(
    g: Graph, grid: Grid, patterns: list[sr.Pattern], indices: Symbol, entry: Symbol
) -> Symbol:
    """All ones, then the tile of every other entry, evaluated as if tokens went on past the end.

    `entry` counts through `indices` [rows, layouts, nq, longest] from 1; 0 stands for all ones.
    """
    longest, many, height = indices.size(3), len(patterns), grid.nq.op("Max", 1)
    columns = g.op("Concat", [0], indices.reshape(-1), axis=0)
    last = entry.size(0) - 1

    def chunk(c: Symbol) -> tuple[Symbol]:
        at = entry.op("Gather", (g.range(CHUNK) + c * CHUNK).op("Min", last)).reshape(-1, 1, 1)
        column = columns.op("Gather", at)
        at = (at - 1).op("Max", 0) // longest
        i, layout = at % height, at // height
        row, which = layout // many, layout % many
        g.tables.row = row
        q = grid.start.reshape(-1).op("Gather", row) + i * grid.size
        q = q + np.arange(grid.size).reshape(1, -1, 1)
        k = column * grid.size + np.arange(grid.size).reshape(1, 1, -1)

        def own(numbers: Any, members: list[int]) -> Symbol:
            spread = np.full(many, numbers[0])  # others are computed too, and must be able to
            spread[members] = numbers
            return g.lift(spread).op("Gather", which)

        formulas = [partial(_counted, g, one, q, k) for one in patterns]
        first, *others = together(g, formulas, own)
        tiles = first[1][0]
        for members, (theirs,) in others:
            whose = g.lift(np.isin(np.arange(many), members)).op("Gather", which)
            tiles = whose.where(theirs, tiles)
        shape = g.vector(CHUNK, grid.size, grid.size)
        return (tiles.op("Expand", shape).cast(TensorProto.UINT8),)

    [tiles] = g.each((last // CHUNK + 1).reshape(), chunk)
    tiles = tiles.reshape(-1, grid.size, grid.size).cut(1, last + 1, axis=0)
    ones = np.ones((1, grid.size, grid.size), dtype=np.uint8)
    return g.op("Concat", ones, tiles, axis=0)
