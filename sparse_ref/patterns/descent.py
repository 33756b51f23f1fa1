"""From a predicate to its non-empty blocks, by descending a quadtree of blocks.

The predicate is called on the spans of all blocks of a level at once; empty blocks end there, full
ones are passed on unasked, the rest are split in four. The cost follows the number of blocks that
are not empty, never q_len * kv_len.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from sparse_ref._arrays import Bools, Ints

from .relation import KeyRows
from .spans import Span, Tri

Predicate = Callable[[Any, Any], Any]
CHUNK = 2**21  # elements evaluated at a time


class Cover(NamedTuple):
    """Blocks that may hold an allowed pair, sorted by row, then column; `full`: all pairs do."""

    row: Ints
    column: Ints
    full: Bools


def cover(predicate: Predicate, q: Ints, k: Ints, block: tuple[int, int]) -> Cover:
    """The blocks of the positions q (m,) by k (n,) that the predicate may touch."""
    row = column = np.zeros(min(len(q), len(k), 1), dtype=np.int64)
    full = np.zeros(len(row), dtype=bool)
    if not len(row):
        return Cover(row, column, full)
    queries, keys = _pyramid(q, block[0]), _pyramid(k, block[1])
    height = max(len(queries), len(keys))
    queries, keys = (side + [side[-1]] * (height - len(side)) for side in (queries, keys))
    for level in reversed(range(height)):
        if level < height - 1:
            row, column, full = _split(row, column, full)
            inside = (row < len(queries[level].lo)) & (column < len(keys[level].lo))
            row, column, full = row[inside], column[inside], full[inside]
        must, may = _ask(predicate, queries[level], keys[level], row[~full], column[~full])
        keep = np.ones(len(row), dtype=bool)
        keep[~full] = may
        full[~full] = must & may
        row, column, full = row[keep], column[keep], full[keep]
    order = np.lexsort((column, row))
    return Cover(row[order], column[order], full[order])


def rows(predicate: Predicate, q: Ints, k: Ints, block: tuple[int, int] = (64, 64)) -> KeyRows:
    """The allowed key slots of every query, by block: full ones whole, the rest evaluated."""
    found: list[tuple[Ints, Ints]] = [(np.zeros(0, np.int64),) * 2]
    for part, tiles in evaluate(predicate, q, k, block, cover(predicate, q, k, block)):
        at, i, j = np.nonzero(tiles)
        found.append((part.row[at] * block[0] + i, part.column[at] * block[1] + j))
    row, key = (np.concatenate(side) for side in zip(*found, strict=True))
    order = np.argsort(row, kind="stable")  # blocks ascend already, and keys within them
    return KeyRows.of(row[order], key[order], len(q))


def evaluate(
    predicate: Predicate, q: Ints, k: Ints, block: tuple[int, int], blocks: Cover
) -> Iterator[tuple[Cover, Bools]]:
    """The blocks with their token masks (part, bq, bk), false past the last query and key."""
    i, j = np.arange(block[0])[:, None], np.arange(block[1])[None, :]
    size = max(1, CHUNK // (block[0] * block[1]))
    for start in range(0, len(blocks.row), size):
        cut = slice(start, start + size)
        part = Cover(blocks.row[cut], blocks.column[cut], blocks.full[cut])
        at_q = part.row[:, None, None] * block[0] + i
        at_k = part.column[:, None, None] * block[1] + j
        inside = (at_q < len(q)) & (at_k < len(k))
        at_q, at_k = at_q.clip(max=len(q) - 1), at_k.clip(max=len(k) - 1)
        tiles = part.full[:, None, None] & inside
        open_ = ~part.full
        tiles[open_] = inside[open_] & predicate(q[at_q[open_]], k[at_k[open_]])
        yield part, tiles


def _pyramid(x: Ints, size: int) -> list[Span]:
    """Spans of blocks of `size`, 2 * size, 4 * size, ... positions, the last one over them all."""
    starts = np.arange(0, len(x), size)
    levels = [Span(np.minimum.reduceat(x, starts), np.maximum.reduceat(x, starts))]
    while len(levels[-1].lo) > 1:
        pairs = np.arange(0, len(levels[-1].lo), 2)
        lo, hi = levels[-1].lo, levels[-1].hi
        levels.append(Span(np.minimum.reduceat(lo, pairs), np.maximum.reduceat(hi, pairs)))
    return levels


def _split(row: Ints, column: Ints, full: Bools) -> tuple[Ints, Ints, Bools]:
    child = np.arange(4)
    row, column = 2 * row[:, None] + child // 2, 2 * column[:, None] + child % 2
    return row.ravel(), column.ravel(), np.repeat(full, 4)


def _ask(
    predicate: Predicate, queries: Span, keys: Span, row: Ints, column: Ints
) -> tuple[Bools, Bools]:
    spans = Span(queries.lo[row], queries.hi[row]), Span(keys.lo[column], keys.hi[column])
    verdict: Tri = predicate(*spans)
    return np.broadcast_to(verdict.must, row.shape), np.broadcast_to(verdict.may, row.shape)
