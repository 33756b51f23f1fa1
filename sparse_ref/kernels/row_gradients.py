"""Gradients over the listed keys of each query, from lse: two passes, by row and by column.

`queries`: a worker owns a query and adds up its dQ over the keys listed. `keys`: a worker owns a
key of one key/value head and adds up its dK and dV over the queries, of every query head, that
list it. Only what is listed is read, so a NaN elsewhere needs no care.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Ints

from ._jit import inner, kernel, owner
from .adjoint import add_to_bias, flipped
from .arguments import LOG2E, added
from .rows import TASK, Layout
from .vectors import claim, dots_1, slopes, softcap, sums_1, weights_by_lane, width


class Scratch(NamedTuple):
    """What one worker needs: the row it owns, q or k with dout or v, and the rows listed for it."""

    left: NDArray[Any]  # (d,)
    right: NDArray[Any]  # (e,)
    d_left: NDArray[Any]
    d_right: NDArray[Any]
    listed: Ints  # the rows; -1: it is not seen
    s: NDArray[Any]  # scores, filled up to whole panels
    g: NDArray[Any]  # dP, then dS
    slope: NDArray[Any]
    lse: NDArray[Any]  # of the queries
    mean: NDArray[Any]


@owner
def scratch(x, longest):
    """Room for a row with so many rows listed."""
    d, e, kind, most = x.sizes[4], x.sizes[5], x.out.dtype, longest + width(x.out)
    return Scratch(
        np.empty(d, kind), np.empty(e, kind), np.empty(d, kind), np.empty(e, kind),
        np.empty(longest, np.int64), np.zeros(most, kind), np.zeros(most, kind),
        np.empty(most, kind), np.zeros(most, kind), np.zeros(most, kind),
    )  # fmt: skip


@kernel
def queries(worker, counters, x, y, layout, how, slots, box):
    """All dQ, dbias too; a task is a box of batch rows, heads and `TASK`s of queries."""
    batches, heads, m = len(slots.batch), len(layout.heads), x.sizes[2]
    work, step = scratch(x, layout.longest), TASK * box[2]
    by_head, by_row = (heads + box[1] - 1) // box[1], (m + step - 1) // step
    tasks = (batches + box[0] - 1) // box[0] * by_head * by_row
    while True:
        task = claim(counters, worker)
        if task >= tasks:
            break
        one, two, part = task // (by_head * by_row), task // by_row % by_head, task % by_row
        for at in range(one * box[0], min((one + 1) * box[0], batches)):
            for which in range(two * box[1], min((two + 1) * box[1], heads)):
                for i in range(part * step, min((part + 1) * step, m)):
                    one_query(x, y, layout, how, slots, work, at, which, i, part)


@inner
def one_query(x, y, layout, how, slots, work, at, which, i, part):
    """One query's dQ."""
    head, batch, first = layout.heads[which], slots.batch[at], slots.first[at]
    begin, end = layout.indptr[layout.layout_of[which], i : i + 2]
    while end > begin and layout.indices[end - 1] >= slots.length[at]:
        end -= 1
    q_at = batch * x.q_strides[0] + head * x.q_strides[1] + i * x.q_strides[2]
    up_at = batch * y.dout_strides[0] + head * y.dout_strides[1] + i * y.dout_strides[2]
    d, e, factor = x.sizes[4], x.sizes[5], x.out.dtype.type(how.factor)
    own(work, x.q[q_at : q_at + d], y.dout[up_at : up_at + e], factor)
    count, group = end - begin, head // (x.sizes[0] // x.sizes[1])
    k_at = batch * x.k_strides[0] + group * x.k_strides[1] + first * x.k_strides[2]
    v_at = batch * x.v_strides[0] + group * x.v_strides[1] + first * x.v_strides[2]
    k_row, v_row = x.k_strides[2], x.v_strides[2]
    dots_1(work.s, -begin, work.left, 0, 0, x.k, k_at, d, k_row, layout.indices, begin, end)
    dots_1(work.g, -begin, work.right, 0, 0, x.v, v_at, e, v_row, layout.indices, begin, end)
    for t in range(count):
        work.listed[t] = layout.indices[begin + t]
        work.lse[t], work.mean[t] = y.lse[batch, head, i], y.mean[batch, head, i]
    cap(how, work, count)
    for t in range(count):
        j, times = work.listed[t], layout.times[begin + t]
        add(how, slots, work, at, head, i, j, times, t)
    weigh(work, count)
    if len(y.dbias):
        for t in range(count):
            if work.listed[t] >= 0:
                j = work.listed[t]
                away = slots.position[j] - slots.q_start - i
                add_to_bias(how, y, batch, head, part, i, first + j, away, work.g[t])
    seen = slope(how, work, count)
    sums_1(work.d_left, 0, work.g, 0, 0, x.k, k_at, d, k_row, work.listed, 0, seen)
    add_to(y.dq[batch, head, i], work.d_left, x.out.dtype.type(y.scale))


@kernel
def keys(worker, counters, x, y, layout, how, slots, groups):
    """All dK and dV; `layout` is transposed: every key lists the queries that see it."""
    columns = layout.indptr.shape[1] - 1
    work, parts = scratch(x, layout.longest), (columns + TASK - 1) // TASK
    while True:
        task = claim(counters, worker)
        if task >= len(slots.batch) * len(groups) * parts:
            break
        at, which, part = task // (len(groups) * parts), task // parts % len(groups), task % parts
        for j in range(part * TASK, min((part + 1) * TASK, columns, slots.length[at])):
            one_key(x, y, layout, how, slots, work, at, groups[which], j)


@inner
def one_key(x, y, layout, how, slots, work, at, group, j):
    """One key's dK and dV, over the query heads of its group."""
    batch, slot, ratio = slots.batch[at], slots.first[at] + j, x.sizes[0] // x.sizes[1]
    k_at = batch * x.k_strides[0] + group * x.k_strides[1] + slot * x.k_strides[2]
    v_at = batch * x.v_strides[0] + group * x.v_strides[1] + slot * x.v_strides[2]
    d, e, factor = x.sizes[4], x.sizes[5], x.out.dtype.type(how.factor)
    own(work, x.k[k_at : k_at + d], x.v[v_at : v_at + e], factor)
    for which in range(len(layout.heads)):
        head = layout.heads[which]
        if head // ratio != group:
            continue
        begin, end = layout.indptr[layout.layout_of[which], j : j + 2]
        q_at = batch * x.q_strides[0] + head * x.q_strides[1]
        up_at = batch * y.dout_strides[0] + head * y.dout_strides[1]
        count, q_row, up_row = end - begin, x.q_strides[2], y.dout_strides[2]
        dots_1(work.s, -begin, work.left, 0, 0, x.q, q_at, d, q_row, layout.indices, begin, end)
        dots_1(
            work.g, -begin, work.right, 0, 0, y.dout, up_at, e, up_row, layout.indices, begin, end
        )
        for t in range(count):
            i = work.listed[t] = layout.indices[begin + t]
            work.lse[t], work.mean[t] = y.lse[batch, head, i], y.mean[batch, head, i]
        cap(how, work, count)
        for t in range(count):
            i, times = work.listed[t], layout.times[begin + t]
            add(how, slots, work, at, head, i, j, times, t)
        weigh(work, count)
        seen = slope(how, work, count)
        sums_1(work.d_left, 0, work.g, 0, 0, x.q, q_at, d, q_row, work.listed, 0, seen)
        sums_1(work.d_right, 0, work.s, 0, 0, y.dout, up_at, e, up_row, work.listed, 0, seen)
    add_to(y.dk[batch, group, slot], work.d_left, x.out.dtype.type(y.scale))
    add_to(y.dv[batch, group, slot], work.d_right, x.out.dtype.type(1))


@inner
def own(work, left, right, factor):
    """The row that is owned, its left side scaled; empty sums."""
    for c in range(len(left)):
        work.left[c] = left[c] * factor
    for c in range(len(right)):
        work.right[c] = right[c]
    work.d_left[:] = 0
    work.d_right[:] = 0


@inner
def cap(how, work, count):
    """The softcap of some scores, and its slopes."""
    w = width(work.s)
    if how.softcap > 0 and count:
        rows = (count + w - 1) // w
        work.s[count : rows * w] = 0
        slopes(work.s, 0, rows, work.slope)
        softcap(work.s, 0, rows, work.s.dtype.type(how.softcap))


@inner
def add(how, slots, work, at, head, i, j, times, t):
    """Bias, ALiBi and counts, in units of log 2; a pair with score -inf is not seen."""
    kind = work.s.dtype
    if len(how.bias) or len(how.slopes):
        away = slots.position[j] - slots.q_start - i
        more = added(how, slots.batch[at], head, i, slots.first[at] + j, away)
        work.s[t] += kind.type(more * LOG2E)
    if times > 1:
        work.s[t] += kind.type(np.log2(times))
    if work.s[t] == -np.inf:
        work.listed[t] = -1


@inner
def weigh(work, count):
    """Scores become weights, dP becomes dS."""
    w = width(work.s)
    for r in range(0, count, w):
        weights_by_lane(work.s, r, 1, work.g, r, work.lse, work.mean, r)


@inner
def slope(how, work, count):
    """Only pairs that are seen, dS times the slope of the softcap; how many there are."""
    seen = 0
    for t in range(count):
        if work.listed[t] >= 0:
            change = work.g[t] * work.slope[t] if how.softcap > 0 else work.g[t]
            work.listed[seen], work.g[seen], work.s[seen] = work.listed[t], change, work.s[t]
            seen += 1
    return seen


@inner
def add_to(target, source, factor):
    """Add a row, times a factor."""
    for c in range(len(source)):
        target[c] += source[c] * factor


def transposed(layout: Layout, n: int) -> Layout:
    """The layout by columns: every key lists the queries that see it."""
    indptr, indices, where = flipped(layout.indptr, layout.indices, n)
    longest = int(np.diff(indptr, axis=1).max(initial=0))
    return layout._replace(
        indptr=indptr, indices=indices, times=layout.times[where], longest=longest
    )
