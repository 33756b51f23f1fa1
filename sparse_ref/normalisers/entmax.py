"""Attention with alpha-entmax in softmax's place: exact zeros among the allowed keys."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from sparse_ref._arrays import Floats, floats, integer
from sparse_ref.gradients import like, seen_pairs, through_softcap
from sparse_ref.heads import Head, Pairs, Selectable
from sparse_ref.patterns import Pattern
from sparse_ref.problem import cotangent, problem
from sparse_ref.reference import scores
from sparse_ref.relative_bias import RelativeBias

from . import maps


class EntmaxGradients(NamedTuple):
    """Gradients in the shapes of q, k, v, bias (or its table) and alpha; dbias None if not given.

    >>> EntmaxGradients([0.0], [0.0], [0.0], None, 0.5).dalpha
    0.5
    """

    dq: Any
    dk: Any
    dv: Any
    dbias: Any
    dalpha: Any


def entmax_attention(
    q: Any,
    k: Any,
    v: Any,
    pattern: Pattern | Selectable,
    *,
    alpha: Any = 1.5,
    scale: Any = None,
    softcap: Any = None,
    bias: Any = None,
    alibi_slopes: Any = None,
    kv_lengths: Any = None,
    kv_positions: Any = None,
    q_start: Any = None,
) -> Floats:
    """Attention over a pattern with alpha-entmax in softmax's place.

    1. Scores as in `attention`: scale, softcap, bias, ALiBi; a key at -inf is not seen.
    2. Row by row p = [(alpha - 1) s - tau]+^(1 / (alpha - 1)) over the allowed keys, tau such that
       p sums to 1. alpha 2 (sparsemax) and 1.5 by sorting, exact; any other by bisection.
    3. out = p v. Time O(n log n) a row for its n allowed keys, or 70 n by bisection.

    Parameters
    ----------
    q, k, v, pattern, scale ... q_start
        As for `attention`. `Multi` patterns whose keys count more than once raise, and there is
        no `sink_logits` (the reasons stand in `sparse_ref.normalisers`).
    alpha : float > 1, or (h,) floats
        The order: 2 is sparsemax, towards 1 softmax. One a head is Correia et al. 2019
        (arXiv:1909.00015).

    Returns
    -------
    out (..., h, m, e), float64; 0 for a query that sees no key, where the `entmax` package raises
    or gives NaN. NaN, or +inf, among its allowed scores makes a row NaN.

    Source: Peters, Niculae & Martins 2019 (arXiv:1905.05702). Witness: the package `entmax`, whose
    `entmax_bisect` agrees to its float64 tolerance.

    >>> from sparse_ref import Causal
    >>> q = k = np.array([[[0.0], [2.0], [3.0]]])
    >>> entmax_attention(q, k, np.eye(3)[None], Causal(), alpha=2)
    array([[[1., 0., 0.],
            [0., 1., 0.],
            [0., 0., 1.]]])
    """
    given = problem(
        q, k, v, pattern, scale=scale, softcap=softcap, bias=bias, alibi_slopes=alibi_slopes,
        kv_lengths=kv_lengths, kv_positions=kv_positions, q_start=q_start,
    )  # fmt: skip
    orders = _orders(alpha, given.q.shape[1])
    out = np.zeros((*given.q.shape[:3], given.v.shape[-1]))
    for head in given.heads():
        for pairs in head.pairs():
            out[head.batch, head.head, pairs.rows] = _probabilities(head, pairs, orders) @ head.v
    return given.shaped(out)


def entmax_weights(
    q: Any,
    k: Any,
    pattern: Pattern | Selectable,
    *,
    alpha: Any = 1.5,
    scale: Any = None,
    softcap: Any = None,
    bias: Any = None,
    alibi_slopes: Any = None,
    kv_lengths: Any = None,
    kv_positions: Any = None,
    q_start: Any = None,
    head: int = 0,
    batch: int = 0,
) -> sparse.csr_array[Any]:
    """The probabilities of one head of one batch row: csr_array (m, n), zeros not stored.

    >>> from sparse_ref import Full
    >>> q, k = np.ones((1, 1, 1)), np.array([[[1.0], [0.8], [0.1], [-1.0]]])
    >>> entmax_weights(q, k, Full(), alpha=2).toarray().round(12)
    array([[0.6, 0.4, 0. , 0. ]])
    """
    given = problem(
        q, k, k, pattern, scale=scale, softcap=softcap, bias=bias, alibi_slopes=alibi_slopes,
        kv_lengths=kv_lengths, kv_positions=kv_positions, q_start=q_start,
    )  # fmt: skip
    b, h, m, _ = given.q.shape
    one = given.head(integer("batch", batch, 0, b - 1), integer("head", head, 0, h - 1))
    parts = [_probabilities(one, pairs, _orders(alpha, h)) for pairs in one.pairs()]
    if not parts:
        return sparse.csr_array((m, given.k.shape[-2]))
    all_rows = sparse.csr_array(sparse.vstack(parts))
    all_rows.eliminate_zeros()
    return all_rows


def entmax_attention_vjp(
    q: Any,
    k: Any,
    v: Any,
    pattern: Pattern | Selectable,
    dout: Any,
    *,
    alpha: Any = 1.5,
    scale: Any = None,
    softcap: Any = None,
    bias: Any = None,
    alibi_slopes: Any = None,
    kv_lengths: Any = None,
    kv_positions: Any = None,
    q_start: Any = None,
) -> EntmaxGradients:
    """Gradients of `sum(out * dout)` for `entmax_attention` with the same arguments.

    With s = p^(2 - alpha) on the support and dp = dout . v, the gradient of the scores is
    s (dp - sum(s dp) / sum(s)); keys outside the support get 0. Where a score stands exactly at
    the threshold the map has a kink, and this is the derivative of the side without the key.
    dalpha has alpha's shape (Correia et al. 2019, arXiv:1909.00015).

    >>> from sparse_ref import Full
    >>> q, k = np.ones((1, 1, 1)), np.array([[[1.0], [0.8], [0.1]]])
    >>> entmax_attention_vjp(q, k, k, Full(), np.ones((1, 1, 1)), alpha=2).dk[0, :, 0].round(12)
    array([ 0.1, -0.1,  0. ])
    """
    given = problem(
        q, k, v, pattern, scale=scale, softcap=softcap, bias=bias, alibi_slopes=alibi_slopes,
        kv_lengths=kv_lengths, kv_positions=kv_positions, q_start=q_start,
    )  # fmt: skip
    h, m = given.q.shape[1:3]
    orders = _orders(alpha, h)
    above = cotangent("dout", dout, given, (h, m, given.v.shape[-1])).astype(np.float64)
    dq, dk, dv = (np.zeros(x.shape) for x in (given.q, given.k, given.v))
    table = given.bias.table if isinstance(given.bias, RelativeBias) else given.bias
    dbias, dorders = None if table is None else np.zeros_like(table), np.zeros(h)
    for head in given.heads():
        at, group = (head.batch, head.head), (head.batch, head.group)
        for pairs in head.pairs():
            up, p = above[at][pairs.rows], _probabilities(head, pairs, orders)
            dscore, dorder = _through_entmax(head, p, up, orders[head.head])
            dorders[head.head] += dorder
            if dbias is not None:
                flat = head.bias_index(seen_pairs(pairs, dscore))
                dbias += np.bincount(flat, dscore.data, dbias.size).reshape(dbias.shape)
            ddot = through_softcap(head, pairs, dscore)
            dv[group] += p.T @ up
            dq[(*at, pairs.rows)] = ddot @ head.k
            dk[group] += ddot.T @ head.q[pairs.rows]
    dalpha = dorders if np.ndim(alpha) else dorders.sum()
    return EntmaxGradients(given.shaped(dq), given.shaped(dk), given.shaped(dv), dbias, dalpha)


def _probabilities(head: Head, pairs: Pairs, orders: Floats) -> sparse.csr_array[Any]:
    """The probabilities of some rows as CSR (rows, n), over keys with a score above -inf."""
    if (pairs.times != 1).any():
        raise ValueError(
            "pattern must count every key once: entmax has no log c to add to a score, "
            f"got a key that counts {pairs.times.max():.0f} times"
        )
    s = scores(head, pairs)
    seen = ~np.isneginf(s)
    s, m = s[seen], len(pairs.indptr) - 1
    indptr = np.append(0, np.cumsum(np.bincount(pairs.row[seen], minlength=m)))
    p = np.empty_like(s)
    for start, stop in pairwise(indptr):
        row = s[start:stop]
        known = not (np.isnan(row) | np.isposinf(row)).any()
        p[start:stop] = maps.entmax(row, orders[head.head]) if known else np.nan
    return sparse.csr_array((p, pairs.key[seen], indptr), shape=(m, head.k.shape[0]))


def _through_entmax(
    head: Head, p: sparse.csr_array[Any], up: Floats, order: float
) -> tuple[sparse.csr_array[Any], float]:
    """The gradient of every score as CSR (rows, n), and that of alpha."""
    row = np.repeat(np.arange(len(up)), np.diff(p.indptr))
    dp = np.einsum("te,te->t", up[row], head.v[p.indices])
    data, dorder = np.empty_like(dp), 0.0
    for start, stop in pairwise(p.indptr):
        cut = slice(start, stop)
        data[cut] = maps.score_gradient(p.data[cut], dp[cut], order)
        dorder += maps.order_gradient(p.data[cut], dp[cut], order)
    return like(p, data), dorder


def _orders(alpha: object, h: int) -> Floats:
    """One alpha a head."""
    got = floats("alpha", float(alpha) if isinstance(alpha, (int, float)) else alpha)
    if got.shape not in ((), (h,)):
        raise ValueError(f"alpha must be a number or one for each of {h} heads, got {got.shape}")
    if not (got > 1).all() or np.isposinf(got).any():
        raise ValueError(f"alpha must be finite and > 1 (attention is alpha = 1), got {alpha!r}")
    return np.broadcast_to(got.astype(np.float64), h)
