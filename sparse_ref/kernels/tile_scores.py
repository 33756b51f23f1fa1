"""Scores of a block of pairs and dP, computed again for the gradients.

One side of a block is owned by a worker and stands in the lanes, queries in one pass and keys in
the other; the rows of the other side are listed.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Ints

from ._jit import inner, owner
from .arguments import LOG2E, added
from .vectors import product, select, slopes, softcap, width


class Scratch(NamedTuple):
    """What one worker needs: `mine` are the rows it owns, in lanes, `theirs` the listed ones.

    What enters the score, q or k, is left; what enters dP, dout or v, is right.
    """

    mine: Ints
    theirs: Ints
    my_left: NDArray[Any]  # (panels, d, width)
    my_right: NDArray[Any]  # (panels, e, width)
    left: NDArray[Any]  # (rows, d)
    right: NDArray[Any]  # (rows, e)
    clean_left: NDArray[Any]  # without their non-finite entries
    clean_right: NDArray[Any]
    s: NDArray[Any]  # (rows, width)
    g: NDArray[Any]
    slope: NDArray[Any]
    seen: NDArray[np.bool_]
    lse: NDArray[Any]  # of the queries in the block
    mean: NDArray[Any]
    d_left: NDArray[Any]  # (panels, d, width)
    d_right: NDArray[Any]  # (panels, e, width)
    ones: NDArray[Any]  # (width,): no sum shrinks here
    d: int
    e: int
    by_lane: np.bool_  # queries stand in the lanes, or else keys


@owner
def scratch(x, block, by_lane):
    """Room for blocks of so many rows in lanes, and so many listed."""
    d, e, kind, w = x.sizes[4], x.sizes[5], x.out.dtype, width(x.out)
    own, listed = block
    return Scratch(
        np.empty(own, np.int64), np.empty(listed, np.int64), np.empty(own * d, kind),
        np.empty(own * e, kind), np.empty(listed * d, kind), np.empty(listed * e, kind),
        np.empty(listed * d, kind), np.empty(listed * e, kind), np.empty(listed * w, kind),
        np.empty(listed * w, kind), np.empty(listed * w, kind), np.empty(listed * w, np.bool_),
        np.empty(max(own, listed), kind), np.empty(max(own, listed), kind),
        np.empty(own * d, kind), np.empty(own * e, kind), np.ones(w, kind), d, e,
        np.bool_(by_lane),
    )  # fmt: skip


@inner
def load_means(work, lse, mean, index):
    """The queries' lse and mean; 0 where there is none."""
    for r in range(len(index)):
        i = index[r]
        work.lse[r] = lse[i] if i >= 0 else 0
        work.mean[r] = mean[i] if i >= 0 else 0


@inner
def scores(layout, how, slots, work, at, head, tile, panel, low, count, holes):
    """S in units of log 2, -inf where a pair is not seen, and dP, of some rows and a panel."""
    d, e, w = work.d, work.e, width(work.s)
    product(work.s, work.left, low * d, d, count, work.my_left, panel * d * w, d)
    product(work.g, work.right, low * e, e, count, work.my_right, panel * e * w, e)
    if how.softcap > 0:
        slopes(work.s, 0, count, work.slope)
        softcap(work.s, 0, count, work.s.dtype.type(how.softcap))
    if len(how.bias) or len(how.slopes):
        add(how, slots, work, at, head, panel, low, count)
    if tile:
        panels, rows = len(work.mine) // w, len(work.theirs)
        mask = ((tile * panels + panel) * rows + low) * w
        select(work.s, 0, count, layout.masks, mask)
        if layout.counted[tile]:
            for i in range(count * w):
                times = layout.masks[mask + i]
                work.s[i] += work.s.dtype.type(layout.logs[max(times, 1)])
    if holes:
        for r in range(count):
            if work.theirs[low + r] < 0:
                work.s[r * w : (r + 1) * w] = -np.inf


@inner
def add(how, slots, work, at, head, panel, low, count):
    """Bias and ALiBi, in units of log 2."""
    w, batch = width(work.s), slots.batch[at]
    for r in range(count):
        for lane in range(w):
            row, mine = work.theirs[low + r], work.mine[panel * w + lane]
            if row >= 0 and mine >= 0:
                i, j = (mine, row) if work.by_lane else (row, mine)
                distance = slots.position[j] - slots.q_start - i
                more = added(how, batch, head, i, slots.first[at] + j, distance) * LOG2E
                work.s[r * w + lane] += work.s.dtype.type(more)


@inner
def note_seen(work, size):
    """Keep in mind which pairs are seen, before scores become weights."""
    for i in range(size):
        work.seen[i] = work.s[i] != -np.inf


@inner
def through_softcap(work, size):
    """Gradients of scores become gradients of products; what is not seen stays 0."""
    for i in range(size):
        if work.g[i] != 0:
            work.g[i] *= work.slope[i]
