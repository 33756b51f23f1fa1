"""Selectors of models trained to attend so, which score with their own q and k: MoBA, NSA."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_ref._arrays import Bools, Floats, Ints, floats, integer
from sparse_ref.patterns import Causal, Chunked, Pattern, Sink

from .inputs import Inputs, Row, inputs
from .mass import scale_of
from .picks import best, nearest
from .scores import Blocked, dots, probabilities, products
from .selection import Selection


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
    """The `count` blocks of Mixture of Block Attention, the query's own among them.

    Steps, for every query at position p of every head (arXiv:2502.13189):

    1. gate[B] = q . (mean of the keys of block B), unscaled, after rotation.
    2. The query's own block p // block_size comes first, and counts.
    3. Keep the min(count, visible) best blocks; of equal ones the smaller. Inside, only visible
       keys are attended to.

    O(m n d) time a head as written here, O(m n d / block_size) with the means taken once. The mean
    is over the keys the query sees: for earlier blocks under `Causal` that is all of them.

    The released `moba_naive.py` breaks ties as torch's top-k happens to, and with fewer than
    `count` blocks so far picks future ones, which its causal mask then hides. count has no default;
    3 to 12 of blocks of 512 to 4096 are published.

    Parameters
    ----------
    q : (..., h, m, d) floats
    k : (..., g, n, d) floats; g divides h
    count : int >= 1
    block_size : int
    visible, q_start, kv_positions : as `topk_keys` takes them

    Returns
    -------
    Selection of blocks, one list a query head.

    Witness: the algorithm of MoonshotAI/MoBA 61e456b, `moba/moba_naive.py`, written out again.

    >>> q, k = np.ones((1, 5, 1)), np.array([[[2.0], [2.0], [3.0], [0.0], [0.0]]])
    >>> moba(q, k, count=2, block_size=2).indices[0, 0].tolist()
    [[0, -1], [0, -1], [0, 1], [0, 1], [0, 2]]
    """
    given = inputs(q, k, visible, q_start, kv_positions)
    count, size = integer("count", count, 1), integer("block_size", block_size, 1)

    def rule(row: Row, cut: slice) -> tuple[Bools, Ints]:
        blocks, seen = Blocked(row.keys, size), row.seen(cut)
        own = nearest(row.queries[cut], blocks.numbers, size, 1)
        return best(blocks.mean(dots(row, cut), seen), blocks.any(seen), count, own), blocks.numbers

    h, g, n = given.q.shape[1], *given.k.shape[1:3]
    return Selection(
        given.table(rule, each=h * n), heads=h, kv_heads=g, key_block=size,
        always=Chunked(size), counted=True, visible=visible,
    )  # fmt: skip


def nsa_blocks(
    q: Any,
    k: Any,
    *,
    count: int = 16,
    block_size: int = 64,
    window: int = 32,
    stride: int = 16,
    compressed: Any = None,
    initial: int = 1,
    local: int = 2,
    scale: float | None = None,
    visible: Pattern = Causal(),  # noqa: B008
    q_start: Any = None,
    kv_positions: Any = None,
) -> Selection:
    """The `count` blocks of Native Sparse Attention, one list for each group of heads.

    Steps, for every query (arXiv:2502.11089; l = window, d = stride, l' = block_size):

    1. Compressed key c stands for positions c d .. c d + l - 1; a query sees it if it sees all of
       them: under `Causal`, c d + l - 1 <= p.
    2. p_cmp = softmax(scale * q . compressed) over the compressed keys it sees, 0 elsewhere.
    3. Importance of block j: the sum of p_cmp[(l'/d) j + m - n] over 0 <= m < l'/d, 0 <= n < l/d,
       where an index out of range adds 0: each compressed key counts once for every stride-long
       piece that it shares with the block. Summed over the query heads of a group.
    4. The first `initial` blocks, the query's own and the `local` - 1 before it come first, and
       count.
    5. Keep the min(count, visible) best blocks; of equal ones the smaller.

    O(m n h head_dim / stride) time. Published conventions:

    - The paper's Eq. 9 reads (l'/d) j - m - n; its j and p_cmp count from 1, and from 0 that is
      step 3. Code that takes it from 0 to the letter scores each block by what lies before it,
      code that takes + m + n by what lies after it.
    - The paper's sizes are the defaults here: 16 blocks, 1 initial and 2 local among them.
      XunhaoLai's code follows it. fla-core sets window = stride = block_size and takes the mean for
      the compressed key; then step 3 is the identity. It averages over a group, which orders alike.
      fla-org's first release forced the query's own block only: initial=0, local=1.

    Parameters
    ----------
    q : (..., h, m, d) floats
    k : (..., g, n, d) floats; g divides h
    count, block_size, initial, local : int; initial + local <= count
    window, stride : int; stride divides window and block_size
    compressed : (..., g, c, d) floats, optional
        What a trained compression makes of each window; default, their mean.
    scale : float, default d ** -0.5
    visible, q_start, kv_positions : as `topk_keys` takes them

    Returns
    -------
    Selection of blocks, one list a key/value head.

    Witnesses: `naive_nsa_topk` of fla-core 0.6.0; the algorithm of XunhaoLai's
    native-sparse-attention-triton 9bea856, written out again.

    >>> q, k = np.ones((1, 6, 1)), np.array([[[9.0], [9.0], [1.0], [1.0], [0.0], [0.0]]])
    >>> sizes = dict(block_size=2, window=2, stride=1, initial=0, local=1)
    >>> nsa_blocks(q, k, count=2, **sizes).indices[0, 0].tolist()
    [[0, -1], [0, -1], [0, 1], [0, 1], [0, 2], [0, 2]]
    """
    given = inputs(q, k, visible, q_start, kv_positions)
    size, stride = integer("block_size", block_size, 1), integer("stride", stride, 1)
    window, count = integer("window", window, 1), integer("count", count)
    for name, value in (("window", window), ("block_size", size)):
        if value % stride:
            raise ValueError(f"{name} must be a multiple of stride = {stride}, got {value}")
    initial = integer("initial", initial, 0, count)
    local, factor = integer("local", local, 0, count - initial), scale_of(scale, q)
    _, h, g, n = *given.q.shape[:2], *given.k.shape[1:3]
    made = None if compressed is None else _compressed(compressed, given, np.shape(q)[:-3])

    def rule(row: Row, cut: slice) -> tuple[Bools, Ints]:
        seen, blocks = row.seen(cut), Blocked(row.keys, size)
        number = len(_starts(row, window, stride)) if made is None else made.shape[2]
        first = np.searchsorted(row.keys, np.arange(number) * stride)
        last = np.searchsorted(row.keys, np.arange(number) * stride + window)
        before: Ints = np.pad(np.cumsum(seen, axis=-1), ((0, 0), (1, 0)))
        whole = np.asarray(before[:, last] - before[:, first] == window)
        keys = _means(row, first, last, window) if made is None else made[row.batch]
        p = probabilities(factor * products(row.q[:, cut], keys), whole)
        shared = importance(p, blocks.numbers, size // stride, window // stride)
        shared = shared.reshape(g, h // g, *shared.shape[1:]).sum(axis=1)
        forced = nearest(row.queries[cut], blocks.numbers, size, local)
        forced = forced | (blocks.numbers < initial)
        return best(shared, blocks.any(seen), count, forced), blocks.numbers

    always: Pattern = Sink(initial * size)
    if local:
        always |= Chunked(size, back=local - 1)
    return Selection(
        given.table(rule, each=h * max(n, n // stride)), heads=h, kv_heads=g, key_block=size,
        always=always, counted=True, visible=visible,
    )  # fmt: skip


def importance(p: Floats, blocks: Ints, per_block: int, per_window: int) -> Floats:
    """Importance (..., blocks) of the blocks of these numbers, from p_cmp (..., c)."""
    total = np.zeros((*p.shape[:-1], len(blocks)))
    for m in range(per_block):
        for n in range(per_window):
            c = per_block * blocks + m - n
            inside = (c >= 0) & (c < p.shape[-1])
            total[..., inside] += p[..., c[inside]]
    return total


def _starts(row: Row, window: int, stride: int) -> Ints:
    """Where the windows begin that end before the last key."""
    end = int(row.keys[-1]) + 1 if len(row.keys) else 0
    return np.arange(0, max(end - window + 1, 0), stride)


def _means(row: Row, first: Ints, last: Ints, window: int) -> Floats:
    """The mean key (g, c, d) of each window; of one with an empty slot, which no query sees, 0."""
    means, full = np.zeros((len(row.k), len(first), row.k.shape[-1])), last - first == window
    means[:, full] = row.k[:, first[full][:, None] + np.arange(window)].mean(axis=2)
    return means


def _compressed(compressed: object, given: Inputs, lead: tuple[int, ...]) -> Floats:
    got, (b, g, _, d) = floats("compressed", compressed), given.k.shape
    if got.ndim != len(lead) + 3 or got.shape[:-2] != (*lead, g) or got.shape[-1] != d:
        raise ValueError(
            f"compressed must have shape {(*lead, g)} + (number, {d}), got {got.shape}"
        )
    return np.asarray(got.reshape(b, g, -1, d) if got.size else np.zeros((b, g, 0, d)), np.float64)
