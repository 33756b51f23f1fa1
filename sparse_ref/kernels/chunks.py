"""One chunk of a key/value head's keys, for the queries of all heads that share it.

Its scores are all computed before its values are read: four queries take each key, and each value,
while these are in the first cache. Only keys that some query sees are read. Where a query does not
see one of them and its value is not finite, 0 times that value shows as a sum that is not finite:
it is done again without it.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Ints

from ._jit import inner, owner
from .arguments import LOG2E, added
from .lists import CHUNK, choose, hide
from .vectors import dots_4, softcap, softmax, sums_4, width

NEAR = 64  # keys that stay in the first cache until all queries have taken them


class Scratch(NamedTuple):
    """What one worker needs for a chunk. Rows are queries of the heads of a group."""

    keys: Ints  # the slots that are read
    q: NDArray[Any]  # (rows, d)
    s: NDArray[Any]  # (rows, CHUNK)
    acc: NDArray[Any]  # (rows, e)
    m: NDArray[Any]  # (width,)
    l: NDArray[Any]  # noqa: E741
    shrink: NDArray[Any]


@inner
def part(x, layout, how, slots, parts, work, at, group, chunk, seen, first, some):
    """What a chunk leaves for `some` rows from `first` on."""
    heads, m, e = x.sizes[0] // x.sizes[1], x.sizes[2], x.sizes[5]
    if seen:
        load_queries(x, how, work.q, slots.batch[at], group, first, some)
        load_scores(x, layout, how, slots, work, at, group, seen, first, some)
    for r in range(some):
        peak, total = weigh(work, r * CHUNK, seen)
        head, i = group * heads + (first + r) // m, (first + r) % m
        parts.peak[at, head, i, chunk], parts.total[at, head, i, chunk] = peak, total
    work.acc[:] = 0
    row = x.v_strides[2]
    v_at = slots.batch[at] * x.v_strides[0] + group * x.v_strides[1] + slots.first[at] * row
    for r in range(0, some, 4):
        add_values(work, r, x.v, v_at, e, row, work.keys, seen)
    if not finite(work.acc[: some * e]):
        parts.spoilt[at, group, chunk] = True
    for r in range(some):
        head, i = group * heads + (first + r) // m, (first + r) % m
        target, source = parts.acc[at, head, i, chunk], work.acc[r * e : (r + 1) * e]
        for c in range(len(target)):
            target[c] = source[c]


@inner
def load_queries(x, how, q, batch, group, first, some):
    """Scaled queries."""
    heads, m, d = x.sizes[0] // x.sizes[1], x.sizes[2], x.sizes[4]
    factor = x.out.dtype.type(how.factor)
    for r in range(some):
        head, i = group * heads + (first + r) // m, (first + r) % m
        at = batch * x.q_strides[0] + head * x.q_strides[1] + i * x.q_strides[2]
        target, source = q[r * d : (r + 1) * d], x.q[at : at + d]
        for c in range(len(target)):
            target[c] = source[c] * factor


@inner
def load_scores(x, layout, how, slots, work, at, group, seen, first, some):
    """Scores in units of log 2; -inf where a row does not see a key that another one does."""
    heads, m, w, batch = x.sizes[0] // x.sizes[1], x.sizes[2], width(x.q), slots.batch[at]
    s, row, keys, which = work.s, x.k_strides[2], work.keys, at % len(layout.list_of)
    k_at = batch * x.k_strides[0] + group * x.k_strides[1] + slots.first[at] * row
    d = x.sizes[4]
    for j in range(0, seen, NEAR):
        for r in range(0, some, 4):
            stop = min(j + NEAR, seen)
            dots_4(s, r * CHUNK, work.q, r * d, CHUNK, x.k, k_at, d, row, keys, j, stop)
    for r in range(some):
        head, i, so = group * heads + (first + r) // m, (first + r) % m, r * CHUNK
        if how.softcap > 0:
            softcap(s, so, (seen + w - 1) // w, x.out.dtype.type(how.softcap))
        if len(how.bias) > 0 or len(how.slopes) > 0:
            position = layout.position[at % len(layout.position)]
            p = layout.q_start[which] + i
            for j in range(seen):
                key = keys[j]
                extra = added(how, batch, head, i, slots.first[at] + key, position[key] - p)
                s[so + j] += x.out.dtype.type(extra * LOG2E)
        choose(s[so : so + seen], layout, layout.list_of[which, head] + i, keys)


@inner
def weigh(work, so, seen):
    """Scores become weights; their maximum and their sum."""
    w, total = len(work.m), work.s.dtype.type(0)
    if seen == 0:
        return work.s.dtype.type(-np.inf), total
    panels = (seen + 2 * w - 1) // (2 * w) * 2  # softmax takes an even number
    s, peaks = work.s[so : so + panels * w], work.m
    hide(s, seen, len(s))
    hide(peaks, 0, w)
    for at in range(0, len(s), w):
        panel = s[at : at + w]
        for lane in range(len(peaks)):
            higher = panel[lane] > peaks[lane]  # not if it is NaN
            peaks[lane] = panel[lane] if higher else peaks[lane]
    peak = peaks[0]
    for lane in range(w):
        peak = max(peak, peaks[lane])
    for lane in range(w):
        work.m[lane], work.l[lane] = peak, 0
    softmax(work.s, so, panels, work.m, work.l, work.shrink, 0)
    for lane in range(w):
        total += work.l[lane]
    return peak, total


@inner
def finite(x):
    """Whether all numbers are finite."""
    most, fine = np.finfo(x.dtype).max, True
    for value in x:
        fine &= abs(value) <= most
    return fine


@inner
def add_values(work, r, v, v_at, e, row, keys, seen):
    """Weights times values for four rows from r on, while a few values are near."""
    for j in range(0, seen, NEAR):
        stop = min(j + NEAR, seen)
        sums_4(work.acc, r * e, work.s, r * CHUNK, CHUNK, v, v_at, e, row, keys, j, stop)


@owner
def again(x, layout, how, slots, parts, work, at, group, chunk, seen, first, some):
    """The sums of a spoilt part, with 0 for the values of keys that their row does not see."""
    heads, m, e, row = x.sizes[0] // x.sizes[1], x.sizes[2], x.sizes[5], x.v_strides[2]
    v_at = slots.batch[at] * x.v_strides[0] + group * x.v_strides[1] + slots.first[at] * row
    clean, place = np.zeros(CHUNK * e, work.s.dtype), np.arange(CHUNK)
    load_queries(x, how, work.q, slots.batch[at], group, first, some)
    load_scores(x, layout, how, slots, work, at, group, seen, first, some)
    for r in range(some):
        for j in range(seen):
            hidden, value = work.s[r * CHUNK + j] == -np.inf, x.v[v_at + work.keys[j] * row :]
            for c in range(e):
                clean[j * e + c] = 0 if hidden else value[c]
        weigh(work, r * CHUNK, seen)
        work.acc[:] = 0
        add_values(work, r // 4 * 4, clean, 0, e, e, place, seen)
        head, i = group * heads + (first + r) // m, (first + r) % m
        for c in range(e):
            parts.acc[at, head, i, chunk, c] = work.acc[r * e + c]
