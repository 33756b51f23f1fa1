"""A plan that a caller hands in is looked through before a kernel follows its indices.

Compiled code does not notice an index out of bounds. Nothing here asks whether a plan computes its
pattern, only that it reads and writes inside the arrays of its own shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import lists, rows, tile_layouts
from .plans import Part, Plan
from .vectors import lanes_of


def validate(plan: Plan) -> None:
    """Refuse a plan whose layouts point out of their arrays."""
    for part in plan.parts:
        if not isinstance(part, Part) or part.kernel not in _RULES:
            raise ValueError(f"plan must hold parts of {', '.join(_RULES)}, got {part!r}")
        kind, rules = _RULES[part.kernel]
        if not isinstance(part.layout, kind):
            raise ValueError(f"plan must hold a layout for {part.kernel}, got {part.layout!r}")
        try:
            failed = [rule for rule, holds in rules(plan, part.layout).items() if not holds]
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            failed = [f"arrays of the right shapes ({error})"]
        if failed:
            raise ValueError(f"plan must hold {failed[0]} for {part.kernel}, got a changed layout")


def _tiles(plan: Plan, x: Any) -> dict[str, Any]:
    (bq, bk), (layouts, rows_) = (int(size) for size in x.block), x.indptr.shape
    w, count, blocks = lanes_of(8 * plan.dtype.itemsize), len(x.spans), rows_ - 1
    queries = x.queries[x.queries >= 0]
    return {
        "blocks of whole panels": bq > 0 and bk > 0 and bq % w == 0,
        "ascending indptr": _ascends(x.indptr, len(x.indices)),
        "block columns of keys": _within(x.indices, 0, _blocks(x.keys, plan.kv_len, bk)),
        "a tile for every block": len(x.tile_ids) == len(x.indices),
        "tile_ids of tiles": _within(x.tile_ids, 0, count),
        "masks of tiles": len(x.masks) == count * bq * bk and len(x.counted) == count,
        "spans of a tile": x.spans.shape == (count, bq // w, 2) and _within(x.spans, 0, bk + 1),
        "heads": _heads(plan, x, layouts),
        "logs of a byte": len(x.logs) == 256,
        "a block row for every query": blocks == _blocks(x.queries, plan.q_len, bq),
        "queries": _within(x.queries, -1, plan.q_len) and _distinct(queries),
        "keys": _within(x.keys, -1, plan.kv_len),
        "turn of all block rows": len(x.turn) == blocks
        and _within(x.turn, 0, blocks)
        and _distinct(x.turn),
    }


def _rows(plan: Plan, x: Any) -> dict[str, Any]:
    layouts, ends = x.indptr.shape
    return {
        "a row for every query": ends == plan.q_len + 1,
        "ascending indptr": _ascends(x.indptr, len(x.indices)),
        "indices of keys": _within(x.indices, 0, plan.kv_len),
        "times of keys": len(x.times) == len(x.indices),
        "heads": _heads(plan, x, layouts),
        "the longest row": x.longest >= np.diff(x.indptr, axis=1).max(initial=0),
    }


def _decode(plan: Plan, x: Any) -> dict[str, Any]:
    lists, same = len(x.indptr) - 1, np.ones(len(x.runs), dtype=bool)
    same[x.indptr[(x.indptr < len(x.runs)) & (x.indptr >= 0)]] = False  # as the run before
    start, stop = x.runs[:, 0], x.runs[:, 1]
    return {
        "ascending indptr": _ascends(x.indptr[None], len(x.runs)) and x.indptr[0] == 0,
        "runs of keys": x.runs.shape[1] == 3 and _within(x.runs[:, :2], 0, plan.kv_len + 1),
        "runs that ascend": (start < stop).all() and (start[1:] >= stop[:-1])[same[1:]].all(),
        "runs that count": _within(x.runs[:, 2], 1, 2**31),
        "lists": x.list_of.shape == (1, plan.heads)
        and _within(x.list_of, 0, lists - plan.q_len + 1)
        and x.read_of.shape == (1, plan.kv_heads)
        and _within(x.read_of, 0, lists),
        "positions": x.position.shape == (1, plan.kv_len) and x.q_start.shape == (1,),
    }


_RULES: dict[str, tuple[type, Callable[[Plan, Any], dict[str, Any]]]] = {
    "tiles": (tile_layouts.Layout, _tiles),
    "rows": (rows.Layout, _rows),
    "decode": (lists.Layout, _decode),
}


def _within(x: Any, low: int, high: int) -> bool:
    return not x.size or (int(x.min()) >= low and int(x.max()) < high)


def _ascends(indptr: Any, count: int) -> bool:
    return _within(indptr, 0, count + 1) and bool((np.diff(indptr, axis=1) >= 0).all())


def _distinct(x: Any) -> bool:
    return len(np.unique(x)) == len(x)


def _blocks(order: Any, length: int, size: int) -> int:
    """How many blocks there are of slots in an order; it may be empty: as they are."""
    return len(order) // size if len(order) else -(-length // size)


def _heads(plan: Plan, x: Any, layouts: int) -> bool:
    return (
        len(x.heads) == len(x.layout_of)
        and _within(x.heads, 0, plan.heads)
        and _distinct(x.heads)
        and _within(x.layout_of, 0, layouts)
    )
