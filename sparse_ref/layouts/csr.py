"""A pattern as a SciPy CSR array, multiplicities as its data."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from scipy import sparse

from sparse_ref._arrays import Ints, integer
from sparse_ref.patterns import Frame, Pattern
from sparse_ref.patterns.dense import frame_of, one_row
from sparse_ref.patterns.pattern import checked


def to_csr(
    pattern: Pattern | Lowerable,
    q_len: int,
    kv_len: int,
    *,
    head: int = 0,
    q_start: int | None = None,
    batch: int = 0,
) -> sparse.csr_array[Any]:
    """The allowed keys of every query of one head, in time and memory near their number.

    Parameters
    ----------
    pattern : Pattern or Selection
    q_len, kv_len : int >= 0
    head : int
        Which head; head h has the pattern of h % pattern.heads.
    q_start : int, optional
        Absolute position of the first query; default kv_len - q_len.
    batch : int
        The batch row, for a `PerBatch` or a `Selection`.

    Returns
    -------
    csr_array (q_len, kv_len) of int32 multiplicities (1 for sets), canonical: columns ascend, no
    duplicates, no stored zeros.

    >>> from sparse_ref import Causal
    >>> to_csr(Causal(), 2, 3).indices
    array([0, 1, 0, 1, 2], dtype=int32)
    """
    pattern = settled(pattern, q_len, kv_len, q_start, batch, None)
    frame = frame_of(pattern, q_len, kv_len, q_start)
    return frame_csr(one_row(pattern, batch).at(integer("head", head)), frame)


class Lowerable(Protocol):
    """What is a pattern only once lengths and batch row are known (a content-based selection)."""

    def lowered(
        self, q_len: int, kv_len: int, *, q_start: int | None, batch: int, heads: int | None
    ) -> Pattern: ...


def settled(
    pattern: Pattern | Lowerable,
    q_len: int,
    kv_len: int,
    q_start: int | None,
    batch: int,
    heads: int | None,
) -> Pattern:
    """The pattern itself, or what it becomes for these lengths."""
    if not isinstance(pattern, Pattern) and hasattr(pattern, "lowered"):
        return pattern.lowered(q_len, kv_len, q_start=q_start, batch=batch, heads=heads)
    return checked(pattern)


def frame_csr(pattern: Pattern, frame: Frame) -> sparse.csr_array[Any]:
    """The CSR array of a head-free pattern over checked positions."""
    start, keys = int(frame.q[0]) if len(frame.q) else 0, frame.keys
    stop = start + len(frame.q)
    found = [part.rows(start, stop, keys) for part in pattern.parts]
    shape = (len(frame.q), len(frame.k))
    arrays = [_csr(rows.indptr, rows.indices, shape) for rows in found]
    total = sum(arrays[1:], arrays[0])
    total.sort_indices()
    return total


def _csr(indptr: Ints, indices: Ints, shape: tuple[int, int]) -> sparse.csr_array[Any]:
    index = np.int32 if max(len(indices), *shape) < 2**31 else np.int64
    data = np.ones(len(indices), dtype=np.int32)
    return sparse.csr_array((data, indices.astype(index), indptr.astype(index)), shape=shape)
