"""What the selecting kernels take: flat arrays, and where every query may look."""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Ints
from sparse_ref.layouts import to_blocks
from sparse_ref.patterns import Frame, Keys, Pattern
from sparse_ref.selection.inputs import Inputs

from .arguments import flat
from .plans import working
from .vectors import lanes_of

KEYS = 256  # of a block where single keys are chosen


class Scored(NamedTuple):
    """One batch row: flat queries and keys with strides in elements (head, length)."""

    q: NDArray[Any]
    k: NDArray[Any]
    q_strides: Ints
    k_strides: Ints
    sizes: Ints  # query heads, key heads, m, n, d
    weights: NDArray[Any]  # (m, h) of a lightning indexer; else empty: each head is on its own
    sums: NDArray[Any]  # flat (g, blocks, d), the sum of the keys of each block; else empty
    out: NDArray[np.int32]  # (lists, m, count)
    codes: NDArray[Any]  # empty, of the integers that scores are compared as


class Seen(NamedTuple):
    """The key blocks that a panel of queries may see, and which keys in them."""

    indptr: Ints  # (panels + 1,)
    indices: NDArray[np.int32]
    tile_ids: NDArray[np.int32]
    masks: NDArray[np.uint8]  # (tiles, keys of a block, queries of a panel)
    size: int  # keys of a block
    most: int  # blocks that a panel sees
    q_start: int
    local: int  # blocks up to the query's own that are chosen before all others
    mean: bool  # or the greatest


def scored(
    given: Inputs, batch: int, k: NDArray[Any], out: NDArray[np.int32], weights: Any, block: int
) -> Scored:
    """The arrays of one batch row; its keys `k` (g, n, d) in order of position."""
    kind = working(given.q.dtype, k.dtype, *(() if weights is None else (weights.dtype,)))
    (h, m, d), (g, n) = given.q.shape[1:], k.shape[:2]
    q, q_strides = flat(given.q[batch : batch + 1], kind)
    keys, k_strides = flat(k[None], kind)
    none, sums = np.zeros((0, 0), dtype=kind), np.zeros(0, dtype=kind)
    if block and n:
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf is a score of NaN
            sums = np.add.reduceat(np.asarray(k, kind), np.arange(0, n, block), axis=1).ravel()
    mine = none if weights is None else np.ascontiguousarray(weights[batch], dtype=kind)
    codes = np.zeros(0, dtype=np.int32 if kind == np.float32 else np.int64)
    sizes = np.array([h, g, m, n, d])
    return Scored(q, keys, q_strides[1:], k_strides[1:], sizes, mine, sums, out, codes)


def seen(
    visible: Pattern, m: int, n: int, q_start: int, kind: Any, size: int, local: int, mean: bool
) -> Seen:
    """Where the queries of one batch row may look among n keys at positions 0, 1, 2, ..."""
    indptr, indices, tiles, masks = _blocks(visible, m, n, q_start, _lanes(kind), size)
    most = int(np.diff(indptr).max(initial=0))
    return Seen(indptr, indices, tiles, masks, size, most, q_start, local, mean)


def placed(visible: Pattern, frame: Frame, k: NDArray[Any]) -> tuple[Pattern, NDArray[Any]]:
    """The keys (g, n, d) at positions 0, 1, 2, ...; where none is, zeros that nobody sees."""
    if np.array_equal(frame.k, np.arange(len(frame.k))):
        return visible, k
    filled = np.flatnonzero(frame.k >= 0)
    at = frame.k[filled]
    if len(np.unique(at)) < len(at):
        raise ValueError("kv_positions must hold a position once")
    length = int(at.max(initial=-1)) + 1
    moved = np.zeros((k.shape[0], length, k.shape[2]), dtype=k.dtype)
    moved[:, at] = k[:, filled]
    if len(at) == length:
        return visible, moved
    return visible & Keys(np.isin(np.arange(length), at)), moved


def _lanes(kind: Any) -> int:
    return int(lanes_of(8 * np.dtype(kind).itemsize))


@lru_cache(maxsize=8)
def _blocks(
    visible: Pattern, m: int, n: int, q_start: int, lanes: int, size: int
) -> tuple[Ints, NDArray[np.int32], NDArray[np.int32], NDArray[np.uint8]]:
    """A block layout whose rows are panels, its masks with queries along the last axis."""
    blocks = to_blocks(visible, m, n, block_size=(lanes, size), q_start=q_start)
    masks = np.ascontiguousarray(blocks.tile_masks.swapaxes(1, 2))
    return blocks.indptr[0], blocks.indices, blocks.tile_ids, masks
