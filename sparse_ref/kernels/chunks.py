"""One chunk of a key/value head's keys, for the queries of all heads that share it.

Its scores are all computed before its values are read: four queries take each key, and two take
four values, while these are in the first cache. Only keys that some query sees are read. Where a
query does not see one of them and its value is not finite, 0 times that value shows as a sum that
is not finite: it is done again without it.
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
from .vectors import softcap, softmax, width

NEAR = 64  # keys that stay in the first cache until all queries have taken them


class Scratch(NamedTuple):
    """What one worker needs for a chunk. Rows are queries of the heads of a group."""

    keys: Ints  # the slots that are read, in fours: the last one may stand there more than once
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
    gather(work.acc, e, work.s, some, x.v, v_at, row, work.keys, seen)
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
    heads, m, d, factor = (
        x.sizes[0] // x.sizes[1],
        x.sizes[2],
        x.sizes[4],
        x.out.dtype.type(how.factor),
    )
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
    dots(s, work.q, x.sizes[4], some, x.k, k_at, row, keys, seen)
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
def dots(s, q, d, some, k, k_at, row, keys, seen):
    """The products of four rows at a time with each key, while a few keys are near."""
    for first in range(0, seen, NEAR):
        for r in range(0, some, 4):
            q0, q1 = q[r * d : (r + 1) * d], q[(r + 1) * d : (r + 2) * d]
            q2, q3 = q[(r + 2) * d : (r + 3) * d], q[(r + 3) * d : (r + 4) * d]
            for j in range(first, min(first + NEAR, seen)):
                at = k_at + keys[j] * row
                key, s0 = k[at : at + d], s.dtype.type(0)
                s1 = s2 = s3 = s0
                for c in range(len(q0)):
                    one = key[c]
                    s0 += q0[c] * one
                    s1 += q1[c] * one
                    s2 += q2[c] * one
                    s3 += q3[c] * one
                to = r * CHUNK + j
                s[to], s[to + CHUNK] = s0, s1
                s[to + 2 * CHUNK], s[to + 3 * CHUNK] = s2, s3


@inner
def gather(acc, e, s, some, v, v_at, row, keys, seen):
    """Add weight * v to two rows at a time, for four keys at a time."""
    for first in range(0, seen, NEAR):
        for r in range(0, some, 2):
            x, y = acc[r * e : (r + 1) * e], acc[(r + 1) * e : (r + 2) * e]
            for j in range(first, min(first + NEAR, seen), 4):
                a, b = v_at + keys[j] * row, v_at + keys[j + 1] * row
                v0, v1 = v[a : a + e], v[b : b + e]
                a, b = v_at + keys[j + 2] * row, v_at + keys[j + 3] * row
                v2, v3 = v[a : a + e], v[b : b + e]
                at = r * CHUNK + j
                x0, x1, x2, x3 = s[at], s[at + 1], s[at + 2], s[at + 3]
                at += CHUNK
                y0, y1, y2, y3 = s[at], s[at + 1], s[at + 2], s[at + 3]
                for c in range(len(x)):
                    x[c] += x0 * v0[c] + x1 * v1[c] + x2 * v2[c] + x3 * v3[c]
                    y[c] += y0 * v0[c] + y1 * v1[c] + y2 * v2[c] + y3 * v3[c]


@inner
def finite(x):
    """Whether all numbers are finite."""
    most, fine = np.finfo(x.dtype).max, True
    for value in x:
        fine &= abs(value) <= most
    return fine


@owner
def again(x, layout, how, slots, parts, work, at, group, chunk, seen, first, some):
    """The sums of a spoilt part, with 0 for the values of keys that their row does not see."""
    heads, m, e, row = x.sizes[0] // x.sizes[1], x.sizes[2], x.sizes[5], x.v_strides[2]
    v_at = slots.batch[at] * x.v_strides[0] + group * x.v_strides[1] + slots.first[at] * row
    kind, place = work.s.dtype, np.arange(CHUNK)
    clean, hidden = np.zeros(CHUNK * e, kind), np.empty(CHUNK, np.bool_)
    load_queries(x, how, work.q, slots.batch[at], group, first, some)
    load_scores(x, layout, how, slots, work, at, group, seen, first, some)
    for r in range(some):
        for j in range(seen):
            hidden[j] = work.s[r * CHUNK + j] == -np.inf
            value = x.v[v_at + work.keys[j] * row :]
            for c in range(e):
                clean[j * e + c] = 0 if hidden[j] else value[c]
        weigh(work, r * CHUNK, seen)
        work.acc[:] = 0
        gather(work.acc, e, work.s[r * CHUNK :], 1, clean, 0, e, place, seen)
        head, i = group * heads + (first + r) // m, (first + r) % m
        for c in range(e):
            parts.acc[at, head, i, chunk, c] = work.acc[c]
