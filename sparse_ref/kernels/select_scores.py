"""Scoring and choosing, a panel of queries at a time: scores never leave the worker's scratch.

A task is a panel of queries of one list. Queries are in the lanes, keys in the rows: a product
answers the scores of a block of keys for all of them, which are summed over index heads, or
pooled into one score a block, lane by lane.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Ints

from ._jit import exact, inner, kernel, owner
from .select_picks import choose, code
from .vectors import claim, product, width

ROWS = 256  # keys of a product


class Scratch(NamedTuple):
    """What a worker needs."""

    q: NDArray[Any]  # (heads of a list, d, width)
    tile: NDArray[Any]  # (ROWS, width)
    scores: NDArray[Any]  # (candidates, width)
    counts: Ints  # (candidates, width): keys that are seen
    line: NDArray[Any]  # a query's scores,
    bits: NDArray[Any]  # and the same memory as integers
    codes: NDArray[Any]
    rest: NDArray[Any]
    keys: Ints


@owner
def scratch(x, see, candidates, pooled):
    """Room for `candidates` keys or blocks."""
    d, w = x.sizes[4], width(x.q)
    heads = x.sizes[0] if len(x.weights) else 1
    line, kind = np.empty(candidates, x.q.dtype), x.codes.dtype
    return Scratch(
        np.zeros(heads * d * w, x.q.dtype), np.empty(ROWS * w, x.q.dtype),
        np.empty(candidates * w, x.q.dtype), np.empty(candidates * w if pooled else 0, np.int64),
        line, line.view(kind), np.empty(candidates, kind), np.empty(candidates, kind),
        np.empty(candidates, np.int64),
    )  # fmt: skip


@kernel
def by_keys(worker, counters, x, see):
    """Choose keys until no panel is left."""
    w, panels = width(x.q), len(see.indptr) - 1
    work = scratch(x, see, see.most * see.size, False)
    while True:
        task = claim(counters, worker)
        if task >= len(x.out) * panels:
            break
        one, panel = task // panels, panels - 1 - task % panels  # the longest first
        load_queries(x, work, one, panel * w)
        first, last = see.indptr[panel : panel + 2]
        for entry in range(first, last):
            score_keys(x, see, work, one, entry, entry - first, panel * w)
        for lane in range(min(w, x.sizes[2] - panel * w)):
            found = listed_keys(x, see, work, first, last, lane)
            pick(x, work, found, x.out[one, panel * w + lane])


@kernel
def by_blocks(worker, counters, x, see):
    """Choose blocks until no panel is left."""
    w, panels = width(x.q), len(see.indptr) - 1
    work = scratch(x, see, see.most, True)
    while True:
        task = claim(counters, worker)
        if task >= len(x.out) * panels:
            break
        one, panel = task // panels, panels - 1 - task % panels
        load_queries(x, work, one, panel * w)
        first, last = see.indptr[panel : panel + 2]
        entry = first
        while entry < last:
            if see.mean and see.tile_ids[entry] == 0:
                entry = score_sums(x, see, work, one, entry, first, last)
            else:
                pool_keys(x, see, work, one, entry, entry - first)
                entry += 1
        for lane in range(min(w, x.sizes[2] - panel * w)):
            found = listed_blocks(x, see, work, first, last, lane, panel * w + lane)
            pick(x, work, found, x.out[one, panel * w + lane])


@inner
def load_queries(x, work, one, t):
    """The queries of a panel, each in its lane; all heads of them if they are weighted."""
    d, w, m, q = x.sizes[4], width(x.q), x.sizes[2], work.q
    heads = x.sizes[0] if len(x.weights) else 1
    for head in range(heads):
        for lane in range(w):
            at = (one + head) * x.q_strides[0] + (t + lane) * x.q_strides[1]
            for c in range(d):
                q[(head * d + c) * w + lane] = x.q[at + c] if t + lane < m else x.q.dtype.type(0)


@inner
def score_keys(x, see, work, one, entry, place, t):
    """The scores of a block of keys, which are to be chosen one by one."""
    w, d, size, key = width(x.q), x.sizes[4], see.size, see.indices[entry] * see.size
    rows = min(size, x.sizes[3] - key)
    to = work.scores[place * size * w : (place * size + rows) * w]
    if not len(x.weights):
        at = one // (x.sizes[0] // x.sizes[1]) * x.k_strides[0] + key * x.k_strides[1]
        product(to, x.k, at, x.k_strides[1], rows, work.q, 0, d)
        return
    to[:] = 0
    tile, last = work.tile, x.sizes[2] - 1
    for head in range(x.sizes[0]):
        product(tile, x.k, key * x.k_strides[1], x.k_strides[1], rows, work.q, head * d * w, d)
        for lane in range(w):
            work.line[lane] = x.weights[min(t + lane, last), head]
        add_relu(to, tile, work.line, rows)


@inner
def add_relu(to, tile, weights, rows):
    """Add weight * ReLU(score), lane by lane; a NaN stays one."""
    w = width(to)
    for j in range(rows):
        for lane in range(w):
            score = tile[j * w + lane]
            to[j * w + lane] += weights[lane] * (tile.dtype.type(0) if score < 0 else score)


@inner
def score_sums(x, see, work, one, entry, first, last):
    """The mean scores of whole blocks, from the sums of their keys; the entry after them."""
    w, d, size, stop = width(x.q), x.sizes[4], see.size, entry + 1
    while (
        stop < last and see.tile_ids[stop] == 0 and see.indices[stop] == see.indices[stop - 1] + 1
    ):
        stop += 1
    blocks = (x.sizes[3] + size - 1) // size
    at = one // (x.sizes[0] // x.sizes[1]) * blocks * d + see.indices[entry] * d
    to = work.scores[(entry - first) * w : (stop - first) * w]
    product(to, x.sums, at, d, stop - entry, work.q, 0, d)
    for i in range(entry, stop):
        keys = min(size, x.sizes[3] - see.indices[i] * size)
        for lane in range((i - first) * w, (i - first + 1) * w):
            work.counts[lane] = keys
        divide(work.scores[(i - first) * w : (i - first + 1) * w], work.counts[(i - first) * w :])
    return stop


@inner
def pool_keys(x, see, work, one, entry, place):
    """The mean or greatest score of a block, of the keys that each query sees."""
    w, d, size, key = width(x.q), x.sizes[4], see.size, see.indices[entry] * see.size
    n, tile_id, tile = x.sizes[3], see.tile_ids[entry], work.tile
    scores, counts = (
        work.scores[place * w : (place + 1) * w],
        work.counts[place * w : (place + 1) * w],
    )
    scores[:], counts[:] = x.q.dtype.type(0) if see.mean else x.q.dtype.type(-np.inf), 0
    head = one // (x.sizes[0] // x.sizes[1]) * x.k_strides[0]
    for start in range(0, min(size, n - key), ROWS):
        rows = min(ROWS, min(size, n - key) - start)
        at = head + (key + start) * x.k_strides[1]
        product(tile, x.k, at, x.k_strides[1], rows, work.q, 0, d)
        if tile_id == 0 and not see.mean:
            for j in range(rows):
                for lane in range(w):
                    score = tile[j * w + lane]
                    better = (score > scores[lane]) | (score != score)  # noqa: PLR0124
                    scores[lane] = score if better else scores[lane]
            counts[:] = rows
        else:
            pool_some(tile, see.masks[tile_id, start : start + rows], scores, counts, see.mean)
    if see.mean:
        divide(scores, counts)


@exact
def divide(sums, counts):
    """Sums become means: equal ones stay equal, whatever they were divided by."""
    for lane in range(len(sums)):
        sums[lane] /= sums.dtype.type(max(counts[lane], 1))


@inner
def pool_some(tile, mask, scores, counts, mean):
    """Pool the scores of the keys that the mask shows."""
    w = width(tile)
    for j in range(len(mask)):
        for lane in range(w):
            if mask[j, lane]:
                score = tile[j * w + lane]
                counts[lane] += 1
                if mean:
                    scores[lane] += score
                elif score > scores[lane] or score != score:  # noqa: PLR0124
                    scores[lane] = score


@inner
def listed_keys(x, see, work, first, last, lane):
    """The keys that one query sees and their scores, in order; how many there are."""
    w, size, found = width(x.q), see.size, 0
    line, keys, scores = work.line, work.keys, work.scores
    for entry in range(first, last):
        key, tile_id = see.indices[entry] * size, see.tile_ids[entry]
        at = (entry - first) * size * w + lane
        for j in range(min(size, x.sizes[3] - key)):
            if tile_id == 0 or see.masks[tile_id, j, lane]:
                line[found], keys[found] = scores[at + j * w], key + j
                found += 1
    return code_line(work, found)


@inner
def listed_blocks(x, see, work, first, last, lane, t):
    """The blocks that one query sees a key of, and their scores; how many there are."""
    w, found, top = width(x.q), 0, np.iinfo(work.codes.dtype).max
    own = (see.q_start + t) // see.size
    for entry in range(first, last):
        at = (entry - first) * w + lane
        if work.counts[at] > 0:
            work.line[found], work.keys[found] = work.scores[at], see.indices[entry]
            found += 1
    code_line(work, found)
    for i in range(found):
        if own - see.local < work.keys[i] <= own:
            work.codes[i] = top
    return found


@inner
def code_line(work, found):
    """The integers that a query's scores are compared as."""
    top = np.iinfo(work.codes.dtype).max
    for i in range(found):
        work.codes[i] = code(work.line[i], work.bits[i], top)
    return found


@inner
def pick(x, work, found, out):
    """The best of what one query sees, into its row."""
    choose(work.codes, work.keys, work.rest, found, len(out), out)
