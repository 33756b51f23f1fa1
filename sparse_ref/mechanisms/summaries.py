"""LongT5's transient-global attention: a window, and a summary of every block of tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sparse_ref._arrays import Bools, Floats, Ints, integer
from sparse_ref.gradients import attention_vjp
from sparse_ref.reference import attention
from sparse_ref.relative_bias import RelativeBias
from sparse_ref.results import Attention

from ._border import Counted, Extents, lengths_of


class TGlobalGradients(NamedTuple):
    """Gradients in the shapes of x, the projections, norm and the tables (None if not given).

    >>> TGlobalGradients([0.0], [0.0], [0.0], [0.0], [0.0], None, None).dbias is None
    True
    """

    dx: Any
    dquery: Any
    dkey: Any
    dvalue: Any
    dnorm: Any
    dbias: Any
    dglobal_bias: Any


def longt5_tglobal(
    x: Any,
    query: Any,
    key: Any,
    value: Any,
    norm: Any,
    *,
    radius: int = 127,
    global_block_size: int = 16,
    bias: RelativeBias | None = None,
    global_bias: RelativeBias | None = None,
    lengths: Any = None,
    eps: float = 1e-6,
) -> Attention:
    """Every token sees its neighbours and the summary of every block, in one softmax.

    1. Token t belongs to block t // G of the n // G full ones; the tokens after the last full
       block join it. A text shorter than G has no summaries.
    2. Summary of a block: the sum (not the mean) of its x, through T5's norm,
       s * norm / sqrt(mean(s^2) + eps).
    3. q, k and v are projections of x; a summary's k and v come from the same two projections.
    4. Scores q.k without a scale, as everywhere in T5, plus bias by the distance key - query for
       tokens and global_bias by (block - own block) for summaries; softmax over the tokens at
       most `radius` away and all summaries. No causal form.

    Time O(n (2 radius + 1 + n / G)). Tokens past a row's length are in no block and are not seen;
    queries there give 0.

    What transformers 5.23 does otherwise: a padded query sees the summaries that do not exist; the
    blocks of a text padded on the left are cut at other places. Its block numbers are sums of
    1 / G in float32, which is exact for G a power of two only.

    Parameters
    ----------
    x : (b, n, c) floats
        Hidden states, after the layer's own norm.
    query, key, value : (c, h, d), (c, h, d), (c, h, e) floats
    norm : (c,) floats
        `global_input_layer_norm`.
    radius, global_block_size : int >= 0 and >= 1
    bias, global_bias : RelativeBias, optional
        T5 shares a value between far distances; written out as tables of distances here.
    lengths : int or (b,) ints, default n
    eps : float

    Returns
    -------
    Attention(out, lse), float64, (b, h, n, e) and (b, h, n): before the output projection.

    Source: Guo et al. 2022 (arXiv:2112.07916), by transformers' code, which names flaxformer's
    `long_attention.py` as its own. Witness: transformers, `LongT5TransientGlobalAttention`.

    >>> one = np.ones((1, 1, 1))
    >>> x = np.array([[[0.0], [0.0], [3.0], [1.0], [-1.0]]])
    >>> longt5_tglobal(x, 0 * one, one, one, [1.0], radius=0, global_block_size=2).out.round(3)
    array([[[[ 0.333],
             [ 0.333],
             [ 1.333],
             [ 0.667],
             [-0.   ]]]])
    """
    given = _TGlobal(x, query, key, value, norm, radius, global_block_size, lengths, eps)
    table, _ = given.bias(bias, global_bias)
    q, k, v = given.arrays
    return attention(q, k, v, Counted(given.seen), scale=1.0, bias=table, q_start=0)


def longt5_tglobal_vjp(
    x: Any,
    query: Any,
    key: Any,
    value: Any,
    norm: Any,
    dout: Any,
    *,
    radius: int = 127,
    global_block_size: int = 16,
    bias: RelativeBias | None = None,
    global_bias: RelativeBias | None = None,
    lengths: Any = None,
    eps: float = 1e-6,
) -> TGlobalGradients:
    """Gradients of `sum(out * dout)` for `longt5_tglobal` with the same arguments.

    >>> one = np.ones((1, 1, 1))
    >>> x = np.array([[[0.0], [0.0], [3.0], [1.0], [-1.0]]])
    >>> up = np.ones((1, 1, 5, 1))
    >>> found = longt5_tglobal_vjp(x, one, one, one, [1.0], up, radius=0, global_block_size=2)
    >>> found.dnorm.shape, found.dvalue.shape
    ((1,), (1, 1, 1))
    """
    given = _TGlobal(x, query, key, value, norm, radius, global_block_size, lengths, eps)
    table, index = given.bias(bias, global_bias)
    q, k, v = given.arrays
    back = attention_vjp(
        q, k, v, Counted(given.seen), dout, scale=1.0, bias=table, q_start=0
    )  # fmt: skip
    dquery = np.einsum("bnc,bhnd->chd", given.x, back.dq)
    dkey = np.einsum("bnc,bhnd->chd", given.sources, back.dk)
    dvalue = np.einsum("bnc,bhnd->chd", given.sources, back.dv)
    dsources = np.einsum("bhnd,chd->bnc", back.dk, given.key)
    dsources += np.einsum("bhnd,chd->bnc", back.dv, given.value)
    n = given.x.shape[1]
    dsummary, dnorm = given.through_norm(dsources[:, n:])
    dx = np.einsum("bhnd,chd->bnc", back.dq, given.query)
    dx += dsources[:, :n] + given.member @ dsummary
    tables = [
        None if one is None else np.bincount(
            at.ravel(), back.dbias[..., part].ravel(), one.table.size
        ).reshape(one.table.shape)
        for one, at, part in zip(
            (bias, global_bias), index, (slice(None, n), slice(n, None)), strict=True
        )
    ]  # fmt: skip
    return TGlobalGradients(dx, dquery, dkey, dvalue, dnorm, *tables)


class _TGlobal:
    """The checked arguments, and what is made of them before the scores."""

    def __init__(
        self, x: Any, query: Any, key: Any, value: Any, norm: Any,
        radius: int, size: int, lengths: Any, eps: float,
    ) -> None:  # fmt: skip
        sizes = Extents()
        self.x = sizes.floats("x", x, "b n c")
        self.query = sizes.floats("query", query, "c h d")
        self.key = sizes.floats("key", key, "c h d")
        self.value = sizes.floats("value", value, "c h e")
        self.norm = sizes.floats("norm", np.asarray(norm), "c")
        self.eps, self.heads = float(eps), sizes["h"]
        size, radius = integer("global_block_size", size, 1), integer("radius", radius)
        b, n = self.x.shape[:2]
        valid = np.arange(n) < lengths_of(lengths, b, n)[:, None]  # (b, n)
        full = valid.sum(axis=1, keepdims=True) // size  # blocks of each batch row
        self.block: Ints = np.minimum(np.arange(n) // size, full - 1)  # -1: there is none
        blocks = np.arange(n // size)
        exists = blocks < full
        self.member: Any = (self.block[..., None] == blocks) & valid[..., None] & exists[:, None]
        self.member = self.member.astype(np.float64)  # (b, n, blocks)
        self.seen = self._seen(valid, exists, radius)
        self.sums = self.member.swapaxes(1, 2) @ self.x
        self.root = np.sqrt(np.mean(self.sums**2, axis=-1, keepdims=True) + self.eps)
        self.sources = np.concatenate([self.x, self.sums / self.root * self.norm], axis=1)

    @property
    def arrays(self) -> tuple[Floats, Floats, Floats]:
        """Queries of the tokens, keys and values of tokens and summaries."""
        return (
            np.einsum("bnc,chd->bhnd", self.x, self.query),
            np.einsum("bnc,chd->bhnd", self.sources, self.key),
            np.einsum("bnc,chd->bhnd", self.sources, self.value),
        )

    def _seen(self, valid: Bools, exists: Bools, radius: int) -> Bools:
        """(b, 1, n, n + blocks)."""
        t = np.arange(valid.shape[1])
        near = (abs(t[:, None] - t) <= radius) & valid[:, None]
        both = np.concatenate([near, np.broadcast_to(exists[:, None], self.member.shape)], axis=2)
        return np.asarray((both & valid[..., None])[:, None])

    def bias(self, near: RelativeBias | None, far: RelativeBias | None) -> tuple[Any, list[Any]]:
        """The score bias (b, h, n, n + blocks), and where in each table it was read."""
        b, n = self.x.shape[:2]
        t, blocks = np.arange(n), np.arange(self.member.shape[2])
        distances = [np.broadcast_to(t - t[:, None], (b, n, n)), blocks - self.block[..., None]]
        parts, index = [], []
        for one, distance in zip((near, far), distances, strict=True):
            heads = range(self.heads)
            at = [distance * 0 if one is None else one.index(distance, h) for h in heads]
            index.append(np.stack(at, axis=1))
            parts.append(index[-1] * 0.0 if one is None else one.table.ravel()[index[-1]])
        return np.concatenate(parts, axis=-1), index

    def through_norm(self, dnormed: Floats) -> tuple[Floats, Floats]:
        """The gradients of the sums and of norm."""
        unit, up = self.sums / self.root, dnormed * self.norm
        dsums = (up - unit * np.mean(unit * up, axis=-1, keepdims=True)) / self.root
        return dsums, np.asarray(np.sum(dnormed * unit, axis=(0, 1)))
