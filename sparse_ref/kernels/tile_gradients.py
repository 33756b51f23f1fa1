"""Gradients over blocks of queries and keys, from lse: two passes that mirror each other.

`queries`: a worker owns a block of queries, which stand in the lanes, and adds up their dQ over
the key blocks they see:        S = K Q^T,  dP = V dO^T,  dQ^T += K^T dS.
`keys`: a worker owns a block of keys of one key/value head, in the lanes, and adds up its dK and
dV over the query blocks, of every query head, that see it:
                                S = Q K^T,  dP = dO V^T,  dK^T += Q^T dS,  dV^T += dO^T P.

Nobody writes where another does, and everything is added in one order, so the bits depend on
neither the number of workers nor the other batch rows. A weight of 0 does not hide a NaN in a
product: a block that is not finite is multiplied without its non-finite entries, and these are
added where they are seen.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import numpy as np

from ._jit import inner, kernel
from .adjoint import add_to_bias, flipped
from .groups import by_keys, has_repeated
from .lane_rows import clean, fetch, place, poison, restore, turn
from .tile_layouts import Layout, laid
from .tile_scores import load_means, note_seen, scores, scratch, through_softcap
from .vectors import add_product, claim, weights_by_lane, weights_by_row, width


@kernel
def queries(worker, counters, x, y, layout, how, slots, box):
    """All dQ, dbias too; a task is a box of batch rows, heads and blocks of queries."""
    batches, heads, rows = len(slots.batch), len(layout.heads), layout.indptr.shape[1] - 1
    work = scratch(x, layout.block, True)
    by_head, by_row = (heads + box[1] - 1) // box[1], (rows + box[2] - 1) // box[2]
    tasks = (batches + box[0] - 1) // box[0] * by_head * by_row
    while True:
        task = claim(counters, worker)
        if task >= tasks:
            break
        one, two, part = task // (by_head * by_row), task // by_row % by_head, task % by_row
        for at in range(one * box[0], min((one + 1) * box[0], batches)):
            for which in range(two * box[1], min((two + 1) * box[1], heads)):
                for row in range(part * box[2], min((part + 1) * box[2], rows)):
                    block = layout.turn[row]
                    query_block(x, y, layout, how, slots, work, at, which, block, part)


@inner
def query_block(x, y, layout, how, slots, work, at, which, row, part):
    """One block of queries: its dQ."""
    m, d, e, kind, w = x.sizes[2], x.sizes[4], x.sizes[5], x.out.dtype, width(x.out)
    head, batch, bk = layout.heads[which], slots.batch[at], layout.block[1]
    group = head // (x.sizes[0] // x.sizes[1])
    place(work.mine, layout.queries, row * layout.block[0], m)
    load_queries_as_lanes(x, y, how, work, batch, head)
    k_at = batch * x.k_strides[0] + group * x.k_strides[1] + slots.first[at] * x.k_strides[2]
    v_at = batch * x.v_strides[0] + group * x.v_strides[1] + slots.first[at] * x.v_strides[2]
    entries = layout.indptr[layout.layout_of[which]]
    for entry in range(entries[row], entries[row + 1]):
        first, tile = layout.indices[entry] * bk, layout.tile_ids[entry]
        used, holes = place(work.theirs, layout.keys, first, slots.length[at])
        fine = fetch(work.left, x.k, k_at, x.k_strides[2], work.theirs, used, d)
        fetch(work.right, x.v, v_at, x.v_strides[2], work.theirs, used, e)
        if not fine:
            clean(work.clean_left, work.left, used * d)
        factors = work.left if fine else work.clean_left
        for panel in range(len(work.mine) // w):
            low = layout.spans[tile, panel, 0]
            count = min(layout.spans[tile, panel, 1], used) - low
            if count <= 0:
                continue
            scores(layout, how, slots, work, at, head, tile, panel, low, count, holes)
            if not fine:
                note_seen(work, count * w)
            weights_by_lane(work.s, 0, count, work.g, 0, work.lse, work.mean, panel * w)
            if len(y.dbias):
                gradient_of_bias(how, slots, work, y, at, head, part, panel, low, count)
            if how.softcap > 0:
                through_softcap(work, count * w)
            to = panel * d * w
            if not fine:
                poison(work.d_left, to, work.left, low, count, d, work.g, work.seen, kind.type(0))
            add_product(work.d_left, to, factors, low * d, d, d, work.g, count, work.ones, 0)
    restore(y.dq[batch, head], work.d_left, work.mine, d, kind.type(y.scale))


@inner
def load_queries_as_lanes(x, y, how, work, batch, head):
    """Scaled queries and dO in lanes, with their lse and mean."""
    kind, one = x.out.dtype, x.out.dtype.type(1)
    q_at = batch * x.q_strides[0] + head * x.q_strides[1]
    up_at = batch * y.dout_strides[0] + head * y.dout_strides[1]
    factor = kind.type(how.factor)
    turn(work.my_left, x.q, q_at, x.q_strides[2], work.mine, x.sizes[4], factor)
    turn(work.my_right, y.dout, up_at, y.dout_strides[2], work.mine, x.sizes[5], one)
    load_means(work, y.lse[batch, head], y.mean[batch, head], work.mine)
    work.d_left[:] = 0


@kernel
def keys(worker, counters, x, y, layout, how, slots, groups):
    """All dK and dV; `layout` is transposed, a task is a block of keys of a key/value head."""
    blocks, work = layout.indptr.shape[1] - 1, scratch(x, layout.block, False)
    while True:
        task = claim(counters, worker)
        if task >= len(slots.batch) * len(groups) * blocks:
            break
        at, group = task // (len(groups) * blocks), groups[task // blocks % len(groups)]
        block = layout.turn[task % blocks]
        key_block(x, y, layout, how, slots, work, at, group, block)


@inner
def key_block(x, y, layout, how, slots, work, at, group, block):
    """One block of keys: its dK and dV."""
    d, e, kind, ratio = x.sizes[4], x.sizes[5], x.out.dtype, x.sizes[0] // x.sizes[1]
    batch, first, one = slots.batch[at], slots.first[at], x.out.dtype.type(1)
    used, _ = place(work.mine, layout.keys, block * layout.block[0], slots.length[at])
    if not used:
        return
    k_at = batch * x.k_strides[0] + group * x.k_strides[1] + first * x.k_strides[2]
    v_at = batch * x.v_strides[0] + group * x.v_strides[1] + first * x.v_strides[2]
    factor = kind.type(how.factor)
    turn(work.my_left, x.k, k_at, x.k_strides[2], work.mine, d, factor)
    turn(work.my_right, x.v, v_at, x.v_strides[2], work.mine, e, one)
    work.d_left[:] = 0
    work.d_right[:] = 0
    for which in range(len(layout.heads)):
        if layout.heads[which] // ratio == group:
            entries = layout.indptr[layout.layout_of[which]]
            for entry in range(entries[block], entries[block + 1]):
                queries_of_keys(x, y, layout, how, slots, work, at, layout.heads[which], entry)
    restore(y.dk[batch, group, first:], work.d_left, work.mine, d, kind.type(y.scale))
    restore(y.dv[batch, group, first:], work.d_right, work.mine, e, one)


@inner
def queries_of_keys(x, y, layout, how, slots, work, at, head, entry):
    """What one block of queries adds to dK and dV."""
    d, e, kind, w = x.sizes[4], x.sizes[5], x.out.dtype, width(x.out)
    batch, tile = slots.batch[at], layout.tile_ids[entry]
    q_at = batch * x.q_strides[0] + head * x.q_strides[1]
    up_at = batch * y.dout_strides[0] + head * y.dout_strides[1]
    first = layout.indices[entry] * layout.block[1]
    used, holes = place(work.theirs, layout.queries, first, x.sizes[2])
    fine = fetch(work.left, x.q, q_at, x.q_strides[2], work.theirs, used, d)
    fine &= fetch(work.right, y.dout, up_at, y.dout_strides[2], work.theirs, used, e)
    load_means(work, y.lse[batch, head], y.mean[batch, head], work.theirs)
    left, right = work.left, work.right
    if not fine:
        left, right = work.clean_left, work.clean_right
        clean(left, work.left, used * d)
        clean(right, work.right, used * e)
    for panel in range(len(work.mine) // w):
        low = layout.spans[tile, panel, 0]
        count = min(layout.spans[tile, panel, 1], used) - low
        if count <= 0:
            continue
        scores(layout, how, slots, work, at, head, tile, panel, low, count, holes)
        if not fine:
            note_seen(work, count * w)
        weights_by_row(work.s, 0, count, work.g, 0, work.lse, work.mean, low)
        if how.softcap > 0:
            through_softcap(work, count * w)
        to_k, to_v = panel * d * w, panel * e * w
        if not fine:
            tiny = kind.type(np.finfo(kind).tiny)
            poison(work.d_right, to_v, work.right, low, count, e, work.s, work.seen, tiny)
            poison(work.d_left, to_k, work.left, low, count, d, work.g, work.seen, kind.type(0))
        add_product(work.d_right, to_v, right, low * e, e, e, work.s, count, work.ones, 0)
        add_product(work.d_left, to_k, left, low * d, d, d, work.g, count, work.ones, 0)


@inner
def gradient_of_bias(how, slots, work, y, at, head, part, panel, low, count):
    """Add the gradients of a panel of scores to the bias's."""
    w, batch, first = width(work.s), slots.batch[at], slots.first[at]
    for r in range(count):
        j = work.theirs[low + r]
        for lane in range(w):
            i, change = work.mine[panel * w + lane], work.g[r * w + lane]
            if i >= 0 and change != 0:
                distance = slots.position[j] - slots.q_start - i
                add_to_bias(how, y, batch, head, part, i, first + j, distance, change)


def transposed(layout: Layout, n: int) -> Layout:
    """The layout with keys in the lanes: key blocks list the query blocks that see them."""
    bq, bk = (int(size) for size in layout.block)
    if has_repeated(layout):  # a key must be owned by one worker
        return by_keys(layout, n)
    columns = -(-(len(layout.keys) or n) // bk)
    indptr, indices, where = flipped(layout.indptr, layout.indices, columns)
    count, panels = layout.spans.shape[:2]
    w = bq // panels
    tiles = layout.masks.reshape(count, panels, bk, w).transpose(0, 2, 1, 3).reshape(count, bk, bq)
    heads = tuple(int(head) for head in layout.heads)
    turned = laid(
        indptr, indices, layout.tile_ids[where], tiles, heads, w, layout.queries, layout.keys
    )
    return turned._replace(layout_of=layout.layout_of)
