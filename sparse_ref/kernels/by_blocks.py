"""Attention over chosen blocks of keys, one block after another, for the queries that chose it.

Queries choose for themselves, so neighbours rarely agree, but some hundred of them choose most
blocks several times. A worker owns such a stretch of queries, with the heads that share a list and
a key/value head, and their sums. It takes the blocks in ascending order: whoever chose a block is
gathered into vector lanes with the sums so far, and K and V are read where they lie.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Ints

from ._jit import inner, kernel, owner
from .arguments import LOG2E, added
from .costs import Work
from .not_finite import all_finite, poison
from .scratch import scratch, scratch_size
from .shared import KEYS, SOME, Layout
from .tiles import LN2, turn
from .vectors import add_product, claim, product, softcap, softmax, width

ROWS = 1024  # pairs of a query and a head that a worker owns
MOVED = 1.5  # times a query and a result are turned where sums are fetched, too


class Sums(NamedTuple):
    """Of every row, a query of a head, that a worker owns; and who chose which block."""

    acc: NDArray[Any]  # (rows, e)
    poison: NDArray[Any]  # (rows, e): what is not finite
    m: NDArray[Any]
    l: NDArray[Any]  # noqa: E741
    start: Ints  # (blocks + 1,): of each block, in the two
    query: Ints  # (queries * k,): from the first on
    mask: Ints  # alike: the row of its mask, -1 none


def stretch(heads: int) -> int:
    """How many queries a worker owns, of so many heads each."""
    return max(1, ROWS // heads)


def work_of(layout: Layout, heads: int, n: int, lanes: int) -> Work:
    """What there is to do for one head, of so many that share the lists."""
    t, i = np.nonzero(layout.seen)
    blocks, long = -(-n // layout.size), stretch(heads)
    chosen = np.bincount(t // long * blocks + layout.blocks[t, i]) * heads
    filled, keys = float((-(-chosen // lanes)).sum()) * lanes, min(layout.size, n)
    calls = filled / lanes * -(-keys // KEYS)
    masked = float(len(layout.masks)) * keys * heads
    whole = Work(filled * keys, masked, calls, calls, 0, MOVED * float(chosen.sum()))
    return Work(*(x / heads for x in whole))


@owner
def sums_of(x, layout, each, n):
    """Room for the sums of a stretch."""
    rows, e, kind = max(1, ROWS // each) * each, x.sizes[5], x.out.dtype
    listed, blocks = rows // each * layout.blocks.shape[1], (n + layout.size - 1) // layout.size
    return Sums(
        np.empty(rows * e, kind), np.zeros(rows * e, kind), np.empty(rows, kind),
        np.empty(rows, kind), np.empty(blocks + 1, np.int64), np.empty(listed, np.int64),
        np.empty(listed, np.int64),
    )  # fmt: skip


@kernel
def attend(worker, counters, x, layout, how, slots):
    """Compute stretches of queries until none is left."""
    w, d, e, m = width(x.q), x.sizes[4], x.sizes[5], x.sizes[2]
    each = min(x.sizes[0] // x.sizes[1], len(layout.heads))
    long, groups = max(1, ROWS // each), len(layout.heads) // each
    parts = (m + long - 1) // long
    flat = np.empty(scratch_size(1, KEYS, 0, d, e, w), x.out.dtype)
    work = scratch(flat, np.empty(w, np.int64), 1, KEYS, 0, d, e, w)
    sums = sums_of(x, layout, each, x.sizes[3])
    while True:
        task = claim(counters, worker)
        if task >= len(slots.batch) * groups * parts:
            break
        at, which, part = task // (groups * parts), task // parts % groups, parts - 1 - task % parts
        head, first, poisoned = layout.heads[which * each], part * long, False
        count = min(long, m - first)
        invert(layout, sums, first, count)
        begin(how, sums, head, each, count)
        for block in range(len(sums.start) - 1):
            for row in range(sums.start[block] * each, sums.start[block + 1] * each, w):
                lanes = min(w, sums.start[block + 1] * each - row)
                load(x, how, work, sums, slots.batch[at], head, each, first, row, lanes)
                poisoned |= one_block(
                    x, layout, how, slots, work, sums, at, head, each, first, block, row, lanes
                )
                keep(x, work, sums, each, lanes)
        store(x, sums, poisoned, slots.batch[at], head, each, first, count)


@inner
def invert(layout, sums, first, count):
    """Which queries see which block."""
    start, k = sums.start, layout.blocks.shape[1]
    start[:] = 0
    for t in range(first, first + count):
        for i in range(k):
            if layout.seen[t, i]:
                start[layout.blocks[t, i]] += 1
    total = 0
    for block in range(len(start)):
        total += start[block]
        start[block] = total
    for t in range(first + count - 1, first - 1, -1):
        some = layout.number[t]
        for i in range(k):
            some += layout.seen[t, i] == SOME
        for i in range(k - 1, -1, -1):
            if layout.seen[t, i]:
                start[layout.blocks[t, i]] -= 1
                place = start[layout.blocks[t, i]]
                some -= layout.seen[t, i] == SOME
                sums.query[place] = t - first
                sums.mask[place] = some if layout.seen[t, i] == SOME else -1


@inner
def begin(how, sums, head, each, count):
    """The sums of no keys, or of the head's sink."""
    sums.acc[:] = 0
    for row in range(count * each):
        sink = how.sinks[head + row % each]
        sums.m[row], sums.l[row] = sink, 0 if sink == -np.inf else 1


@inner
def load(x, how, work, sums, batch, head, each, first, row, lanes):
    """Scaled queries and their sums, into lanes; `work.key` is the row in each."""
    d, e, q, rows, factor = x.sizes[4], x.sizes[5], x.q, work.rows, x.out.dtype.type(how.factor)
    for lane in range(lanes):
        t, r = sums.query[(row + lane) // each], (row + lane) % each
        work.key[lane] = t * each + r
        at = batch * x.q_strides[0] + (head + r) * x.q_strides[1] + (first + t) * x.q_strides[2]
        source, target = q[at : at + d], rows[lane * d : (lane + 1) * d]
        for c in range(d):
            target[c] = source[c] * factor
    turn(work.q, rows, lanes, d)
    work.m[:], work.l[:] = -np.inf, 0
    for lane in range(lanes):
        mine = work.key[lane]
        work.m[lane], work.l[lane] = sums.m[mine], sums.l[mine]
        source, target = sums.acc[mine * e : (mine + 1) * e], rows[lane * e : (lane + 1) * e]
        for c in range(e):
            target[c] = source[c]
    turn(work.acc, rows, lanes, e)


@inner
def one_block(x, layout, how, slots, work, sums, at, head, each, first, block, row, lanes):
    """Take a block of keys into account; whether it has a value that is not finite."""
    w, d, e, batch = width(x.q), x.sizes[4], x.sizes[5], slots.batch[at]
    group, spoilt = head // (x.sizes[0] // x.sizes[1]), False
    stop = min((block + 1) * layout.size, slots.length[at])
    for key in range(block * layout.size, stop, KEYS):
        count, slot = min(KEYS, stop - key), slots.first[at] + key
        k_at = batch * x.k_strides[0] + group * x.k_strides[1] + slot * x.k_strides[2]
        v_at = batch * x.v_strides[0] + group * x.v_strides[1] + slot * x.v_strides[2]
        product(work.s, x.k, k_at, x.k_strides[2], count, work.q, 0, d)
        if how.softcap > 0:
            softcap(work.s, 0, count, x.out.dtype.type(how.softcap))
        if len(how.bias) or len(how.slopes):
            add(how, slots, work, at, head, each, first, key, lanes, count)
        hide(layout, work, sums, each, key - block * layout.size, row, lanes, count)
        if count % 2:
            work.s[count * w : (count + 1) * w] = -np.inf
        values, at_v, step = x.v, v_at, x.v_strides[2]
        if all_finite(x.v, v_at, step, count, e) != 1:
            poison(work, x.v, v_at, step, count, 0, e)
            values, at_v, step, spoilt = work.clean, 0, e, True
        softmax(work.s, 0, count + count % 2, work.m, work.l, work.shrink, 0)
        add_product(work.acc, 0, values, at_v, step, e, work.s, count, work.shrink, 0)
    if spoilt:
        for lane in range(lanes):
            for c in range(e):
                sums.poison[work.key[lane] * e + c] += work.poison[c * w + lane]
        work.poison[:] = 0
    return spoilt


@inner
def add(how, slots, work, at, head, each, first, key, lanes, count):
    """Bias and ALiBi, in units of log 2."""
    w, batch = width(work.s), slots.batch[at]
    for lane in range(lanes):
        t, r = first + work.key[lane] // each, work.key[lane] % each
        for j in range(count):
            distance = slots.position[key + j] - slots.q_start - t
            more = added(how, batch, head + r, t, slots.first[at] + key + j, distance) * LOG2E
            work.s[j * w + lane] += work.s.dtype.type(more)


@inner
def hide(layout, work, sums, each, skip, row, lanes, count):
    """-inf for keys of the block that a query does not see."""
    w = width(work.s)
    for lane in range(lanes):
        mask = sums.mask[(row + lane) // each]
        if mask >= 0:
            for j in range(count):
                if not layout.masks[mask, skip + j]:
                    work.s[j * w + lane] = -np.inf


@inner
def keep(x, work, sums, each, lanes):
    """The sums go back to their rows."""
    w, e = width(work.s), x.sizes[5]
    for lane in range(lanes):
        mine = work.key[lane]
        sums.m[mine], sums.l[mine] = work.m[lane], work.l[lane]
        source, target = work.acc[lane : e * w : w], sums.acc[mine * e : (mine + 1) * e]
        for c in range(e):
            target[c] = source[c]


@inner
def store(x, sums, poisoned, batch, head, each, first, count):
    """Divide by the sums."""
    e = x.sizes[5]
    for row in range(count * each):
        total, target = sums.l[row], x.out[batch, head + row % each, first + row // each]
        share = total if total == 0 else 1 / total
        source, more = sums.acc[row * e : (row + 1) * e], sums.poison[row * e : (row + 1) * e]
        for c in range(e):
            target[c] = source[c] * share
        if poisoned:
            for c in range(e):
                target[c] += more[c]
            more[:] = 0
        lse = (sums.m[row] + np.log2(total)) * LN2
        x.lse[batch, head + row % each, first + row // each] = lse
