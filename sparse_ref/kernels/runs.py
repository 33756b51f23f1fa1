"""The keys of a few queries as runs of neighbouring slots.

In decoding every step has a new length, so its layout is thrown away after one use and has to cost
little. The predicate is asked about spans of keys first, as `layouts.to_blocks` does, and about
single keys only where a span holds both answers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from sparse_ref._arrays import LIMIT, Ints
from sparse_ref.layouts.csr import frame_csr
from sparse_ref.patterns import Frame, Pattern
from sparse_ref.patterns.spans import Span, Tri

SPAN = 512  # keys


class Runs(NamedTuple):
    """Row i sees the slots start..stop - 1, `times` times each, of its runs, which ascend."""

    indptr: Ints  # (rows + 1,)
    start: Ints
    stop: Ints
    times: Ints


def runs_of(pattern: Pattern, frame: Frame) -> Runs:
    """The runs of a head-free pattern for every query of a frame."""
    m, n = len(frame.q), len(frame.k)
    if pattern.explicit:
        return of_csr(frame_csr(pattern, frame))
    if not m or not n:
        none = np.zeros(0, dtype=np.int64)
        return Runs(np.zeros(m + 1, dtype=np.int64), none, none, none)
    keys, lo, hi, filled = _spans(frame.k)
    pieces = [_pieces(part, frame.q, keys, lo, hi, filled) for part in pattern.parts]
    row, start, stop = (np.concatenate(side) for side in zip(*pieces, strict=True))
    return joined(m, n, row, start, stop)


def joined(m: int, n: int, row: Ints, start: Ints, stop: Ints) -> Runs:
    """The runs of m rows of n slots from pieces that touch or overlap, in any order."""
    edge = np.concatenate([row * (n + 1) + start, row * (n + 1) + stop])
    order = np.argsort(edge, kind="stable")
    edge = edge[order]
    level = np.cumsum(np.where(order < len(row), 1, -1))
    last = np.append(edge[1:] != edge[:-1], True)[: len(edge)]  # of the changes at one place
    edge, level = edge[last], level[last]
    new = np.append(True, level[1:] != level[:-1])[: len(edge)]
    edge, level = edge[new], level[new]
    seen = np.flatnonzero(level)  # nothing is seen past the last edge
    row = edge[seen] // (n + 1)
    indptr = np.searchsorted(row, np.arange(m + 1))
    return Runs(indptr, edge[seen] - row * (n + 1), edge[seen + 1] - row * (n + 1), level[seen])


def of_csr(csr: sparse.csr_array[Any]) -> Runs:
    """The runs of a canonical CSR array."""
    (m, _), key, times = csr.shape, csr.indices.astype(np.int64), csr.data.astype(np.int64)
    row = np.repeat(np.arange(m), np.diff(csr.indptr))
    same = (np.diff(row) == 0) & (np.diff(key) == 1) & (np.diff(times) == 0)
    first = np.flatnonzero(np.append(True, ~same)[: len(key)])
    last = np.append(first[1:], len(key))[: len(first)] - 1
    indptr = np.searchsorted(row[first], np.arange(m + 1))
    return Runs(indptr, key[first], key[last] + 1, times[first])


def _spans(k: Ints) -> tuple[Ints, Ints, Ints, Any]:
    """Key slots in rows of SPAN, their positions' range, and whether all of them are in use."""
    keys = k
    if len(k) % SPAN:
        keys = np.full(-(-len(k) // SPAN) * SPAN, -1)
        keys[: len(k)] = k
    keys = keys.reshape(-1, SPAN)
    lo, hi = keys.min(axis=1), keys.max(axis=1)
    filled = lo >= 0
    lo[~filled] = np.where(keys[~filled] < 0, LIMIT, keys[~filled]).min(axis=1)
    return keys, lo, hi, filled


def _pieces(
    pattern: Pattern, q: Ints, keys: Ints, lo: Ints, hi: Ints, filled: Any
) -> tuple[Ints, Ints, Ints]:
    """Row, start and stop of slots that a set shows; pieces of neighbouring spans touch."""
    q, shape = q[:, None], (len(q), len(keys))
    verdict: Tri = pattern(Span(q, q), Span(lo, hi))
    must = np.broadcast_to(verdict.must & filled, shape)
    row, column = np.nonzero(must)
    whole = row, column * SPAN, (column + 1) * SPAN
    row, column = np.nonzero(np.broadcast_to(verdict.may & (hi >= 0), shape) & ~must)
    if not len(row):
        return whole
    some = np.zeros((len(row), SPAN + 2), dtype=np.int8)
    some[:, 1:-1] = pattern(q[row], keys[column]) & (keys[column] >= 0)
    change = np.diff(some, axis=1)
    at, start = np.nonzero(change > 0)
    stop = np.nonzero(change < 0)[1]
    first = column[at] * SPAN
    inside = row[at], first + start, first + stop
    return tuple(np.concatenate(side) for side in zip(whole, inside, strict=True))  # type: ignore[return-value]
