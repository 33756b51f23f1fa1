"""Selectors that watch the last queries: SnapKV evicts by them, MInference finds lines by them."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_ref._arrays import LIMIT, Bools, Floats, Ints, integer
from sparse_ref.patterns import Causal, Keys

from .caches import text
from .inputs import Row
from .mass import scale_of
from .picks import best
from .scores import dots, probabilities
from .selection import Selection

POOLS = ("mean", "max")


def snapkv(
    q: Any,
    k: Any,
    *,
    capacity: int = 2048,
    window: int = 32,
    kernel: int = 5,
    pool: str = "mean",
    grouped: bool = False,
    scale: float | None = None,
) -> Selection:
    """Which keys of a prompt stay for the queries after it, by what its last queries attend to.

    Steps, for every head of a prompt of n tokens:

    1. n <= capacity: all stay.
    2. The attention of the last `window` queries, summed, at the n - window keys before them.
    3. Pooled along the keys over `kernel` neighbours: "mean" divides by kernel at the ends too,
       where there are fewer (zeros are counted); "max".
    4. The capacity - window keys with the greatest pooled attention stay, of equal ones (which
       "max" makes) the smaller, and the last `window`.

    O(window n d) time a head. Answers what later queries see: the kept keys, and every key after
    the prompt. Give it to `attention` with the queries after the prompt and all keys; their number
    does not matter. Keys keep the positions they were rotated at.

    Published code disagrees about the head axis: the released code chooses for every query head on
    repeated keys, so that a cache of grouped heads is no smaller than h; kvpress averages a group
    (`grouped`). It keeps int(n (1 - ratio)) keys, and means over queries, which orders alike.
    Defaults differ within the released code: window 64, capacity 320 in the class, 32 and 2048 in
    what calls it.

    Parameters
    ----------
    q : (..., h, n, d) floats
    k : (..., g, n, d) floats; g divides h
    capacity, window : int; 1 <= window < capacity
    kernel : odd int >= 1
    pool : "mean" or "max"
    grouped : bool
        One list for each group of heads, by their mean; default, one for each head.
    scale : float, default d ** -0.5

    Returns
    -------
    Selection of keys with one row, for any number of queries that follow.

    Source: Li et al. 2024 (arXiv:2404.14469) and FasterDecoding/SnapKV, `snapkv_utils.py`.
    Witness: kvpress 0.5.5, `SnapKVPress.score` (grouped, mean); the released class kept the same
    when it was run once, but for ties with "max".

    >>> q, k = np.ones((1, 5, 1)), np.array([[[0.0], [3.0], [0.0], [0.0], [0.0]]])
    >>> kept = snapkv(q, k, capacity=3, window=2, kernel=1)
    >>> kept.indices[0, 0].tolist()
    [[1, 3, 4]]
    >>> kept.mask(2, 7)[0].astype(int)
    array([[0, 1, 0, 1, 1, 1, 0],
           [0, 1, 0, 1, 1, 1, 1]])
    """
    given, factor = text(q, k), scale_of(scale, q)
    capacity = integer("capacity", capacity, 2)
    window, kernel = integer("window", window, 1, capacity - 1), integer("kernel", kernel, 1)
    if kernel % 2 == 0:
        raise ValueError(f"kernel must be odd, got {kernel}")
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")
    h, g, n = given.q.shape[1], given.k.shape[1], given.k.shape[2]
    lists = g if grouped else h
    kept = np.broadcast_to(np.arange(n), (len(given.q), lists, 1, n))
    if n > capacity:
        before, rows = n - window, []
        for row in given.rows():
            score = _last(row, window, factor)[..., :before].sum(axis=1)
            score = _pooled(score, kernel, pool).reshape(lists, -1, before).mean(axis=1)
            stays = best(score, np.ones(score.shape, dtype=bool), capacity - window)
            rows.append([np.append(np.flatnonzero(one), np.arange(before, n)) for one in stays])
        kept = np.array(rows).reshape(len(given.q), lists, 1, capacity)
    return Selection(
        kept.astype(np.int32),
        heads=h,
        kv_heads=g,
        query_block=LIMIT - 1,
        always=Causal() - Keys(range(n)),
    )


def vertical_slash(
    q: Any,
    k: Any,
    *,
    columns: int = 1000,
    offsets: int = 6096,
    last: int = 64,
    initial: int = 30,
    near: int = 100,
    scale: float | None = None,
) -> Selection:
    """MInference's vertical-slash heads: a few columns and a few diagonals of a prompt's attention.

    Steps, for every head of a prompt of n tokens:

    1. The attention of the last `last` queries.
    2. Score of a column: its sum; the first `initial` columns come first. Score of an offset o:
       the sum over those queries p of the attention at key p - o; offsets below `near` come first.
    3. Keep the `columns` best columns V and the `offsets` best offsets D, of equal ones the
       smaller; what came first counts.
    4. Query p sees key j if j <= p and (j in V or p - j in D): `recipes.vertical_slash`.

    O(last n d) time a head to choose. In prefill only; decoding is dense there.

    The released kernel (minference fb56c91) sees more: each diagonal is rounded to whole blocks of
    64 keys for 64 queries, the columns are exact. It also raises columns to at least 30 and offsets
    to at least 50, which is left to the caller, and takes 30 for `near` in its pattern search. With
    fewer offsets than `near` it takes whichever top-k returns among those forced; here the nearest.
    Which head is of this kind, and its two sizes, come from an offline search (the defaults are
    those of a head without an entry).

    Parameters
    ----------
    q : (..., h, n, d) floats
    k : (..., g, n, d) floats; g divides h
    columns, offsets, initial, near : int >= 0
    last : int >= 1
    scale : float, default d ** -0.5

    Returns
    -------
    Selection of keys, one list a query head.

    Source: Jiang et al. 2024 (arXiv:2407.02490). Witness: none that installs; the released
    lines that choose gave the same when they were run once, and the tests derive it again.

    >>> q, k = np.ones((1, 5, 1)), np.array([[[0.0], [9.0], [0.0], [0.0], [0.0]]])
    >>> found = vertical_slash(q, k, columns=1, offsets=1, last=2, initial=0, near=1)
    >>> print(found.mask(5, 5)[0].astype(int))
    [[1 0 0 0 0]
     [0 1 0 0 0]
     [0 1 1 0 0]
     [0 1 0 1 0]
     [0 1 0 0 1]]
    """
    given, factor = text(q, k), scale_of(scale, q)
    counts = integer("columns", columns), integer("offsets", offsets)
    forced = integer("initial", initial), integer("near", near)
    last, h, g = integer("last", last, 1), given.q.shape[1], given.k.shape[1]

    def rule(row: Row, cut: slice) -> tuple[Bools, Ints]:
        n = len(row.keys)
        p = _last(row, last, factor)
        offset = row.queries[n - p.shape[1] :, None] - row.keys  # negative: not visible, p is 0
        lines = np.zeros((len(p), n))
        for o in range(n):
            lines[:, o] = p[:, offset == o].sum(axis=1)
        both = (p.sum(axis=1), lines)
        column, line = (
            best(score, np.ones(score.shape, dtype=bool), count, np.arange(n) < first)
            for score, count, first in zip(both, counts, forced, strict=True)
        )
        away = row.queries[cut][:, None] - row.keys
        on_line = line[:, np.maximum(away, 0)]
        return (column[:, None] | on_line) & (away >= 0), row.keys

    return Selection(given.table(rule, each=h * given.k.shape[2]), heads=h, kv_heads=g)


def _last(row: Row, count: int, factor: float) -> Floats:
    """The attention of the last queries, (h, at most count, n)."""
    n = len(row.queries)
    cut = slice(max(n - count, 0), n)
    return probabilities(factor * dots(row, cut), row.seen(cut))


def _pooled(score: Floats, kernel: int, pool: str) -> Floats:
    """Each with its kernel // 2 neighbours on both sides, along the last axis."""
    side = (0, 0), (kernel // 2, kernel // 2)
    around = np.pad(score, side, constant_values=0.0 if pool == "mean" else -np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(around, kernel, axis=-1)
    return np.asarray(windows.mean(axis=-1) if pool == "mean" else windows.max(axis=-1))
