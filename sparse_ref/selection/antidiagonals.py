"""XAttention: blocks by the sums of scores along antidiagonals."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_ref._arrays import Bools, Floats, integer
from sparse_ref.patterns import Causal, Chunked, Sink

from .inputs import Row, inputs
from .mass import fraction, scale_of
from .picks import ranked
from .scores import probabilities, products
from .selection import Selection


def xattention(
    q: Any,
    k: Any,
    *,
    mass: float = 0.9,
    stride: int = 8,
    block_size: int = 128,
    scale: float | None = None,
) -> Selection:
    """Blocks of keys for blocks of queries, by a softmax over antidiagonals of the scores.

    Steps, for every head; the queries are the last m of n positions:

    1. Every `stride` positions make a group. Score of query group a at key group b: the sum over
       r < stride of q[a stride + stride - 1 - r] . k[b stride + r], one antidiagonal of the tile,
       times scale / stride. A position that is not there adds 0.
    2. P = softmax over the key groups b <= a.
    3. Mass of a key block for a query block: the sum of P over their groups.
    4. The first block and the query block's own come first. Then the others by descending mass, of
       equal ones the smaller: keep one as long as the mass of all before it, those two included,
       is below `mass` times the row's. So what is kept has at least that share. With `mass` = 1
       all earlier blocks are.
    5. Inside, only keys up to the query are attended to.

    O(m n d / stride) time a head; the released kernels work on groups of `stride` tokens laid side
    by side, which is the same product.

    Published code: the estimate defaults to 0.9 of the mass, prefill to 0.8; `keep_sink` there
    makes the first *row* of blocks full, not the first column. Queries that are fewer than the keys
    are aligned by padded chunks there; here n - m must be a multiple of block_size. Two slips of
    the released code, run and compared, are not followed: in the first chunk of queries it forgets
    the first block while it counts, and so keeps a block more than it needs; and its PyTorch path,
    where less than a stride of padding is needed, hides all earlier chunks (a slice from -0). In
    all other rows its blocks are these.

    Parameters
    ----------
    q : (..., h, m, d) floats
    k : (..., g, n, d) floats; g divides h
    mass : float in [0, 1]
    stride, block_size : int >= 1; stride divides block_size
    scale : float, default d ** -0.5

    Returns
    -------
    Selection of blocks for blocks of queries, one list a query head.

    Source: Xu et al. 2025 (arXiv:2503.16428) and mit-han-lab/x-attention e379887, `Xattention.py`,
    `utils.py`. Witness: none that installs without a GPU; the tests derive it again.

    >>> q, k = np.ones((1, 6, 1)), np.array([[[0.0], [0.0], [9.0], [9.0], [0.0], [0.0]]])
    >>> xattention(q, k, mass=0.5, stride=2, block_size=2).indices[0, 0].tolist()
    [[0, -1, -1], [0, 1, -1], [0, 1, 2]]
    """
    given, factor = inputs(q, k, Causal(), None, None), scale_of(scale, q)
    share = fraction("mass", mass)
    stride, size = integer("stride", stride, 1), integer("block_size", block_size, 1)
    b, h, m, _ = given.q.shape
    g, n = given.k.shape[1:3]
    if size % stride:
        raise ValueError(f"block_size must be a multiple of stride = {stride}, got {size}")
    if m > n or (n - m) % size:
        raise ValueError(
            f"q must begin at a multiple of block_size = {size} within the {n} keys, got {n - m}"
        )
    rows, blocks = -(-m // size), -(-n // size)
    own = (n - m) // size + np.arange(rows)[:, None]
    seen = np.arange(blocks) <= own
    forced = seen & ((np.arange(blocks) == own) | (np.arange(blocks) == 0))
    indices = np.full((b, h, rows, blocks), -1, dtype=np.int32)
    for row in given.rows():
        held = block_mass(row, stride, size, factor / stride)
        chosen = seen if share == 1 else _kept(held, share, forced, seen)
        indices[row.batch] = np.where(chosen, np.arange(blocks), -1)
    return Selection(
        indices, heads=h, kv_heads=g, query_block=size, key_block=size,
        always=Sink(size) | Chunked(size), counted=True,
    )  # fmt: skip


def block_mass(row: Row, stride: int, size: int, factor: float) -> Floats:
    """How much of the softmax each query block has in each key block, (h, query, key blocks)."""
    m, n = len(row.queries), len(row.keys)
    # reversed within a group, a query meets the key of its antidiagonal at the same place
    queries = _grouped(row.q, stride)[:, :, ::-1]
    keys = _grouped(row.k, stride)
    wide = stride * keys.shape[-1]
    scores = products(*(x.reshape(*x.shape[:2], wide) for x in (queries, keys)))
    a = (n - m) // stride + np.arange(scores.shape[1])[:, None]
    p = probabilities(factor * scores, np.arange(scores.shape[2]) <= a)
    starts = (np.arange(0, -(-x // stride), size // stride) for x in (m, n))
    for axis, start in zip((1, 2), starts, strict=True):
        p = np.add.reduceat(p, start, axis=axis) if len(start) else p
    return p


def _grouped(x: Floats, stride: int) -> Floats:
    """(heads, positions, d) as (heads, groups, stride, d), zeros at the end."""
    groups = -(-x.shape[1] // stride)
    whole = np.pad(x, ((0, 0), (0, groups * stride - x.shape[1]), (0, 0)))
    return whole.reshape(len(x), groups, stride, x.shape[2])


def _kept(held: Floats, share: float, forced: Bools, seen: Bools) -> Bools:
    """Those forced, and others as long as what comes before them is below the share."""
    order = ranked(held, seen, forced)
    ordered = np.take_along_axis(held, order, axis=-1)
    needed = share * held.sum(axis=-1, keepdims=True)
    chosen = np.zeros(held.shape, dtype=bool)
    np.put_along_axis(chosen, order, np.cumsum(ordered, axis=-1) - ordered < needed, axis=-1)
    return (chosen | forced) & seen
