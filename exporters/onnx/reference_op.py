"""The operator by the oracle, for onnx's ReferenceEvaluator(model, new_ops=[SparseAttention])."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

import sparse_ref as sr

from .schema import DOMAIN


class SparseAttention(OpRun):
    """Lists and tiles read plainly into one pattern per batch row and head, then `sr.attention`.

    Computes in float64 and rounds once, to the query's type.
    """

    op_domain = DOMAIN

    def _run(
        self, query: Any, key: Any, value: Any, block_indices: Any, block_count: Any,
        tile_ids: Any, tile_masks: Any, key_length: Any, sinks: Any, q_block_size: Any = None,
        k_block_size: Any = None, scale: Any = None, softcap: Any = None,
    ) -> tuple[Any, ...]:  # fmt: skip
        b, h, m, _ = query.shape
        n = key.shape[2]
        pattern = listed_pattern(
            block_indices, block_count, tile_ids, tile_masks, shape=(b, h, m, n)
        )
        got = sr.attention(
            query, key, value, pattern, scale=scale, softcap=softcap or None, q_start=0,
            sink_logits=np.broadcast_to(sinks, (h,)),
            kv_lengths=np.clip(np.broadcast_to(key_length, (b,)), 0, n),
        )  # fmt: skip
        sums = np.float64 if query.dtype == np.float64 else np.float32
        return (got.out.astype(query.dtype), got.lse.astype(sums))[: len(self.onnx_node.output)]


def listed_pattern(
    block_indices: NDArray[np.int32],
    block_count: NDArray[np.int32],
    tile_ids: NDArray[np.int32],
    tile_masks: NDArray[np.uint8],
    *,
    shape: tuple[int, int, int, int],
) -> sr.Pattern:
    """What the operator's lists and tiles say, as one pattern per batch row and head.

    Parameters
    ----------
    block_indices, block_count, tile_ids, tile_masks
        As the operator takes them.
    shape : (int, int, int, int)
        Batch, heads, queries, keys.

    Examples
    --------
    >>> from exporters.onnx import block_tensors
    >>> lists = block_tensors(sr.to_blocks(sr.Causal(), 3, 3, block_size=2))
    >>> print(sr.draw(listed_pattern(*lists.values(), shape=(1, 1, 3, 3)), 3))
    # . .
    # # .
    # # #
    """
    b, h, *lengths = shape
    indices, counts, ids = (
        np.broadcast_to(x, (b, h, *x.shape[2:])) for x in (block_indices, block_count, tile_ids)
    )

    def seen(*at: int) -> sr.Pattern:
        return _pattern(indices[at], counts[at], ids[at], tile_masks, (lengths[0], lengths[1]))

    rows = [sr.PerHead([seen(i, j) for j in range(h)]) for i in range(b)]
    return sr.PerBatch(rows) if rows else sr.Full()  # an empty batch has nothing to see


def _pattern(
    indices: NDArray[np.int32],
    counts: NDArray[np.int32],
    ids: NDArray[np.int32],
    masks: NDArray[np.uint8],
    shape: tuple[int, int],
) -> sr.Pattern:
    """What one head's lists say, as a multiset over (queries, keys) when a key counts often."""
    _, bq, bk = masks.shape
    columns = -(-shape[1] // bk)
    times = np.zeros((len(counts), columns, bq, bk), dtype=np.uint8)
    for row, count in enumerate(counts):
        times[row, indices[row, :count]] = masks[ids[row, :count]]
    dense = times.swapaxes(1, 2).reshape(len(counts) * bq, columns * bk)[: shape[0], : shape[1]]
    most = int(dense.max(initial=1))
    sets = [sr.from_mask(dense >= least) for least in range(1, most + 1)]
    return sets[0] if most == 1 else sr.Multi(sets)
