"""Attention of the heads of a query that read one list of keys of one key/value head together.

The heads stand in the vector lanes, as queries do in the tile kernel, and the keys of the list are
gathered once for all of them: a dense product for every query. A key that is listed is seen by all
lanes, so there are no masks, and no key is read that is not listed.

One worker owns a query of a group of heads and takes its keys in ascending order.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Bools, Ints

from ._jit import inner, kernel
from .arguments import LOG2E, added
from .copies import gather
from .costs import Work
from .not_finite import all_finite, poison
from .scratch import scratch, scratch_size
from .tiles import LN2, turn
from .vectors import add_product, claim, product, softcap, softmax, width

KEYS = 128  # gathered together
TASK = 4  # queries claimed together
NEAR = 0.2  # of what a copy costs elsewhere: neighbours choose many of the same keys
FULL, SOME = 1, 2


class Layout(NamedTuple):
    """The blocks of keys that each query sees of one list, for heads that stand together."""

    blocks: NDArray[np.int32]  # (m, k), ascending, -1 padded
    size: int  # keys of a block
    seen: NDArray[np.uint8]  # (m, k): 0 nothing of it, FULL or SOME
    masks: Bools  # (some, size): what is seen of each block of which SOME is
    number: Ints  # (m,): how many such blocks earlier rows have
    indptr: Ints  # (m + 1,): keys seen
    heads: Ints  # the query heads that are computed, of one key/value head or of all


def work_of(pairs: float, m: int, heads: int, lanes: int) -> Work:
    """What there is to do for one head, of so many that share `pairs` listed keys."""
    panels = -(-heads // lanes)
    filled, tiles = panels * lanes, pairs / KEYS
    whole = Work(pairs * filled, 0, tiles * panels, tiles, NEAR * pairs, float(m * filled))
    return Work(*(x / heads for x in whole))


@kernel
def attend(worker, counters, x, layout, how, slots):
    """Compute queries until none is left."""
    w, d, e, m = width(x.q), x.sizes[4], x.sizes[5], x.sizes[2]
    each = min(x.sizes[0] // x.sizes[1], len(layout.heads))
    panels, groups, parts = (each + w - 1) // w, len(layout.heads) // each, (m + TASK - 1) // TASK
    flat = np.empty(scratch_size(panels, KEYS, KEYS, d, e, w), x.out.dtype)
    work = scratch(flat, np.empty(KEYS, np.int64), panels, KEYS, KEYS, d, e, w)
    while True:
        task = claim(counters, worker)
        if task >= len(slots.batch) * groups * parts:
            break
        at, which, part = task // (groups * parts), task // parts % groups, parts - 1 - task % parts
        for t in range(part * TASK, min((part + 1) * TASK, m)):
            one_query(x, layout, how, slots, work, at, layout.heads[which * each], each, t)


@inner
def one_query(x, layout, how, slots, work, at, head, each, t):
    """The heads of one query, from `head` on."""
    batch, size, count, poisoned = slots.batch[at], layout.size, 0, False
    load_heads(x, how, work, batch, head, each, t)
    blocks, seen, some = layout.blocks[t], layout.seen[t], layout.number[t]
    for i in range(len(blocks)):
        if seen[i] == 0:
            continue
        first = blocks[i] * size
        for j in range(min(size, slots.length[at] - first)):
            if seen[i] == FULL or layout.masks[some, j]:
                work.key[count] = first + j
                count += 1
                if count == KEYS:
                    poisoned |= take(x, how, slots, work, at, head, each, t, count)
                    count = 0
        some += seen[i] == SOME
    if count > 0:
        poisoned |= take(x, how, slots, work, at, head, each, t, count)
    store(x, work, poisoned, batch, head, each, t)


@inner
def load_heads(x, how, work, batch, head, each, t):
    """The scaled query of each head in its lane; the sums of no keys."""
    d, q, rows, factor = x.sizes[4], x.q, work.rows, x.out.dtype.type(how.factor)
    for r in range(each):
        at = batch * x.q_strides[0] + (head + r) * x.q_strides[1] + t * x.q_strides[2]
        source, target = q[at : at + d], rows[r * d : (r + 1) * d]
        for c in range(d):
            target[c] = source[c] * factor
        work.m[r] = how.sinks[head + r]
        work.l[r] = 0 if how.sinks[head + r] == -np.inf else 1
    turn(work.q, rows, each, d)
    work.m[each:], work.l[each:] = -np.inf, 0
    work.acc[:] = 0


@inner
def take(x, how, slots, work, at, head, each, t, count):
    """Take some keys into account; whether they have a value that is not finite."""
    w, d, e, first = width(x.q), x.sizes[4], x.sizes[5], slots.first[at]
    group = head // (x.sizes[0] // x.sizes[1])
    gather(x, work.key[:count], slots.batch[at], group, first, work.k, 0, work.v, 0)
    fine = all_finite(work.v, 0, e, count, e) == 1
    for panel in range(len(work.m) // w):
        product(work.s, work.k, 0, d, count, work.q, panel * d * w, d)
        if how.softcap > 0:
            softcap(work.s, 0, count, x.out.dtype.type(how.softcap))
        if len(how.bias) or len(how.slopes):
            add(how, slots, work, at, head + panel * w, min(w, each - panel * w), t, count)
        if count % 2:
            work.s[count * w : (count + 1) * w] = -np.inf
        values = work.v
        if not fine:
            poison(work, work.v, 0, e, count, panel, e)
            values = work.clean
        softmax(work.s, 0, count + count % 2, work.m, work.l, work.shrink, panel * w)
        to = panel * e * w
        add_product(work.acc, to, values, 0, e, e, work.s, count, work.shrink, panel * w)
    return not fine


@inner
def add(how, slots, work, at, head, lanes, t, count):
    """Bias and ALiBi of the heads from `head` on, in units of log 2."""
    w, batch = width(work.s), slots.batch[at]
    for j in range(count):
        key = work.key[j]
        distance = slots.position[key] - slots.q_start - t
        for lane in range(lanes):
            more = added(how, batch, head + lane, t, slots.first[at] + key, distance) * LOG2E
            work.s[j * w + lane] += work.s.dtype.type(more)


@inner
def store(x, work, poisoned, batch, head, each, t):
    """Divide by the sums and turn lanes back into rows."""
    w, e, acc = width(work.s), x.sizes[5], work.acc
    for r in range(each):
        panel, lane, target = r // w, r % w, x.out[batch, head + r, t]
        total = work.l[r]
        share = total if total == 0 else 1 / total
        source = acc[panel * e * w + lane : (panel + 1) * e * w : w]
        for c in range(e):
            target[c] = source[c] * share
        if poisoned:
            for c in range(e):
                target[c] += work.poison[(panel * e + c) * w + lane]
        x.lse[batch, head + r, t] = (work.m[r] + np.log2(total)) * LN2
    if poisoned:
        work.poison[:] = 0
