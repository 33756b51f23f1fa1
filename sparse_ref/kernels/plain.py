"""The functions of `simd` as plain loops: for any machine, and to be run without compiling."""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import math

import numpy as np

from ._jit import inner

LANES = 8


def lanes_of(bits: int) -> int:
    """The number of lanes of a panel, whatever its numbers."""
    return LANES


@inner
def width(array):
    """The number of lanes of a panel."""
    return LANES


@inner
def claim(counters, worker):
    """The next task of this worker: each takes every so many-th, without an atomic counter."""
    task = counters[worker]
    counters[worker] += len(counters)
    return task


@inner
def product(c, a, at, row, rows, b, bo, k):
    """C = A B: A has `rows` rows of k > 0 numbers, `row` apart from a[at] on; C and B panels."""
    for r in range(rows):
        for lane in range(LANES):
            c[r * LANES + lane] = 0
        for i in range(k):
            x = a[at + r * row + i]
            for lane in range(LANES):
                c[r * LANES + lane] += x * b[bo + i * LANES + lane]


@inner
def add_product(c, co, a, at, row, columns, b, k, shrink, so):
    """C = shrink * C + A^T B: A has k rows of `columns` numbers; `shrink` one for each lane."""
    for r in range(columns):
        for lane in range(LANES):
            c[co + r * LANES + lane] *= shrink[so + lane]
        for i in range(k):
            x = a[at + i * row + r]
            for lane in range(LANES):
                c[co + r * LANES + lane] += x * b[i * LANES + lane]


def _scattered(rows):
    """`dots` and `sums` of `scattered`, for so many rows."""

    @inner
    def dots(x, xo, a, ao, apart, y, yo, size, row, keys, first, stop):
        """x[r apart + j] = the product of row r of a with the key in slot keys[j]."""
        for r in range(rows):
            for j in range(first, stop):
                total = x.dtype.type(0)
                for c in range(size):
                    total += a[ao + r * size + c] * y[yo + keys[j] * row + c]
                x[xo + r * apart + j] = total

    @inner
    def sums(x, xo, a, ao, apart, y, yo, size, row, keys, first, stop):
        """Rows of x += a[r apart + j] times the value in slot keys[j]."""
        for r in range(rows):
            for j in range(first, stop):
                for c in range(size):
                    x[xo + r * size + c] += a[ao + r * apart + j] * y[yo + keys[j] * row + c]

    return dots, sums


(dots_1, sums_1), (dots_4, sums_4) = (_scattered(rows) for rows in (1, 4))


@inner
def to_lanes(panel, po, rows, ro, size):
    """A panel: number c of row r, at rows[ro + r size + c], goes to panel[po + c width + r]."""
    for r in range(LANES):
        for c in range(size):
            panel[po + c * LANES + r] = rows[ro + r * size + c]


@inner
def to_rows(rows, ro, panel, po, size, factor, fo):
    """The same back, lane r times factor[fo + r]."""
    for r in range(LANES):
        for c in range(size):
            rows[ro + r * size + c] = panel[po + c * LANES + r] * factor[fo + r]


@inner
def softmax(s, so, rows, m, l, r, at):  # noqa: E741
    """One step of an online softmax, as `simd.softmax`."""
    lowest = -125.0 if s.itemsize == 4 else -1021.0
    for lane in range(LANES):
        peak = m[at + lane]
        for i in range(rows):
            x = s[so + i * LANES + lane]
            peak = max(peak, x) if x == x and peak == peak else peak  # noqa: PLR0124
        shift = peak if peak != -np.inf else s.dtype.type(0)
        x = m[at + lane] - shift
        r[at + lane] = 0 if x < lowest else 2**x
        m[at + lane] = peak
        total = l[at + lane] * r[at + lane]
        for i in range(rows):
            x = s[so + i * LANES + lane] - shift
            s[so + i * LANES + lane] = 0 if x < lowest else 2**x
            total += s[so + i * LANES + lane]
        l[at + lane] = total


@inner
def softcap(s, so, rows, cap):
    """Replace s by cap * tanh(s / (2 log2(e))) on a panel."""
    for i in range(so, so + rows * LANES):
        s[i] = cap * math.tanh(s[i] * (0.5 * math.log(2)))


@inner
def slopes(s, so, rows, t):
    """The slope of `softcap`, as `simd.slopes`."""
    for i in range(rows * LANES):
        u = 2 ** -abs(s[so + i])
        t[i] = 4 * u / ((1 + u) * (1 + u))


@inner
def weights_by_lane(s, so, rows, g, go, lse, mean, at):
    """Scores become weights, g their gradients: each lane has its lse and mean."""
    for r in range(rows):
        for lane in range(LANES):
            i = r * LANES + lane
            _weigh(s, so + i, g, go + i, lse[at + lane], mean[at + lane])


@inner
def weights_by_row(s, so, rows, g, go, lse, mean, at):
    """As `weights_by_lane`, but each row has its lse and mean."""
    for r in range(rows):
        for lane in range(LANES):
            i = r * LANES + lane
            _weigh(s, so + i, g, go + i, lse[at + r], mean[at + r])


@inner
def _weigh(s, i, g, j, lse, mean):
    lowest = -125.0 if s.itemsize == 4 else -1021.0
    if s[i] == -np.inf:
        s[i] = g[j] = 0
    else:
        s[i] = 0 if s[i] - lse < lowest else 2 ** (s[i] - lse)
        g[j] = s[i] * (g[j] - mean)


@inner
def select(s, so, rows, allowed, at):
    """-inf where `allowed`, a panel of bytes, is 0."""
    for i in range(rows * LANES):
        s[so + i] = s[so + i] if allowed[at + i] else -np.inf
