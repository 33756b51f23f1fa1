"""The plain selectors: the best keys, the best blocks of keys."""

from __future__ import annotations

from typing import Any

from sparse_ref._arrays import Bools, Ints, integer
from sparse_ref.patterns import Causal, Pattern

from .inputs import Row, inputs
from .picks import best
from .scores import Blocked, dots
from .selection import Selection

POOLS = ("mean", "max")


def topk_keys(
    q: Any,
    k: Any,
    *,
    count: int,
    visible: Pattern = Causal(),  # noqa: B008 - a value, like a number
    q_start: Any = None,
    kv_positions: Any = None,
) -> Selection:
    """The `count` visible keys with the greatest q . k, for every query of every head.

    Steps, for every query (Explicit Sparse Transformer, arXiv:1912.11637; arXiv:2106.06899):

    1. Score every visible key by q . k; a positive scale and a softcap would not change the order.
    2. Keep the min(count, visible) greatest; of equal ones the smaller position.

    O(m n (d + log n)) time a head as written here, memory by chunks of queries; O(n d + count) a
    query with quickselect. Published code disagrees on ties: torch's top-k leaves their order open,
    x-transformers keeps every key >= the count-th, so more than `count`. Attention renormalises
    over what is kept; some repositories take the top of the probabilities and do not.

    Parameters
    ----------
    q : (..., h, m, d) floats
    k : (..., g, n, d) floats; g divides h
    count : int >= 0
    visible : Pattern, default Causal()
        What a query may see at all, alike for all heads.
    q_start : int or (...,) ints, optional
        Absolute position of the first query; default n - m.
    kv_positions : int (n,) or (..., n), optional
        Absolute position of each key slot, no two alike; a negative one is an empty slot.

    Returns
    -------
    Selection of keys, one list a query head.

    Witnesses: torch's `topk`, and x-transformers' rule where nothing ties.

    >>> import numpy as np
    >>> q, k = np.ones((1, 4, 1)), np.array([[[1.0], [3.0], [3.0], [2.0]]])
    >>> topk_keys(q, k, count=1).indices.tolist()
    [[[[0], [1], [1], [1]]]]
    """
    given = inputs(q, k, visible, q_start, kv_positions)
    count, h, g = integer("count", count), given.q.shape[1], given.k.shape[1]

    def rule(row: Row, cut: slice) -> tuple[Bools, Ints]:
        return best(dots(row, cut), row.seen(cut), count), row.keys

    indices = given.table(rule, each=h * given.k.shape[2])
    return Selection(indices, heads=h, kv_heads=g, visible=visible)


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
    """The `count` blocks of keys with the greatest pooled q . k, for every query of every head.

    Steps, for every query:

    1. Score a block by the mean, or the greatest, of q . k over those of its keys that the query
       sees. The mean of the products is the product with the mean key.
    2. Keep the min(count, visible) best of the blocks it sees a key of; of equal ones the smaller.
       Inside them only visible keys are attended to.

    O(m n d) time a head as written here, O(n d + m n d / block_size) with the means of whole blocks
    taken once. Published code disagrees on the block that holds the query: its mean over *all* its
    keys would know the future (so MoBA and MSA force it, see there), and a decoding step, which
    has seen a part of the block only, would choose differently from the prompt. Here both agree.

    The default block of 64 is that of the published kernels. All query heads choose for themselves.

    Parameters
    ----------
    q, k, visible, q_start, kv_positions : as `topk_keys` takes them
    count : int >= 0
    block_size : int
        Block j is positions j * block_size .. (j + 1) * block_size - 1; lengths need not divide.
    pool : "mean" or "max"

    Returns
    -------
    Selection of blocks, one list a query head.

    Source: the scheme under MoBA (arXiv:2502.13189), MInference's block-sparse heads
    (arXiv:2407.02490, on means of 64 queries and keys) and MSA. No runnable witness of its own, but
    `msa` and `moba` are its two pools; two derivations, `conformance.choosing` the second.

    >>> import numpy as np
    >>> q, k = np.ones((1, 4, 1)), np.array([[[3.0], [0.0], [2.0], [2.0]]])
    >>> topk_blocks(q, k, count=1, block_size=2).indices.tolist()
    [[[[0], [0], [1], [1]]]]
    >>> topk_blocks(q, k, count=1, block_size=2, pool="max").indices.tolist()
    [[[[0], [0], [0], [0]]]]
    """
    given = inputs(q, k, visible, q_start, kv_positions)
    count, size = integer("count", count), integer("block_size", block_size, 1)
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")
    h, g = given.q.shape[1], given.k.shape[1]

    def rule(row: Row, cut: slice) -> tuple[Bools, Ints]:
        blocks, seen = Blocked(row.keys, size), row.seen(cut)
        scores = getattr(blocks, pool)(dots(row, cut), seen)
        return best(scores, blocks.any(seen), count), blocks.numbers

    indices = given.table(rule, each=h * given.k.shape[2])
    return Selection(indices, heads=h, kv_heads=g, key_block=size, visible=visible)
