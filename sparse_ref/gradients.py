"""The oracle's gradients: the adjoint of attention, row by row, in float64.

With P the probabilities, dP = dout . v and D = sum P dP over a row, the gradient of a score is
P (dP - D + dlse); a sink has no value, so its own is P_sink (dlse - D).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from ._arrays import Floats
from .heads import Head, Pairs, Selectable
from .patterns import Pattern
from .problem import cotangent, problem
from .reference import softmax
from .relative_bias import RelativeBias
from .results import Gradients


def attention_vjp(
    q: Any,
    k: Any,
    v: Any,
    pattern: Pattern | Selectable,
    dout: Any,
    *,
    scale: Any = None,
    softcap: Any = None,
    bias: Any = None,
    alibi_slopes: Any = None,
    sink_logits: Any = None,
    kv_lengths: Any = None,
    kv_positions: Any = None,
    q_start: Any = None,
    dlse: Any = None,
) -> Gradients:
    """Gradients of `sum(out * dout) + sum(lse * dlse)` for `attention` with the same arguments.

    Parameters
    ----------
    q, k, v, pattern, scale ... q_start
        As for `attention`.
    dout : (..., h, m, e) floats
    dlse : (..., h, m) floats, optional

    Returns
    -------
    Gradients(dq, dk, dv, dbias, dsink_logits), float64, in the shapes of what they belong to:
    dbias has the bias's own shape (a RelativeBias: its table's), dsink_logits (h,). Rows that see
    no key have gradient 0; keys nobody sees too.

    >>> from sparse_ref import Causal
    >>> one = np.ones((1, 2, 1))
    >>> attention_vjp(one, one, one, Causal(), one).dv[..., 0]
    array([[1.5, 0.5]])
    """
    given = problem(
        q, k, v, pattern, scale=scale, softcap=softcap, bias=bias, alibi_slopes=alibi_slopes,
        sink_logits=sink_logits, kv_lengths=kv_lengths, kv_positions=kv_positions, q_start=q_start,
    )  # fmt: skip
    b, h, m, _ = given.q.shape
    above = cotangent("dout", dout, given, (h, m, given.v.shape[-1])).astype(np.float64)
    above_lse = np.zeros((b, h, m))
    if dlse is not None:
        above_lse += cotangent("dlse", dlse, given, (h, m))
    dq, dk, dv = (np.zeros(x.shape) for x in (given.q, given.k, given.v))
    table = given.bias.table if isinstance(given.bias, RelativeBias) else given.bias
    dbias = None if table is None else np.zeros_like(table)
    dsink = None if given.sink_logits is None else np.zeros(h)
    for head in given.heads():
        at, group = (head.batch, head.head), (head.batch, head.group)
        for pairs in head.pairs():
            up, up_lse = above[at][pairs.rows], above_lse[at][pairs.rows]
            probabilities, lse = softmax(head, pairs)
            dscore, mean = _score_gradient(head, probabilities, up, up_lse)
            if dbias is not None:
                flat = head.bias_index(seen_pairs(pairs, dscore))
                dbias += np.bincount(flat, dscore.data, dbias.size).reshape(dbias.shape)
            if dsink is not None and np.isfinite(head.sink):
                dsink[head.head] += np.sum(np.exp(head.sink - lse) * (up_lse - mean))
            ddot = through_softcap(head, pairs, dscore)
            dv[group] += probabilities.T @ up
            dq[(*at, pairs.rows)] = ddot @ head.k
            dk[group] += ddot.T @ head.q[pairs.rows]
    dq, dk, dv = (given.shaped(x) for x in (dq, dk, dv))
    return Gradients(dq, dk, dv, dbias, dsink)


def _score_gradient(
    head: Head, probabilities: sparse.csr_array[Any], up: Floats, up_lse: Floats
) -> tuple[sparse.csr_array[Any], Floats]:
    """The gradient of every seen score as CSR (rows, n), and D of every row."""
    row = np.repeat(np.arange(len(up)), np.diff(probabilities.indptr))
    dp = np.einsum("te,te->t", up[row], head.v[probabilities.indices])
    mean = np.bincount(row, probabilities.data * dp, len(up)).astype(np.float64)
    data = probabilities.data * (dp - mean[row] + up_lse[row])
    return like(probabilities, data), mean


def through_softcap(
    head: Head, pairs: Pairs, dscore: sparse.csr_array[Any]
) -> sparse.csr_array[Any]:
    """The gradient of q.k, through softcap and scale."""
    if head.problem.softcap is None:
        return like(dscore, dscore.data * head.problem.scale)
    row = np.repeat(np.arange(dscore.shape[0]), np.diff(dscore.indptr))
    dots = np.einsum("td,td->t", head.q[pairs.rows][row], head.k[dscore.indices])
    slope = 1 - np.tanh(head.problem.scale * dots / head.problem.softcap) ** 2
    return like(dscore, dscore.data * slope * head.problem.scale)


def seen_pairs(pairs: Pairs, seen: sparse.csr_array[Any]) -> Pairs:
    """The pairs without those whose score was -inf."""
    row = np.repeat(np.arange(seen.shape[0]), np.diff(seen.indptr))
    indptr, key = (x.astype(np.int64) for x in (seen.indptr, seen.indices))
    return Pairs(pairs.rows, indptr, row, key, seen.data)


def like(csr: sparse.csr_array[Any], data: Floats) -> sparse.csr_array[Any]:
    return sparse.csr_array((data, csr.indices, csr.indptr), shape=csr.shape)
