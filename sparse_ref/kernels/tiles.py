"""Attention over blocks of queries and keys: the tile kernel.

Queries stand in the vector lanes: S^T = K Q^T and O^T = V^T P^T, so the maximum, the sum and the
rescaling of a row have no horizontal step, and K and V are read where they lie, unless a layout
says that the keys of a block lie scattered: then they are gathered first. A block of queries is a
few panels of `width` lanes. One worker owns a block of queries and takes its key blocks in
ascending order, so the bits depend on neither the number of workers nor the other batch rows.

A head may be computed in parts, each a layout with other pairs: a part that does not begin goes on
from the (out, lse) of those before, as an online softmax goes on from its last block.

A weight of 0 does not hide a NaN in a product, so a block of V that is not finite is multiplied
with its non-finite entries at 0; they are then added where a key that is seen has one.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import numpy as np

from ._jit import inlined, inner, kernel
from .arguments import LOG2E, added
from .copies import gather, hide, who
from .not_finite import all_finite, poison
from .scratch import scratch, scratch_size
from .tile_layouts import held, query_of
from .vectors import (
    add_product,
    claim,
    product,
    select,
    softcap,
    softmax,
    to_lanes,
    to_rows,
    width,
)  # fmt: skip

LN2 = 1 / LOG2E


@kernel
def attend(worker, counters, x, layout, how, slots, finite, copies, begins):
    """Compute blocks of queries until none is left.

    finite (b, g, blocks) is 0 where a block of V has not been asked, 1 where it is finite, else 2.
    `copies` holds K and V in the order of the slots; empty: they are copied block by block.
    """
    bq, bk, w, d, e = layout.block[0], layout.block[1], width(x.q), x.sizes[4], x.sizes[5]
    near = bk if len(layout.keys) and not len(copies.k) else 0
    flat = np.empty(scratch_size(bq // w, bk, near, d, e, w), x.out.dtype)
    work = scratch(flat, np.empty(bk, np.int64), bq // w, bk, near, d, e, w)
    attend_in(work, worker, counters, x, layout, how, slots, finite, copies, begins)


@inner
def attend_in(work, worker, counters, x, layout, how, slots, finite, copies, begins):
    """`attend` in memory that is given."""
    bq, heads, rows = layout.block[0], len(layout.heads), layout.indptr.shape[1] - 1
    while True:
        task = claim(counters, worker)
        if task >= len(slots.batch) * heads * rows:
            break
        at, which = task // (heads * rows), task // rows % heads
        row, head, batch = layout.turn[task % rows], layout.heads[which], slots.batch[at]
        entries = layout.indptr[layout.layout_of[which], row : row + 2]
        if entries[0] == entries[1] and not begins:
            continue
        first = row * bq
        poisoned = load_queries(x, layout, how, work, batch, head, first, begins)
        for entry in range(entries[0], entries[1]):
            poisoned |= key_block(
                x, layout, how, slots, finite, copies, work, at, head, first, entry
            )
        store(x, layout, work, poisoned, batch, head, first)


@inner
def load_queries(x, layout, how, work, batch, head, first, begins):
    """Scaled queries, turned into lanes (0 where there is none); the sums so far.

    What is not finite in `out` so far is kept apart: whether there was any.
    """
    w, d, e, m, q, rows = width(x.q), x.sizes[4], x.sizes[5], x.sizes[2], work.q, work.rows
    at, queries = batch * x.q_strides[0] + head * x.q_strides[1], x.q
    factor, most = x.out.dtype.type(how.factor), np.finfo(x.out.dtype).max
    count = held(layout, m, first)
    for slot in range(count):
        place = at + query_of(layout, m, first + slot) * x.q_strides[2]
        source, target = queries[place : place + d], rows[slot * d : (slot + 1) * d]
        for c in range(d):  # rows that lie apart are fetched together, so copied first
            target[c] = source[c] * factor
    turn(q, rows, count, d)
    work.m[:] = how.sinks[head]
    work.l[:] = 0 if how.sinks[head] == -np.inf else 1
    if begins:
        work.acc[:] = 0
        return False
    fine = True
    for slot in range(count):
        i = query_of(layout, m, first + slot)
        source, target = x.out[batch, head, i], rows[slot * e : (slot + 1) * e]
        for c in range(e):
            target[c] = source[c]
            fine &= abs(source[c]) <= most
        before = x.lse[batch, head, i]
        work.m[slot], work.l[slot] = before * LOG2E, 0 if before == -np.inf else 1
        if before != before:  # noqa: PLR0124 - NaN
            work.m[slot], work.l[slot] = -np.inf, np.nan
    if not fine:
        for slot in range(count):
            for c in range(e):
                value = rows[slot * e + c]
                if not abs(value) <= most:
                    work.poison[(slot // w * e + c) * w + slot % w] = value
                    rows[slot * e + c] = 0
    turn(work.acc, rows, count, e)
    return not fine


@inner
def turn(panels, rows, count, size):
    """Rows as lanes, panel by panel; 0 where there is none."""
    w = width(panels)
    whole = count // w * w
    if count * size < len(panels):
        panels[whole * size :] = 0
    for r in range(0, whole, w):
        to_lanes(panels, r * size, rows, r * size, size)
    for r in range(whole, count):
        start = whole * size + r % w
        source, target = rows[r * size : (r + 1) * size], panels[start : start + size * w : w]
        for c in range(size):
            target[c] = source[c]


@inner
def key_block(x, layout, how, slots, finite, copies, work, at, head, first, entry):
    """Take one block of keys into account; whether it has a value that is not finite."""
    d, e, group = x.sizes[4], x.sizes[5], head // (x.sizes[0] // x.sizes[1])
    bk, w = layout.block[1], width(x.q)
    batch, column, tile = slots.batch[at], layout.indices[entry], layout.tile_ids[entry]
    j0 = column * bk
    if len(layout.keys):
        keys = who(layout, slots, work, at, j0)
        k, k_at, k_row, v, v_at, v_row = work.k, 0, d, work.v, 0, e
        if len(copies.k):
            place = (at * x.sizes[1] + group) * len(layout.keys) + j0
            k, k_at, v, v_at = copies.k, place * d, copies.v, place * e
        else:
            gather(x, work.key, batch, group, slots.first[at], work.k, 0, work.v, 0)
    else:
        keys = min(bk, slots.length[at] - j0)
        k, k_at, k_row, v, v_row = x.k, 0, x.k_strides[2], x.v, x.v_strides[2]
        k_at = batch * x.k_strides[0] + group * x.k_strides[1] + (slots.first[at] + j0) * k_row
        v_at = batch * x.v_strides[0] + group * x.v_strides[1] + (slots.first[at] + j0) * v_row
    if keys <= 0:
        return False
    state = finite[batch, group, column]
    if state == 0:
        state = finite[batch, group, column] = all_finite(v, v_at, v_row, keys, e)
    for panel in range(len(work.m) // w):
        if query_of(layout, x.sizes[2], first + panel * w) < 0:
            break
        low = layout.spans[tile, panel, 0]
        seen = min(layout.spans[tile, panel, 1], keys) - low
        if seen <= 0:
            continue
        product(work.s, k, k_at + low * k_row, k_row, seen, work.q, panel * d * w, d)
        settle(x, layout, how, slots, work, at, head, first, panel, tile, j0, low, seen)
        to, height, values, at_v, row = panel * e * w, seen + seen % 2, v, v_at + low * v_row, v_row
        if state == 2:
            poison(work, v, at_v, v_row, seen, panel, e)
            values, at_v, row = work.clean, 0, e
        softmax(work.s, 0, height, work.m, work.l, work.shrink, panel * w)
        add_product(work.acc, to, values, at_v, row, e, work.s, seen, work.shrink, panel * w)
    return state == 2


@inlined
def settle(x, layout, how, slots, work, at, head, first, panel, tile, j0, low, seen):
    """Make scores of a panel's products: softcap, bias, who is seen; an even number of rows."""
    w, bk = width(work.s), layout.block[1]
    if how.softcap > 0:
        softcap(work.s, 0, seen, x.out.dtype.type(how.softcap))
    if len(how.bias) or len(how.slopes):
        add(x, layout, how, slots, work, at, head, first + panel * w, j0, low, seen)
    if tile:
        mask = ((tile * (len(work.m) // w) + panel) * bk + low) * w
        select(work.s, 0, seen, layout.masks, mask)
        if layout.counted[tile]:
            add_counts(layout, work, mask, seen * w)
    if len(layout.keys):
        hide(work, low, seen)
    if seen % 2:
        work.s[seen * w : (seen + 1) * w] = -np.inf


@inner
def add(x, layout, how, slots, work, at, head, first, j0, low, seen):
    """Bias and ALiBi, in units of log 2."""
    w, batch = width(work.s), slots.batch[at]
    for lane in range(w):
        i = query_of(layout, x.sizes[2], first + lane)
        if i < 0:
            break
        for j in range(seen):
            key = work.key[low + j] if len(layout.keys) else j0 + low + j
            if key >= 0:
                distance = slots.position[key] - slots.q_start - i
                more = added(how, batch, head, i, slots.first[at] + key, distance) * LOG2E
                work.s[j * w + lane] += work.s.dtype.type(more)


@inner
def add_counts(layout, work, mask, size):
    """Add log2 c where a key counts c times."""
    for i in range(size):
        times = layout.masks[mask + i]
        work.s[i] += work.s.dtype.type(layout.logs[max(times, 1)])


@inner
def store(x, layout, work, poisoned, batch, head, first):
    """Divide by the sums and turn lanes back into rows."""
    w, e, m, out, rows = width(work.s), x.sizes[5], x.sizes[2], x.out, work.rows
    for slot in range(len(work.l)):
        total = work.l[slot]
        work.shrink[slot] = total if total == 0 else 1 / total
    count = held(layout, m, first)
    for slot in range(0, count, w):
        to_rows(rows, slot * e, work.acc, slot * e, e, work.shrink, slot)
    for slot in range(count):
        i, panel, lane = query_of(layout, m, first + slot), slot // w, slot % w
        row, target = rows[slot * e : (slot + 1) * e], out[batch, head, i]
        if poisoned:
            for c in range(e):
                row[c] += work.poison[(panel * e + c) * w + lane]
        for c in range(e):
            target[c] = row[c]
        x.lse[batch, head, i] = (work.m[slot] + np.log2(work.l[slot])) * LN2
    if poisoned:
        work.poison[:] = 0
