"""Pick and force: which candidates a query keeps, given their scores.

Scores are (..., rows, c), `seen` and `forced` broadcast to them. Nothing that is not seen is ever
picked. Ties go to the smaller index. A NaN ranks above all numbers, so that attention shows it.
"""

from __future__ import annotations

import numpy as np

from sparse_ref._arrays import Bools, Floats, Ints


def best(scores: Floats, seen: Bools, count: int, forced: Bools | bool = False) -> Bools:
    """The `count` greatest scores, those `forced` before all others; fewer where fewer are seen."""
    order = ranked(scores, seen, forced)
    chosen = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(chosen, order[..., :count], True, axis=-1)
    return chosen & seen


def most(probabilities: Floats, seen: Bools, mass: float) -> Bools:
    """The fewest greatest whose sum reaches `mass`: each one before which the sum is below it."""
    order = ranked(probabilities, seen)
    ordered = np.take_along_axis(probabilities, order, axis=-1)
    before = np.zeros(ordered.shape)
    np.cumsum(ordered[..., :-1], axis=-1, out=before[..., 1:])
    chosen = np.zeros(probabilities.shape, dtype=bool)
    np.put_along_axis(chosen, order, (before < mass) | np.isnan(before), axis=-1)
    return chosen & seen


def ranked(scores: Floats, seen: Bools, forced: Bools | bool = False) -> Ints:
    """The candidates of every row from first to last choice."""
    keys = [-scores, ~np.isnan(scores), ~np.asarray(forced), ~np.asarray(seen)]
    order: Ints = np.lexsort([np.broadcast_to(key, scores.shape) for key in keys], axis=-1)
    return order


def nearest(queries: Ints, blocks: Ints, size: int, local: int) -> Bools:
    """The query's own block and the `local` - 1 before it, (rows, blocks)."""
    own = (queries // size)[:, None]
    return (own - local < blocks) & (blocks <= own)
