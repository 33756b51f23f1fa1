"""Pick the best in a graph: as `sparse_ref.selection.picks`, with the order of ties written out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .graph import Graph, Symbol


class Picked(NamedTuple):
    """What every row keeps: candidates in ascending order, -1 past its number of them."""

    indices: Symbol  # int64 [..., k]
    number: Symbol  # int64 [...]


def best(
    g: Graph, scores: Symbol, seen: Symbol, count: int, forced: Symbol | None = None
) -> Picked:
    """The `count` greatest scores [..., c], those `forced` before all others; ties to the smaller.

    `seen` and `forced` broadcast to the scores. TopK answers the value of the last that is kept;
    what is above it is kept, and of what equals it the first ones, as many as there is room for:
    a second TopK, over integers that are all different, so that no runtime's order of ties matters.
    NaN and the infinities rank with the greatest and the least finite number.
    """
    most = float(np.finfo(g.real).max)
    ranked = scores.op("IsNaN").where(most, scores.op("Clip", -most, most))
    if forced is not None:
        ranked = forced.where(np.inf, ranked)
    ranked = seen.where(ranked, -np.inf)
    number = ranked.size(-1)
    keep = number.op("Min", [count])
    values, _ = g.several("TopK", 2, ranked, keep, axis=-1)
    least = values.op("ReduceMin", [-1])
    fall = number - g.range(number)  # number, ..., 2, 1
    order = (ranked > least).where(fall + number, (ranked >= least).where(fall, 0))
    places, at = g.several("TopK", 2, seen.where(order, 0), keep, axis=-1)
    taken = places > 0
    ascending, _ = g.several("TopK", 2, taken.where(at, number), keep, axis=-1, largest=0)
    indices = (ascending < number).where(ascending, -1)
    return Picked(indices, taken.int64.op("ReduceSum", [-1], keepdims=0))
