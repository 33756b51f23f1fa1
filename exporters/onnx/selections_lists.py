"""What queries choose as the operator's lists: one list a query, one tile a listed block."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

import sparse_ref as sr

from .graph import Graph, Symbol
from .layouts import Layout
from .predicates import evaluate
from .selections_picks import best
from .selections_rules import Ranked, Scene, Some

ROWS = 16  # queries that are scored together


class Made(NamedTuple):
    """The operator's lists, and what they were made of."""

    lists: Layout
    chosen: Symbol  # int64 [B, lists, m, k], -1 past the number of them


def lists_of(
    g: Graph, scene: Scene, rule: Callable[[Some], Ranked], *, count: int, heads: int, lists: int
) -> Made:
    """Lists for `heads` query heads, from `lists` that the rule ranks by."""
    size, visible, triangular = scene.size, scene.visible, scene.visible == sr.Causal()
    in_run = size > 1 and not triangular

    def some(i: Symbol) -> tuple[Symbol, ...]:
        rows = (g.range(ROWS) + i * ROWS).op("Min", scene.q_len - 1)
        x = scene.some(rows)
        ranked = rule(x)
        picked = best(g, ranked.scores, ranked.seen, count, ranked.forced)
        if not in_run:
            return tuple(picked)
        first = (picked.indices * size).op("Unsqueeze", [4])
        tile = evaluate(g, visible, x.positions.reshape(-1, 1, 1), first + g.range(size))
        shape = g.op("Concat", picked.indices.op("Shape"), [size], axis=0)
        return (*picked, tile.op("Expand", shape).cast(TensorProto.UINT8))

    times = (scene.q_len + (ROWS - 1)) / ROWS
    indices, number, *tiles = g.each(times.reshape(), some)
    lead = times, scene.q.size(0), lists, ROWS  # the evaluator puts chunk after chunk: reshape

    def in_order(x: Symbol, *rest: Symbol) -> Symbol:
        """[chunks, B, lists, ROWS, ...] as [B, lists, m, ...]."""
        moved = x.reshape(*lead, *rest).swap(1, 2, 0, 3, *range(4, 4 + len(rest)))
        return moved.reshape(*lead[1:3], -1, *rest).cut(0, scene.q_len, axis=2)

    most = indices.size(-1)
    entries = g.range(indices.op("Size").reshape(1)) + 1
    indices, number = in_order(indices, most), in_order(number)
    if size == 1:
        ids, masks = indices * 0, g.lift(np.ones((1, 1, 1), dtype=np.uint8))
    elif triangular:  # a query sees the first keys of a block: all, or those not after it
        position = (g.range(scene.q_len) + scene.start).reshape(-1, 1)
        ids = (position - indices * size + 1).op("Max", 0).op("Min", size) % size
        lower = np.tri(size, size, -1, dtype=np.uint8)
        lower[0] = 1
        masks = g.lift(lower[:, None])
    else:
        ids, ones = in_order(entries, most), np.ones((1, 1, size), dtype=np.uint8)
        masks = g.op("Concat", ones, tiles[0].reshape(-1, 1, size), axis=0)
    spread = [_of_heads(x, heads, lists).cast(TensorProto.INT32) for x in (indices, number, ids)]
    return Made(Layout(spread[0], spread[1], spread[2], masks), indices)


def _of_heads(x: Symbol, heads: int, lists: int) -> Symbol:
    """A list for every query head, if there is one for each group of them."""
    if lists in (1, heads):
        return x
    return x.op("Gather", np.arange(heads) // (heads // lists), axis=1)
