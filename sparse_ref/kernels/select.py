"""The selectors, fast: scores by panels of queries, quickselect, no array of n x n.

They compute in float32, in float64 if an input is float64. Where every score is exact in that type
(dyadic inputs, as the golden files have) they choose what `sparse_ref.selection` chooses, ties
included; elsewhere a key may be chosen in place of another whose score is greater by the rounding
of the two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import floats, integer
from sparse_ref.patterns import Causal, Chunked, Pattern
from sparse_ref.selection import Selection
from sparse_ref.selection.inputs import Inputs, inputs

from .select_inputs import KEYS, placed, scored, seen
from .select_scores import by_blocks, by_keys
from .threads import run

INDEX = ("index_q", "index_k")


def topk_keys(
    q: Any,
    k: Any,
    *,
    count: int,
    visible: Pattern = Causal(),  # noqa: B008
    q_start: Any = None,
    kv_positions: Any = None,
) -> Selection:
    """`sparse_ref.selection.topk_keys`, fast.

    Takes and answers what that does. Computes in float32, in float64 if an input is float64.

    >>> x = np.ones((1, 4, 1), dtype=np.float32)
    >>> topk_keys(x, x, count=2).indices.tolist()
    [[[[0, -1], [0, 1], [0, 1], [0, 1]]]]
    """
    given = inputs(q, k, visible, q_start, kv_positions)
    h, g = given.q.shape[1], given.k.shape[1]
    table = _keys(given, integer("count", count), None)
    return Selection.of_sorted(table, heads=h, kv_heads=g, visible=visible)


def lightning_indexer(
    index_q: Any,
    index_k: Any,
    index_weights: Any,
    *,
    count: int = 2048,
    visible: Pattern = Causal(),  # noqa: B008
    q_start: Any = None,
    kv_positions: Any = None,
) -> Selection:
    """`sparse_ref.selection.lightning_indexer`, fast.

    Takes and answers what that does. Computes in float32, in float64 if an input is float64.

    >>> x = np.ones((1, 4, 1), dtype=np.float32)
    >>> lightning_indexer(x, x, np.ones((4, 1)), count=1).indices.tolist()
    [[[[0], [0], [0], [0]]]]
    """
    given = inputs(index_q, index_k, visible, q_start, kv_positions, names=INDEX, shared=True)
    b, heads, m, _ = given.q.shape
    shape, weights = (*np.shape(index_q)[:-3], m, heads), floats("index_weights", index_weights)
    if weights.shape != shape:
        raise ValueError(f"index_weights must have shape {shape}, got {weights.shape}")
    table = _keys(given, integer("count", count), weights.reshape(b, m, heads))
    return Selection.of_sorted(table, visible=visible)


def topk_blocks(
    q: Any,
    k: Any,
    *,
    count: int,
    block_size: int = 64,
    pool: str = "mean",
    visible: Pattern = Causal(),  # noqa: B008
    q_start: Any = None,
    kv_positions: Any = None,
) -> Selection:
    """`sparse_ref.selection.topk_blocks`, fast.

    Takes and answers what that does. Computes in float32, in float64 if an input is float64.

    >>> x = np.ones((1, 4, 1), dtype=np.float32)
    >>> topk_blocks(x, x, count=1, block_size=2).indices.tolist()
    [[[[0], [0], [0], [0]]]]
    """
    given = inputs(q, k, visible, q_start, kv_positions)
    if pool not in ("mean", "max"):
        raise ValueError(f"pool must be one of mean, max, got {pool!r}")
    count, size = integer("count", count), integer("block_size", block_size, 1)
    h, g, table = given.q.shape[1], given.k.shape[1], _blocks(given, count, size, 0, pool == "mean")
    return Selection.of_sorted(table, heads=h, kv_heads=g, key_block=size, visible=visible)


def moba(
    q: Any,
    k: Any,
    *,
    count: int,
    block_size: int = 512,
    visible: Pattern = Causal(),  # noqa: B008
    q_start: Any = None,
    kv_positions: Any = None,
) -> Selection:
    """`sparse_ref.selection.moba`, fast.

    Takes and answers what that does. Computes in float32, in float64 if an input is float64.

    >>> x = np.ones((1, 4, 1), dtype=np.float32)
    >>> moba(x, x, count=1, block_size=2).indices.tolist()
    [[[[0], [0], [1], [1]]]]
    """
    given = inputs(q, k, visible, q_start, kv_positions)
    count, size = integer("count", count, 1), integer("block_size", block_size, 1)
    h, g, table = given.q.shape[1], given.k.shape[1], _blocks(given, count, size, 1, mean=True)
    return Selection.of_sorted(
        table, heads=h, kv_heads=g, key_block=size, always=Chunked(size), counted=True,
        visible=visible,
    )  # fmt: skip


def msa(
    index_q: Any,
    index_k: Any,
    *,
    count: int = 16,
    block_size: int = 128,
    local: int = 1,
    visible: Pattern = Causal(),  # noqa: B008
    q_start: Any = None,
    kv_positions: Any = None,
) -> Selection:
    """`sparse_ref.selection.msa`, fast.

    Takes and answers what that does. Computes in float32, in float64 if an input is float64.

    >>> x = np.ones((1, 4, 1), dtype=np.float32)
    >>> msa(x, x, count=1, block_size=2).indices.tolist()
    [[[[0], [0], [1], [1]]]]
    """
    given = inputs(index_q, index_k, visible, q_start, kv_positions, names=INDEX, shared=True)
    count, size = integer("count", count), integer("block_size", block_size, 1)
    local = integer("local", local, 0, count)
    always = Chunked(size, back=local - 1) if local else None
    return Selection.of_sorted(
        _blocks(given, count, size, local, mean=False), key_block=size, always=always,
        counted=always is not None, visible=visible,
    )  # fmt: skip


def _keys(given: Inputs, count: int, weights: NDArray[Any] | None) -> NDArray[np.int32]:
    """The indices (b, s, m, k) of single keys; with weights there is one list."""
    lists = given.q.shape[1] if weights is None else 1
    return _table(given, count, lists, KEYS, weights=weights)


def _blocks(given: Inputs, count: int, size: int, local: int, mean: bool) -> NDArray[np.int32]:
    """The indices (b, h, m, k) of blocks."""
    return _table(given, count, given.q.shape[1], size, pool=(local, mean))


def _table(
    given: Inputs,
    count: int,
    lists: int,
    size: int,
    *,
    weights: NDArray[Any] | None = None,
    pool: tuple[int, bool] | None = None,
) -> NDArray[np.int32]:
    """Choose for one batch row after another; the last axis is as long as the longest row."""
    b, h, m, d = given.q.shape
    rows = [
        placed(given.visible.for_batch(batch), frame, given.k[batch])
        for batch, frame in enumerate(given.frames)
    ]
    longest = max((k.shape[1] for _, k in rows), default=0)
    most = min(count, longest if pool is None else -(-longest // size))
    table = np.full((b, lists, m, most), -1, dtype=np.int32)
    local, mean = pool or (0, False)
    for batch, (visible, k) in enumerate(rows):
        n, frame = k.shape[1], given.frames[batch]
        if not m or not n or not most:
            continue
        x = scored(given, batch, k, table[batch], weights, size if mean else 0)
        see = seen(visible, m, n, int(frame.q[0]), x.q.dtype, size, local, mean)
        kernel, work = by_keys if pool is None else by_blocks, len(see.indices) * size * h * d
        run(kernel, x, see, work=float(work * see.masks.shape[2]))
    filled = (table >= 0).any(axis=(0, 1, 2)) if most else np.zeros(0, dtype=bool)
    return table[..., : int(filled.sum())]
