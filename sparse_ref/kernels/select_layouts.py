"""Selections as the kernels read them: lists of blocks, or tiles where neighbours agree, or rows.

Block by block it is settled what a query sees of it (all, nothing, or that has to be asked key by
key), so that nothing as large as the pairs is made, but for rows.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Bools
from sparse_ref.heads import Problem
from sparse_ref.layouts import to_blocks
from sparse_ref.patterns import Pattern
from sparse_ref.patterns.spans import Span
from sparse_ref.selection import Selection

from . import by_blocks, shared
from ._jit import kernel
from .costs import Work, row_counts, seconds
from .orders import BLOCK
from .plans import Part
from .room import PAIR_BYTES, Room
from .rows import Layout as RowLayout
from .shared import FULL, SOME
from .shared import Layout as Listed
from .threads import run
from .tile_layouts import Layout, laid
from .vectors import claim, lanes_of

ASKED = 2**20  # pairs looked at together
TILES = 2**15  # distinct ones that are kept
TASK = 64  # rows claimed together
KERNELS = {"shared": shared.attend, "by blocks": by_blocks.attend}  # that read lists


def listable(given: Problem, batch: int) -> bool:
    """Whether each list of a batch row stands for itself, key positions being 0, 1, 2, ..."""
    chosen = given.pattern
    if not isinstance(chosen, Selection) or (chosen.always is not None and not chosen.counted):
        return False
    if chosen.query_block > 1 and chosen.key_block == 1:  # a long row would be listed many times
        return False
    return chosen.visible.for_batch(batch).heads == 1


def parts(
    given: Problem, batch: int, count: int, kind: np.dtype[Any], room: Room, *, together: bool
) -> Iterator[Part]:
    """A part for every list of a batch row, over `count` keys.

    `together`: heads that share a list may be computed in one, which has no gradients.
    """
    chosen: Any = given.pattern
    (h, m, d), visible = given.q.shape[1:], chosen.visible.for_batch(batch).at(0)
    start = int(given.frames[batch].q[0]) if m else 0
    each = h // chosen.indices.shape[1]
    near = min(each, h // given.k.shape[1])  # heads that share a list and a key/value head
    for i, table in enumerate(chosen.indices[min(batch, len(chosen.indices) - 1)]):
        heads = tuple(range(i * each, (i + 1) * each))
        each_query = table[np.arange(m) // chosen.query_block] if chosen.query_block > 1 else table
        mine = listed(each_query, chosen.key_block, visible, start, count, heads)
        ways = costs(mine, count, d, near if together else 0, kind.itemsize)
        name, pairs = min(ways, key=lambda way: ways[way]), int(mine.indptr[-1])
        layout: Any = in_tiles(mine, visible, start, count, ways[name], d, kind)
        if layout is not None:
            name = "tiles"
        elif name == "rows":
            room.take(PAIR_BYTES * pairs)
            layout = in_rows(mine)
        else:
            layout = mine
            room.take(sum(x.nbytes for x in mine if isinstance(x, np.ndarray)))
        yield Part(name, heads, "a selection", layout, pairs * each)


def costs(mine: Listed, n: int, d: int, near: int, itemsize: int) -> dict[str, float]:
    """Seconds of one head by rows, or with `near` heads together: a query or a block at a time."""
    m, pairs, lanes = len(mine.blocks), float(mine.indptr[-1]), lanes_of(8 * itemsize)
    counts = {"rows": row_counts(pairs, m, d)}
    if near:
        counts["shared"] = shared.work_of(pairs, m, near, lanes).counts(d)
    if near and mine.size > 1:
        counts["by blocks"] = by_blocks.work_of(mine, near, n, lanes).counts(d)
    return {name: seconds(one, itemsize) for name, one in counts.items()}


def listed(
    table: NDArray[np.int32],
    size: int,
    visible: Pattern,
    start: int,
    n: int,
    heads: tuple[int, ...],
) -> Listed:
    """What each query sees of the blocks it has in `table`."""
    m, k = table.shape
    seen, masks = np.zeros((m, k), dtype=np.uint8), [np.zeros((0, size), dtype=bool)]
    counts, step = np.zeros(m, dtype=np.int64), max(1, ASKED // max(k, 1))
    for first in range(0, m, step):
        some = table[first : first + step].astype(np.int64)
        q = start + np.arange(first, first + len(some))[:, None]
        inside = (some >= 0) & (some * size < n)
        if size == 1:
            seen[first : first + step] = inside & visible(q, some)
            counts[first : first + step] = seen[first : first + step].sum(axis=1)
            continue
        keys = np.minimum(size, n - some * size)
        answer = visible(Span(q, q), Span(some * size, some * size + size - 1))
        may, must = (np.broadcast_to(x, some.shape) & inside for x in (answer.may, answer.must))
        seen[first : first + step] = np.where(must, FULL, np.where(may, SOME, 0))
        counts[first : first + step] = np.where(must, keys, 0).sum(axis=1)
        row, column = np.nonzero(may & ~must)
        for cut in range(0, len(row), max(1, ASKED // size)):
            part = slice(cut, cut + max(1, ASKED // size))
            key = some[row[part], column[part]][:, None] * size + np.arange(size)
            mask = np.broadcast_to(visible(q[row[part]], key), key.shape) & (key < n)
            masks.append(mask)
            np.add.at(counts, first + row[part], mask.sum(axis=1))
    before = np.append(0, np.cumsum((seen == SOME).sum(axis=1)))[:-1]
    indptr = np.append(0, np.cumsum(counts))
    return Listed(table, size, seen, np.concatenate(masks), before, indptr, np.array(heads))


def in_rows(mine: Listed) -> RowLayout:
    """Key by key, as the row kernel reads them."""
    pairs, none = int(mine.indptr[-1]), np.zeros_like(mine.heads)
    indices = np.empty(pairs, dtype=np.int32)
    longest = int(np.diff(mine.indptr).max(initial=0))
    run(write_keys, mine, indices, work=4.0 * pairs)
    times = np.ones(pairs, dtype=np.int32)
    return RowLayout(mine.indptr[None], indices, times, mine.heads, none, longest)


@kernel
def write_keys(worker, counters, mine, indices):
    """The keys of every row, ascending."""
    m, size = len(mine.indptr) - 1, mine.size
    while True:
        task = claim(counters, worker)
        if task >= (m + TASK - 1) // TASK:
            break
        for t in range(task * TASK, min((task + 1) * TASK, m)):
            at, end, some = mine.indptr[t], mine.indptr[t + 1], mine.number[t]
            for i in range(mine.blocks.shape[1]):
                key = mine.blocks[t, i] * size
                if mine.seen[t, i] == FULL:
                    for j in range(min(size, end - at)):
                        indices[at] = key + j
                        at += 1
                elif mine.seen[t, i] == SOME:
                    for j in range(size):
                        if mine.masks[some, j]:
                            indices[at] = key + j
                            at += 1
                    some += 1


def in_tiles(
    mine: Listed, visible: Pattern, start: int, n: int, longest: float, d: int, kind: Any
) -> Layout | None:
    """Block by block, as the tile kernel reads them, if that takes less than `longest` seconds.

    It does where queries agree.
    """
    (m, _), wide, itemsize = mine.blocks.shape, mine.size // BLOCK, np.dtype(kind).itemsize
    if mine.size % BLOCK or not m or not mine.indptr[-1]:
        return None
    lanes, columns = lanes_of(8 * itemsize), -(-n // mine.size) * wide
    t, i = np.nonzero(mine.seen)
    code = t // BLOCK * columns + mine.blocks[t, i].astype(np.int64) * wide
    order = np.argsort(code, kind="stable")
    at, first = np.unique(code[order], return_index=True)
    area = float(len(at) * wide * BLOCK * BLOCK)
    work = Work(area, area, len(at) * wide * BLOCK / lanes, len(at) * wide, 0, m)
    if seconds(work.counts(d), itemsize) >= longest:
        return None
    queries = np.bitwise_or.reduceat(np.uint64(1) << (t % BLOCK).astype(np.uint64)[order], first)
    code, queries = (at[:, None] + np.arange(wide)).ravel(), np.repeat(queries, wide)
    see = to_blocks(visible, m, n, block_size=BLOCK, q_start=start)
    known = np.repeat(np.arange(see.indptr.shape[1] - 1), np.diff(see.indptr[0])) * columns
    known += see.indices
    place = np.searchsorted(known, code).clip(max=max(len(known) - 1, 0))
    there = known[place] == code
    code, queries, tile = code[there], queries[there], see.tile_ids[place[there]].astype(np.uint64)
    distinct, ids = np.unique(np.stack([queries, tile]), axis=1, return_inverse=True)
    if distinct.shape[1] > TILES:
        return None
    bits = (distinct[0][:, None] >> np.arange(BLOCK, dtype=np.uint64)) & np.uint64(1)
    shown = see.tile_masks[distinct[1].astype(np.int64)] * bits[:, :, None].astype(np.uint8)
    masks = np.concatenate([np.ones((1, BLOCK, BLOCK), dtype=np.uint8), shown])
    whole: Bools = np.asarray(masks.reshape(len(masks), -1).all(axis=1))
    number = np.where(whole[ids.ravel() + 1], 0, ids.ravel() + 1).astype(np.int32)
    per_row = np.bincount(code // columns, minlength=-(-m // BLOCK))
    indptr = np.append(0, np.cumsum(per_row))[None]
    none = np.zeros(0, dtype=np.int64)
    indices = (code % columns).astype(np.int32)
    heads = tuple(mine.heads.tolist())
    return laid(indptr, indices, number, masks, heads, lanes, none, none)
