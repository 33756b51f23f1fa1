"""The tile kernel for half precision: its two products run on the CPU's AMX tiles.

All else is as in `tiles`, in float32, with the functions of `tiles`. Queries and keys are
multiplied as they are given, which is exact, and the scale comes after; weights are rounded to the
type of the values. K, and V transposed, are packed once, before.

bfloat16 tiles take subnormal numbers for 0, so a block that has some (its queries or its keys) is
multiplied in float32; so the bits depend on nothing but the block.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Ints

from ._jit import kernel
from .amx_tiles import BYTES, DEPTH, ROWS, BFloat16, Float16, multiply, pairs
from .arguments import Slots, Tensors
from .copies import gather, who
from .not_finite import poison
from .scratch import scratch, scratch_size
from .tile_layouts import Layout, query_of
from .tiles import load_queries, settle, store
from .vectors import claim, product, softmax, width

SUBNORMAL, POISONED = 1, 2  # states of a block: its K, its V, or both


class Halves(NamedTuple):
    """What a worker has besides its `Scratch`."""

    q: NDArray[Any]  # (panels, d / 2, width) pairs
    p: NDArray[Any]  # (bk / 2, width) pairs
    t: NDArray[Any]  # (bk, d or e, width): what is turned into pairs, what a product gives


def room(sizes: Ints, layout: Layout, slots: Slots) -> tuple[int, int, int]:
    """How many blocks K and V of some batch rows have, and how many numbers they take."""
    _, g, _, n, d, e = sizes.tolist()
    bk = int(layout.block[1])
    blocks = -(-(len(layout.keys) or n) // bk)
    count = len(slots.batch) * g * blocks
    wide, high = -(-d // DEPTH) * DEPTH, -(-e // ROWS) * ROWS
    return blocks, (count * bk + ROWS) * wide, count * bk * high + DEPTH  # tiles may reach beyond


def packed(
    kind: type[BFloat16 | Float16], x: Tensors, layout: Layout, slots: Slots, factor: float
) -> BFloat16 | Float16:
    """Room for the K and V that a layout reads."""
    blocks, k, v = room(x.sizes, layout, slots)
    state = np.zeros(len(slots.batch) * int(x.sizes[1]) * blocks, dtype=np.uint8)
    bits = (0x7C00, 0) if issubclass(kind, Float16) else (0x7F80, 0x80)
    return kind(aligned(k), aligned(v), state, np.array([blocks]), factor, *bits)


def aligned(size: int) -> NDArray[np.uint16]:
    """Zeros that start where a tile's row may: no row of them lies in two cache lines."""
    room = np.zeros(size + BYTES // 2, dtype=np.uint16)
    start = -room.ctypes.data % BYTES // 2
    return room[start : start + size]


@kernel
def up(size, step):
    """The next multiple."""
    return -(-size // step) * step


@kernel
def pack(worker, counters, k, v, sizes, layout, slots, packed):
    """Fill `packed` from the bits of k (b, g, n, d) and v (b, g, n, e), block by block."""
    g, d, e, bk, blocks = sizes[1], sizes[4], sizes[5], layout.block[1], packed.blocks[0]
    wide, high = up(d, DEPTH), up(e, ROWS)
    while True:
        task = claim(counters, worker)
        if task >= len(slots.batch) * g * blocks:
            break
        at, group, j0 = task // (g * blocks), task // blocks % g, task % blocks * bk
        k_to = packed.k[task * bk * wide : (task + 1) * bk * wide]
        v_to = packed.v[task * bk * high : (task + 1) * bk * high]
        first, batch, exact, finite = slots.first[at], slots.batch[at], True, True
        for j in range(bk):
            key = layout.keys[j0 + j] if len(layout.keys) else j0 + j
            if key < 0 or key >= slots.length[at]:
                continue
            k_row, v_row = k[batch, group, first + key], v[batch, group, first + key]
            target = k_to[j * wide : j * wide + d]
            for c in range(d):
                size = k_row[c] & 0x7FFF
                target[c] = k_row[c]
                exact &= (size == 0) | (size >= packed.least)
            for c in range(e):
                fine = v_row[c] & packed.no_number != packed.no_number
                v_to[c * bk + j] = v_row[c] if fine else 0
                finite &= fine
        packed.state[task] = (0 if exact else SUBNORMAL) | (0 if finite else POISONED)


@kernel
def attend(worker, counters, x, layout, how, slots, packed, begins):
    """`tiles.attend` on packed K and V; the factor of `how` is 1, as `packed` has it."""
    bq, bk, w, d, e = layout.block[0], layout.block[1], width(x.q), x.sizes[4], x.sizes[5]
    heads, rows = len(layout.heads), layout.indptr.shape[1] - 1
    flat = np.empty(scratch_size(bq // w, bk, bk, d, e, w), x.out.dtype)
    work = scratch(flat, np.empty(bk, np.int64), bq // w, bk, bk, d, e, w)
    q, p, t = bq * up(d, DEPTH) // 2, bk // 2 * w, max(bk, up(d, DEPTH), up(e, ROWS)) * w
    half = Halves(np.empty(q, np.uint32), np.empty(p, np.uint32), np.empty(t, x.out.dtype))
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
        exact = pair_queries(packed, work, half, d)
        for entry in range(entries[0], entries[1]):
            poisoned |= key_block(
                x, layout, how, slots, packed, work, half, exact, at, head, first, entry
            )
        store(x, layout, work, poisoned, batch, head, first)


@kernel
def pair_queries(packed, work, half, d):
    """The queries as pairs; whether tiles take all of them as they are."""
    w, wide, exact = width(work.s), up(d, DEPTH), True
    least = np.float32(2.0**-126 if packed.least else 0)
    for panel in range(len(work.m) // w):
        source = work.q[panel * d * w : (panel + 1) * d * w]
        for i in range(d * w):
            half.t[i] = source[i]
            exact &= source[i] == 0 or not abs(source[i]) < least
        half.t[d * w : wide * w] = 0
        pairs(packed, half.t, 0, wide, half.q, panel * wide // 2 * w)  # type: ignore[call-arg]
    return exact


@kernel
def key_block(x, layout, how, slots, packed, work, half, exact, at, head, first, entry):
    """Take one block of keys into account; whether it has a value that is not finite."""
    d, e, group = x.sizes[4], x.sizes[5], head // (x.sizes[0] // x.sizes[1])
    bk, w, column = layout.block[1], width(x.q), layout.indices[entry]
    batch, tile, j0 = slots.batch[at], layout.tile_ids[entry], column * bk
    block, wide = (at * x.sizes[1] + group) * packed.blocks[0] + column, up(d, DEPTH)
    state = packed.state[block]
    exact, poisoned = exact and not state & SUBNORMAL, state & POISONED != 0
    keys = min(bk, slots.length[at] - j0)
    if len(layout.keys):
        keys = who(layout, slots, work, at, j0)
    elif poisoned or not exact:
        for j in range(bk):
            work.key[j] = j0 + j if j < keys else -1
    if keys <= 0:
        return False
    if poisoned or not exact:
        gather(x, work.key, batch, group, slots.first[at], work.k, 0, work.v, 0)
    for panel in range(len(work.m) // w):
        if query_of(layout, x.sizes[2], first + panel * w) < 0:
            break
        low = layout.spans[tile, panel, 0]
        seen = min(layout.spans[tile, panel, 1], keys) - low
        if seen <= 0:
            continue
        if exact:
            scores_of(packed, work, half, (block * bk + low) * wide, wide, seen, panel)
        else:
            product(work.s, work.k, low * d, d, seen, work.q, panel * d * w, d)
        scale(work.s, seen * w, packed.factor)
        settle(x, layout, how, slots, work, at, head, first, panel, tile, j0, low, seen)
        if poisoned:
            poison(work, work.v, low * e, e, seen, panel, e)
        softmax(work.s, 0, seen + seen % 2, work.m, work.l, work.shrink, panel * w)
        add_values(packed, work, half, block * bk * up(e, ROWS) + low, bk, seen, panel, e)
    return poisoned


@kernel
def scores_of(packed, work, half, k, wide, seen, panel):
    """S = K Q^T, as many keys as are seen."""
    high, q = up(seen, ROWS) // ROWS, panel * wide // 2 * width(work.s)
    multiply(packed, work.s, 0, packed.k, k, wide, half.q, q, high, wide // DEPTH)  # type: ignore[call-arg]


@kernel
def scale(s, size, factor):
    """Multiply scores."""
    times = s.dtype.type(factor)
    for i in range(size):
        s[i] *= times


@kernel
def add_values(packed, work, half, v, bk, seen, panel, e):
    """Accumulate: acc = shrink * acc + V^T P, P rounded."""
    w, long = width(work.s), up(seen, DEPTH)
    work.s[seen * w : long * w] = 0
    pairs(packed, work.s, 0, long, half.p, 0)  # type: ignore[call-arg]
    high = up(e, ROWS) // ROWS
    multiply(packed, half.t, 0, packed.v, v, bk, half.p, 0, high, long // DEPTH)
    to, shrink = panel * e * w, work.shrink[panel * w : (panel + 1) * w]
    for r in range(e):
        acc, more = work.acc[to + r * w : to + (r + 1) * w], half.t[r * w : (r + 1) * w]
        for lane in range(w):
            acc[lane] = acc[lane] * shrink[lane] + more[lane]
