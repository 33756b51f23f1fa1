"""Relation: an explicit set of (query, key) pairs, in CSR form, that answers every reading.

On arrays it looks pairs up by binary search; on spans it counts the pairs of a rectangle with a
wavelet matrix (Claude and Navarro, 2012), in as many steps as a key has bits, so that a pattern
of a million explicit rows still has its block layout in near-linear time.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from sparse_ref._arrays import Ints, array


class KeyRows(NamedTuple):
    """Keys of consecutive queries: row i sees `indices[indptr[i]:indptr[i + 1]]`, ascending."""

    indptr: Ints
    indices: Ints

    @property
    def row_of(self) -> Ints:
        """The row of every entry."""
        return np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))

    def keep(self, wanted: np.ndarray[Any, np.dtype[np.bool_]]) -> KeyRows:
        """The entries where `wanted` is true."""
        return KeyRows.of(self.row_of[wanted], self.indices[wanted], len(self.indptr) - 1)

    @staticmethod
    def of(row: Ints, key: Ints, count: int, *, ordered: bool = True) -> KeyRows:
        """KeyRows from (row, key) pairs; `ordered` says they are sorted and unique already."""
        if not ordered:
            order = np.lexsort((key, row))
            row, key = row[order], key[order]
            if row.size:
                new = np.append(True, (np.diff(row) != 0) | (np.diff(key) != 0))
                row, key = row[new], key[new]
        indptr = np.zeros(count + 1, dtype=np.int64)
        np.cumsum(np.bincount(row, minlength=count), out=indptr[1:])
        return KeyRows(indptr, np.asarray(key, dtype=np.int64))

    def over(self, keys: int | Ints) -> KeyRows:
        """Key positions turned into key slots: 0..keys - 1, or wherever `keys` has the position.

        `keys` holds the position of each slot; a slot with a negative position is empty.
        """
        if isinstance(keys, int):
            inside = (self.indices >= 0) & (self.indices < keys)
            return self if inside.all() else self.keep(inside)
        order = np.argsort(keys, kind="stable")
        sorted_ = keys[order]
        left = np.searchsorted(sorted_, self.indices)
        right = np.searchsorted(sorted_, self.indices, side="right")
        times = np.where(self.indices >= 0, right - left, 0)
        row = np.repeat(self.row_of, times)
        first = np.repeat(left - (np.cumsum(times) - times), times)
        key = order[first + np.arange(len(row))]
        return KeyRows.of(row, key, len(self.indptr) - 1, ordered=False)


class Relation:
    """Pairs (query, key) with query in [0, len(relation)); no pair exists outside.

    Equality and hash go by content: a SHA-256 taken once.

    >>> pairs = Relation(KeyRows(np.array([0, 2, 3]), np.array([0, 5, 1])))
    >>> pairs[np.array([0, 0, 1, 9]), np.array([5, 1, 1, 0])]
    array([ True, False,  True, False])
    """

    def __init__(self, rows: KeyRows) -> None:
        self.rows = rows
        for part in rows:
            part.setflags(write=False)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of indptr and indices as little-endian int64."""
        return hashlib.sha256(b"".join(x.astype("<i8").tobytes() for x in self.rows)).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Relation) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __len__(self) -> int:
        return len(self.rows.indptr) - 1

    def __repr__(self) -> str:
        return f"<{len(self)} rows, {len(self.rows.indices)} pairs>"

    def slice(self, start: int, stop: int) -> KeyRows:
        """The rows of queries start..stop - 1, empty where there are none."""
        inside = np.clip(np.arange(start, stop + 1), 0, len(self))
        cuts = self.rows.indptr[inside]
        return KeyRows(cuts - cuts[0], self.rows.indices[cuts[0] : cuts[-1]])

    def __getitem__(self, pair: tuple[Any, Any]) -> Any:
        q, k = pair
        if (relate := getattr(q, "relate", None)) is not None:
            return relate(self, k)
        q, k = np.broadcast_arrays(q, k)
        if not len(self._codes):
            return np.zeros(q.shape, dtype=bool)
        inside = (q >= 0) & (q < len(self)) & (k >= 0) & (k < self._width)
        code = np.where(inside, q * self._width + k, -1)
        at = np.searchsorted(self._codes, code).clip(max=len(self._codes) - 1)
        return self._codes[at] == code

    @cached_property
    def _width(self) -> int:
        return int(self.rows.indices.max(initial=0)) + 1

    @cached_property
    def _codes(self) -> Ints:
        return self.rows.row_of * self._width + self.rows.indices

    def count(self, q_lo: Any, q_hi: Any, k_lo: Any, k_hi: Any) -> Ints:
        """The number of pairs with query in q_lo..q_hi and key in k_lo..k_hi, all inclusive."""
        q_lo, q_hi, k_lo, k_hi = np.broadcast_arrays(q_lo, q_hi, k_lo, k_hi)
        first, last = (self.rows.indptr[np.clip(q, 0, len(self))] for q in (q_lo, q_hi + 1))
        below = [self._below(first, last, np.clip(k, 0, self._width)) for k in (k_lo, k_hi + 1)]
        return below[1] - below[0]

    def _below(self, first: Ints, last: Ints, bound: Ints) -> Ints:
        """How many of the entries first..last - 1 have a key below `bound`."""
        total = np.zeros(first.shape, dtype=np.int64)
        for bit, zeros in self._wavelet:
            one = (bound >> bit) & 1 == 1
            a, b = zeros[first], zeros[last]
            total += np.where(one, b - a, 0)
            first = np.where(one, zeros[-1] + first - a, a)
            last = np.where(one, zeros[-1] + last - b, b)
        return total

    @cached_property
    def _wavelet(self) -> list[tuple[int, Ints]]:
        """For each bit, from the highest: how many of the first i entries have it clear."""
        levels, keys = [], self.rows.indices
        for bit in reversed(range(self._width.bit_length())):
            clear = (keys >> bit) & 1 == 0
            levels.append((bit, np.append(0, np.cumsum(clear))))
            keys = np.concatenate([keys[clear], keys[~clear]])
        return levels


def relation_of(name: str, value: object) -> Relation:
    """Pairs from a SciPy sparse array or from a dense bool mask."""
    if not sparse.issparse(value):
        dense = array(name, value)
        if dense.dtype != bool or dense.ndim != 2:
            raise TypeError(
                f"{name} must be a SciPy sparse array or a bool mask of 2 dimensions, "
                f"got {dense.dtype} of shape {dense.shape}"
            )
        row, key = np.nonzero(dense)
        return Relation(KeyRows.of(row, key, dense.shape[0]))
    got: Any = value
    if got.ndim != 2:
        raise ValueError(f"{name} must have 2 dimensions, got shape {got.shape}")
    coo = got.tocoo()
    if not np.all(coo.data != 0):
        raise ValueError(f"{name} must hold no explicit zeros, got {int((coo.data == 0).sum())}")
    row, key = coo.coords[0].astype(np.int64), coo.coords[1].astype(np.int64)
    return Relation(KeyRows.of(row, key, got.shape[0], ordered=False))
