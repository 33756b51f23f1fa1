"""Attention over the listed keys of each query: the row kernel, for patterns without blocks.

One worker owns a row and takes its keys in ascending order; only keys that are listed are read,
so a NaN elsewhere needs no care. The softmax runs over a row's scores folded into panels. A part
that does not begin goes on from the (out, lse) of the parts before it.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sparse_ref._arrays import Ints

from ._jit import inner, kernel
from .arguments import LOG2E, added
from .vectors import claim, dots_1, softcap, softmax, sums_1, width

LN2 = math.log(2)
TASK = 16  # rows claimed together


class Layout(NamedTuple):
    """CSR rows of every distinct head, one after another."""

    indptr: Ints  # (layouts, m + 1)
    indices: NDArray[np.int32]
    times: NDArray[np.int32]  # how often each key counts
    heads: Ints  # the query heads that are computed
    layout_of: Ints  # of every one of them
    longest: int  # the most keys a row has


def row_layout(
    several: list[sparse.csr_array[Any]], heads: tuple[int, ...], layout_of: list[int]
) -> Layout:
    """CSR arrays, one after another, as the row kernel reads them."""
    starts = np.cumsum([0, *(csr.nnz for csr in several)])
    indptr: Ints = np.stack(
        [csr.indptr.astype(np.int64) + s for csr, s in zip(several, starts, strict=False)]
    )
    return Layout(
        indptr,
        np.concatenate([csr.indices for csr in several]).astype(np.int32),
        np.concatenate([csr.data for csr in several]).astype(np.int32),
        np.array(heads, dtype=np.int64),
        np.array(layout_of, dtype=np.int64),
        int(np.diff(indptr, axis=1).max(initial=0)),
    )


class Scratch(NamedTuple):
    """What one worker needs for a row."""

    q: NDArray[Any]
    acc: NDArray[Any]
    keys: Ints  # the keys that are seen,
    s: NDArray[Any]  # and their scores, filled up to whole panels
    m: NDArray[Any]  # (width,): the parts of the row's maximum and sum
    l: NDArray[Any]  # noqa: E741
    shrink: NDArray[Any]


@kernel
def attend(worker, counters, x, layout, how, slots, begins):
    """Compute rows until none is left."""
    m, d, e, w = x.sizes[2], x.sizes[4], x.sizes[5], width(x.q)
    heads, parts, kind = len(layout.heads), (m + TASK - 1) // TASK, x.out.dtype
    work = Scratch(
        np.empty(d, kind), np.empty(e, kind), np.empty(layout.longest, np.int64),
        np.empty(layout.longest + 2 * w, kind), np.empty(w, kind), np.empty(w, kind),
        np.empty(w, kind),
    )  # fmt: skip
    while True:
        task = claim(counters, worker)
        if task >= len(slots.batch) * heads * parts:
            break
        at, which, part = task // (heads * parts), task // parts % heads, task % parts
        for i in range(part * TASK, min((part + 1) * TASK, m)):
            one_row(x, layout, how, slots, work, at, which, i, begins)


@inner
def one_row(x, layout, how, slots, work, at, which, i, begins):
    """One query of one head."""
    head, batch, one = layout.heads[which], slots.batch[at], x.out.dtype.type(1)
    group = head // (x.sizes[0] // x.sizes[1])
    q_at = batch * x.q_strides[0] + head * x.q_strides[1] + i * x.q_strides[2]
    v_at = batch * x.v_strides[0] + group * x.v_strides[1] + slots.first[at] * x.v_strides[2]
    q, factor = work.q, x.out.dtype.type(how.factor)
    query = x.q[q_at : q_at + len(q)]
    for c in range(len(q)):
        q[c] = query[c] * factor
    seen = load_scores(x, layout, how, slots, work, at, which, i)
    if seen == 0 and not begins:
        return
    before = x.out.dtype.type(how.sinks[head] if begins else x.lse[batch, head, i] * LOG2E)
    peak, shrink, total = weigh(work, before, seen)
    out, acc, s, keys, v = x.out, work.acc, work.s, work.keys, x.v
    row, most = x.v_strides[2], np.finfo(x.out.dtype).max
    for c in range(len(acc)):
        so_far = x.out.dtype.type(0) if begins else out[batch, head, i, c]
        acc[c] = so_far * shrink if abs(so_far) <= most else so_far
    sums_1(acc, 0, s, 0, 0, v, v_at, len(acc), row, keys, 0, seen)
    share = total if total == 0 else one / total
    for c in range(len(acc)):
        out[batch, head, i, c] = acc[c] * share
    x.lse[batch, head, i] = (peak + np.log2(total)) * LN2


@inner
def load_scores(x, layout, how, slots, work, at, which, i):
    """The keys that are seen and their scores, in units of log 2; how many there are."""
    head, batch, w = layout.heads[which], slots.batch[at], width(x.q)
    group = head // (x.sizes[0] // x.sizes[1])
    k_at = batch * x.k_strides[0] + group * x.k_strides[1] + slots.first[at] * x.k_strides[2]
    begin, end = layout.indptr[layout.layout_of[which], i : i + 2]
    listed, counts, s, keys = layout.indices, layout.times, work.s, work.keys
    while end > begin and listed[end - 1] >= slots.length[at]:
        end -= 1
    if end > begin:
        dots_1(s, -begin, work.q, 0, 0, x.k, k_at, len(work.q), x.k_strides[2], listed, begin, end)
    if how.softcap > 0 and end > begin:
        rows = (end - begin + w - 1) // w
        s[end - begin : rows * w] = 0
        softcap(s, 0, rows, x.out.dtype.type(how.softcap))
    more = len(how.bias) > 0 or len(how.slopes) > 0
    seen = 0
    for j in range(end - begin):
        key, times, score = listed[begin + j], counts[begin + j], s[j]
        if more:
            distance = slots.position[key] - slots.q_start - i
            extra = added(how, batch, head, i, slots.first[at] + key, distance)
            score += x.out.dtype.type(extra * LOG2E)
        if times > 1:
            score += x.out.dtype.type(np.log2(times))
        if score != -np.inf:
            keys[seen], s[seen] = key, score
            seen += 1
    return seen


@inner
def weigh(work, before, seen):
    """Scores become weights; the row's maximum, the weight of `before`, the sum of all weights."""
    w, s, peak = len(work.m), work.s, before
    for j in range(seen):
        peak = s[j] if s[j] > peak else peak  # noqa: FURB136 - not NaN
    shrink = work.s.dtype.type(0)
    if before != -np.inf:
        shrink = 2 ** (before - peak)
    total = shrink
    if seen:
        rows = (seen + 2 * w - 1) // (2 * w) * 2  # softmax takes an even number
        work.s[seen : rows * w] = -np.inf
        work.m[:], work.l[:] = peak, 0
        softmax(work.s, 0, rows, work.m, work.l, work.shrink, 0)
        for lane in range(w):
            total += work.l[lane]
    return peak, shrink, total
