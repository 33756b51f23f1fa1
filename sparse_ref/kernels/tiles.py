"""Attention over blocks of queries and keys: the tile kernel.

Queries stand in the vector lanes: S^T = K Q^T and O^T = V^T P^T, so the maximum, the sum and the
rescaling of a row have no horizontal step, and K and V are read where they lie. A block of queries
is a few panels of `width` lanes. One worker owns a block of queries and takes its key blocks in
ascending order, so the bits depend on neither the number of workers nor the other batch rows.

A weight of 0 does not hide a NaN in a product, so a block of V that is not finite is multiplied
with its non-finite entries at 0; they are then added where a key that is seen has one.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Floats, Ints

from ._jit import kernel
from .arguments import LOG2E, added
from .vectors import add_product, claim, product, select, softcap, softmax, width

LN2 = math.log(2)


class Layout(NamedTuple):
    """Blocks as the tile kernel reads them."""

    indptr: Ints  # (layouts, rows + 1)
    indices: NDArray[np.int32]
    tile_ids: NDArray[np.int32]
    block: Ints  # bq, bk
    masks: NDArray[np.uint8]  # flat (tiles, panels, bk, width): lanes are queries
    spans: Ints  # (tiles, panels, 2): first and last + 1 key that any lane sees
    counted: NDArray[np.bool_]  # (tiles,): whether a key counts more than once
    heads: Ints  # the query heads that are computed
    layout_of: Ints  # of every one of them
    logs: Floats  # log2 of 0..255


class Scratch(NamedTuple):
    """What one worker needs for a block of queries, one panel after another."""

    q: NDArray[Any]  # (panels, d, width)
    s: NDArray[Any]  # (bk, width)
    acc: NDArray[Any]  # (panels, e, width)
    m: NDArray[Any]  # (bq,)
    l: NDArray[Any]  # noqa: E741
    shrink: NDArray[Any]
    clean: NDArray[Any]  # (bk, e): a block of V without its non-finite entries
    poison: NDArray[Any]  # (panels, e, width): what they add


@kernel
def attend(worker, counters, x, layout, how, slots, finite):
    """Compute blocks of queries until none is left.

    finite (b, g, blocks) is 0 where a block of V has not been asked, 1 where it is finite, else 2.
    """
    m, d, e = x.sizes[2], x.sizes[4], x.sizes[5]
    bq, bk = layout.block
    w, heads, rows = width(x.q), len(layout.heads), layout.indptr.shape[1] - 1
    kind = x.out.dtype
    panels = bq // w
    work = Scratch(
        np.empty(panels * d * w, kind), np.empty((bk + 1) * w, kind),
        np.empty(panels * e * w, kind), np.empty(bq, kind), np.empty(bq, kind), np.empty(bq, kind),
        np.empty(bk * e, kind), np.zeros(panels * e * w, kind),
    )  # fmt: skip
    while True:
        task = claim(counters, worker)
        if task >= len(slots.batch) * heads * rows:
            break
        at, head, row = task // (heads * rows), layout.heads[task // rows % heads], task % rows
        first = row * bq
        count = min(bq, m - first)
        load_queries(x, how, work, slots.batch[at], head, first, count)
        entries = layout.indptr[layout.layout_of[task // rows % heads]]
        poisoned = False
        for entry in range(entries[row], entries[row + 1]):
            poisoned |= key_block(x, layout, how, slots, finite, work, at, head, first, entry)
        store(x, work, poisoned, slots.batch[at], head, first, count)


@kernel
def load_queries(x, how, work, batch, head, first, count):
    """Scaled queries, turned into lanes (0 past the last); empty sums, or the sink's."""
    w, d, queries, q, row = width(x.q), x.sizes[4], x.q, work.q, x.q_strides[2]
    at = batch * x.q_strides[0] + head * x.q_strides[1] + first * row
    factor = x.out.dtype.type(how.factor)
    q[:] = 0
    for i in range(count):
        panel, lane = i // w, i % w
        source = queries[at + i * row : at + i * row + d]
        target = q[panel * d * w + lane : (panel + 1) * d * w : w]
        for c in range(d):
            target[c] = source[c] * factor
    work.acc[:] = 0
    work.m[:] = how.sinks[head]
    work.l[:] = 0 if how.sinks[head] == -np.inf else 1


@kernel
def key_block(x, layout, how, slots, finite, work, at, head, first, entry):  # fmt: skip
    """Take one block of keys into account; whether it has a value that is not finite."""
    d, e, group = x.sizes[4], x.sizes[5], head // (x.sizes[0] // x.sizes[1])
    bk, w, panels = layout.block[1], width(x.q), len(work.m) // width(x.q)
    batch, column, tile = slots.batch[at], layout.indices[entry], layout.tile_ids[entry]
    j0 = column * bk
    keys = min(bk, slots.length[at] - j0)
    if keys <= 0:
        return False
    slot = slots.first[at] + j0
    k_at = batch * x.k_strides[0] + group * x.k_strides[1] + slot * x.k_strides[2]
    v_at = batch * x.v_strides[0] + group * x.v_strides[1] + slot * x.v_strides[2]
    k_row, v_row = x.k_strides[2], x.v_strides[2]
    state = finite[batch, group, column]
    if state == 0:
        state = finite[batch, group, column] = all_finite(x.v, v_at, v_row, keys, e)
    for panel in range(panels):
        low = layout.spans[tile, panel, 0]
        seen = min(layout.spans[tile, panel, 1], keys) - low
        if seen <= 0:
            continue
        product(work.s, x.k, k_at + low * k_row, k_row, seen, work.q, panel * d * w, d)
        if how.softcap > 0:
            softcap(work.s, 0, seen, x.out.dtype.type(how.softcap))
        if len(how.bias) or len(how.slopes):
            add(how, slots, work, at, head, first + panel * w, x.sizes[2], j0 + low, seen)
        if tile:
            mask = ((tile * panels + panel) * bk + low) * w
            select(work.s, 0, seen, layout.masks, mask)
            if layout.counted[tile]:
                add_counts(layout, work, mask, seen * w)
        if seen % 2:
            work.s[seen * w : (seen + 1) * w] = -np.inf
        if state == 2:
            poison(x, work, v_at + low * v_row, seen, panel)
        softmax(work.s, 0, seen + seen % 2, work.m, work.l, work.shrink, panel * w)
        to = panel * e * w
        if state == 2:
            add_product(work.acc, to, work.clean, 0, e, e, work.s, seen, work.shrink, panel * w)
        else:
            at_ = v_at + low * v_row
            add_product(work.acc, to, x.v, at_, v_row, e, work.s, seen, work.shrink, panel * w)
    return state == 2


@kernel
def all_finite(v, at, row, keys, e):
    """1 if a block of V is finite, else 2."""
    most, fine = np.finfo(v.dtype).max, True
    for j in range(keys):
        value = v[at + j * row : at + j * row + e]
        for c in range(e):
            fine &= abs(value[c]) <= most
    return np.uint8(1 if fine else 2)


@kernel
def add(how, slots, work, at, head, first, m, j0, seen):
    """Bias and ALiBi, in units of log 2."""
    w, batch = width(work.s), slots.batch[at]
    for j in range(seen):
        slot = slots.first[at] + j0 + j
        for lane in range(w):
            i = min(first + lane, m - 1)  # lanes past the last query read what the last one does
            distance = slots.position[j0 + j] - slots.q_start - i
            more = added(how, batch, head, i, slot, distance) * LOG2E
            work.s[j * w + lane] += work.s.dtype.type(more)


@kernel
def add_counts(layout, work, mask, size):
    """Add log2 c where a key counts c times."""
    for i in range(size):
        times = layout.masks[mask + i]
        work.s[i] += work.s.dtype.type(layout.logs[max(times, 1)])


@kernel
def poison(x, work, v_at, seen, panel):
    """The block of V without what is not finite, which is kept for the lanes that see it."""
    w, e = width(work.s), x.sizes[5]
    most = np.finfo(x.v.dtype).max
    for j in range(seen):
        for c in range(e):
            value = x.v[v_at + j * x.v_strides[2] + c]
            fine = abs(value) <= most
            work.clean[j * e + c] = value if fine else 0
            if not fine:
                for lane in range(w):
                    if work.s[j * w + lane] != -np.inf:
                        work.poison[(panel * e + c) * w + lane] += value


@kernel
def store(x, work, poisoned, batch, head, first, count):
    """Divide by the sums and turn lanes back into rows."""
    w, e, acc, out = width(work.s), x.sizes[5], work.acc, x.out
    for i in range(count):
        panel, lane = i // w, i % w
        total = work.l[i]
        share = total if total == 0 else 1 / total
        source = acc[panel * e * w + lane : (panel + 1) * e * w : w]
        target = out[batch, head, first + i]
        for c in range(e):
            target[c] = source[c] * share
        if poisoned:
            for c in range(e):
                x.out[batch, head, first + i, c] += work.poison[(panel * e + c) * w + lane]
        x.lse[batch, head, first + i] = (work.m[i] + np.log2(total)) * LN2
    if poisoned:
        work.poison[:] = 0
