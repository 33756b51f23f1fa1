"""The oracle: attention over the keys a pattern shows each query, in float64, written to be read.

    s = scale * q.k  ->  softcap * tanh(s / softcap)  ->  + bias  ->  - slope * |p - k|
    out = sum of softmax(s) * v over the allowed keys;  lse = log of the softmax's denominator

Masked keys are never read, so a NaN in one cannot reach the output. Memory follows the number of
allowed pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from ._arrays import Floats, integer
from .heads import Head, Pairs, Selectable
from .patterns import Pattern
from .problem import problem
from .results import Attention


def attention(
    q: Any,
    k: Any,
    v: Any,
    pattern: Pattern | Selectable,
    *,
    scale: Any = None,
    softcap: Any = None,
    bias: Any = None,
    alibi_slopes: Any = None,
    sink_logits: Any = None,
    kv_lengths: Any = None,
    kv_positions: Any = None,
    q_start: Any = None,
) -> Attention:
    """Scaled dot-product attention over the keys that `pattern` lets each query see.

    Parameters
    ----------
    q : (..., h, m, d) floats
    k, v : (..., g, n, d) and (..., g, n, e) floats; g divides h, head i reads group i // (h / g)
    pattern : Pattern or Selection
    scale : float, default d ** -0.5
    softcap : float > 0, optional
        Scores become softcap * tanh(score / softcap).
    bias : float array broadcasting to (..., h, m, n), or RelativeBias, optional
        Added to the scores; entries at keys not allowed are never read, -inf hides a key.
    alibi_slopes : (h,) floats, optional
        `-slope * |p - k|` is added, on absolute positions (arXiv:2108.12409).
    sink_logits : (h,) floats, optional
        One more score a head, in the denominator only; -inf is no sink.
    kv_lengths : int or (...,) ints, optional
        Key slots at and past it are empty.
    kv_positions : int (n,) or (..., n), optional
        Absolute position of each key slot, default 0..n - 1; a negative one is an empty slot.
    q_start : int or (...,) ints, optional
        Absolute position of the first query; default n - m.

    Returns
    -------
    Attention(out, lse), float64, (..., h, m, e) and (..., h, m). A query that sees no key gets
    out = 0 and lse = -inf (with a sink: lse = sink). A NaN, or a score of +inf, at an allowed key
    makes that row NaN. A key that counts c times (`Multi`) has log c added to its score.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it must be and what was got.

    Examples
    --------
    >>> from sparse_ref import Causal
    >>> attention(np.zeros((1, 2, 3)), np.zeros((1, 2, 3)), np.eye(2)[None], Causal()).out
    array([[[1. , 0. ],
            [0.5, 0.5]]])

    Source: Vaswani et al. 2017 (arXiv:1706.03762); grouped heads, arXiv:2305.13245.
    """
    given = problem(
        q, k, v, pattern, scale=scale, softcap=softcap, bias=bias, alibi_slopes=alibi_slopes,
        sink_logits=sink_logits, kv_lengths=kv_lengths, kv_positions=kv_positions, q_start=q_start,
    )  # fmt: skip
    b, h, m, _ = given.q.shape
    out, lse = np.zeros((b, h, m, given.v.shape[-1])), np.full((b, h, m), -np.inf)
    for head in given.heads():
        for pairs in head.pairs():
            at = head.batch, head.head, pairs.rows
            probabilities, lse[at] = softmax(head, pairs)
            out[at] = probabilities @ head.v
    return Attention(given.shaped(out), given.shaped(lse))


def scores(head: Head, pairs: Pairs) -> Floats:
    """The score of every allowed pair."""
    dots = np.einsum("td,td->t", head.q[pairs.rows][pairs.row], head.k[pairs.key])
    s = head.problem.scale * dots
    if head.problem.softcap is not None:
        s = head.problem.softcap * np.tanh(s / head.problem.softcap)
    return np.asarray(s + head.added(pairs))


def softmax(head: Head, pairs: Pairs) -> tuple[sparse.csr_array[Any], Floats]:
    """The probabilities of some rows as CSR (rows, n), and their lse (rows,).

    A key with score -inf is dropped, exactly as if it were not allowed: its value may be NaN.
    """
    s = scores(head, pairs) + np.log(pairs.times)
    seen = ~np.isneginf(s)
    s, row = s[seen], pairs.row[seen]
    m = len(pairs.indptr) - 1
    indptr = np.append(0, np.cumsum(np.bincount(row, minlength=m)))
    peak = np.full(m, head.sink)
    with np.errstate(invalid="ignore"):  # NaN scores, and inf - inf: the row becomes NaN
        np.maximum.at(peak, row, s)
        shift = np.where(np.isneginf(peak), 0.0, peak)
        weights = np.exp(s - shift[row])
        total = np.bincount(row, weights, m) + np.exp(head.sink - shift)
        probabilities = weights / total[row]
    with np.errstate(divide="ignore"):
        lse = shift + np.log(total)
    shape = (m, head.k.shape[0])
    return sparse.csr_array((probabilities, pairs.key[seen], indptr), shape=shape), lse


def weights(
    q: Any,
    k: Any,
    pattern: Pattern | Selectable,
    *,
    scale: Any = None,
    softcap: Any = None,
    bias: Any = None,
    alibi_slopes: Any = None,
    sink_logits: Any = None,
    kv_lengths: Any = None,
    kv_positions: Any = None,
    q_start: Any = None,
    head: int = 0,
    batch: int = 0,
) -> sparse.csr_array[Any]:
    """The attention probabilities of one head of one batch row, the first thing to print.

    Takes what `attention` takes, but v; `batch` counts over the flattened leading axes. Returns a
    csr_array (m, n) of float64; rows sum to 1, less with a sink, and empty rows to 0.

    >>> from sparse_ref import Causal
    >>> weights(np.zeros((1, 2, 3)), np.zeros((1, 2, 3)), Causal()).toarray()
    array([[1. , 0. ],
           [0.5, 0.5]])
    """
    given = problem(
        q, k, k, pattern, scale=scale, softcap=softcap, bias=bias, alibi_slopes=alibi_slopes,
        sink_logits=sink_logits, kv_lengths=kv_lengths, kv_positions=kv_positions, q_start=q_start,
    )  # fmt: skip
    b, h, m, _ = given.q.shape
    one = given.head(integer("batch", batch, 0, b - 1), integer("head", head, 0, h - 1))
    parts = [softmax(one, pairs)[0] for pairs in one.pairs()]
    return sparse.csr_array(sparse.vstack(parts)) if parts else sparse.csr_array((m, k.shape[-2]))


def merge(*parts: Attention) -> Attention:
    """Attention over the union of disjoint key sets, from attention over each, joined by lse.

    Associative, with `Attention(0, -inf)` as its identity; give a sink logit to one part only.

    Parameters
    ----------
    parts : Attention, each with out (..., m, e) and lse (..., m) of one shape

    >>> a, b = (Attention(np.array([[x]]), np.array([0.0])) for x in (1.0, 3.0))
    >>> merge(a, b).out, merge(a, b).lse
    (array([[2.]]), array([0.69314718]))
    """
    if not parts:
        raise ValueError("parts must be at least one Attention, got none")
    for i, part in enumerate(parts):
        if (
            np.shape(part[0]) != np.shape(parts[0][0])
            or np.shape(part[1]) != np.shape(part[0])[:-1]
        ):
            raise ValueError(
                f"parts[{i}] must have out {np.shape(parts[0][0])} and lse without its last axis, "
                f"got {np.shape(part[0])} and {np.shape(part[1])}"
            )
    outs = np.stack([np.asarray(part[0], dtype=np.float64) for part in parts])
    lses = np.stack([np.asarray(part[1], dtype=np.float64) for part in parts])
    peak = lses.max(axis=0, initial=-np.inf)
    shift = np.where(np.isneginf(peak), 0.0, peak)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.exp(lses - shift)
        total = shares.sum(axis=0)
        lse = shift + np.log(total)
        # a part that saw nothing adds nothing, whatever stands in its output
        sums = np.where(shares[..., None] == 0, 0.0, shares[..., None] * outs).sum(axis=0)
    return Attention(sums / np.where(total == 0, 1.0, total)[..., None], lse)
