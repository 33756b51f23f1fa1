r"""An a-priori bound on the error of any correct backward pass, per element.

What `bounds` derives for the forward pass goes on here, in its notation. A backward pass computes
    D_i = sum_j P dP = dO_i . O_i,   dP_ij = dO_i . v_j,   g_ij = P_ij (dP_ij - D_i + dlse_i)
    dv_j = sum_i P dO_i,   dq_i = scale sum_j g t' k_j,   dk_j = scale sum_i g t' q_i
with t' the slope of the softcap, 1 without one.

1. Probabilities come out of a softmax, or of the scores computed again and a stored lse. With
   E_j of the forward pass and L the bound of lse, as |s - lse| <= R_j + (lse - max s),
       |P' - P| <= (P + E) exp(L') - P,   L' = L + 3 (u_e + u_a)(lse - max s) + gamma(4, u_a)
2. dP is a product like q.k: pi = (gamma(4, u_s) + gamma(e + 2, u_a)) |dO|.|v| + underflow.
3. D is summed from P and dP, or from dO and the stored O, which is off by the forward's bound; the
   larger of the two is taken.
4. g: both subtractions and the product, and what comes from 1 to 3:
       gap = dP - D + dlse,   |gap' - gap| <= pi + delta D + gamma(2, u_a)(|dP| + |D| + |dlse|)
       |g' - g| <= |P' - P| (|gap| + |gap' - gap|) + P |gap' - gap| + gamma(2, u_a) P' |gap'|
   The slope t' = 1 - tanh^2 is off by 2 sigma / softcap and its square, as |tanh'| <= 1.
5. g and P enter the last products in format `weight`, and so do k, q and dO.
6. Sums of n terms: gamma(C, u_a), C = min(2 n + 8, 8 sqrt(n) + 16), as in step 4 of the forward
   pass; n counts the keys of a row for dq, and for dk and dv the rows of all heads that see a key.
   Then scale (3 roundings) and the output's rounding.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from ._arrays import Floats, Ints
from .arithmetic import Arithmetic, Limits, arithmetic_named, gamma, summation
from .bounds import absolute, conversion_loss, row_bounds, score_bounds, weight_bounds
from .gradients import seen_pairs
from .heads import Head, Pairs, Selectable
from .patterns import Pattern
from .problem import cotangent, problem
from .reference import scores, softmax
from .relative_bias import RelativeBias
from .results import Gradients


def error_bound_vjp(
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
    arithmetic: str | Arithmetic = "float32",
    output: str = "float32",
) -> Gradients:
    """How far correct gradients in some arithmetic may be from `attention_vjp`, per element.

    Parameters
    ----------
    q, k, v, pattern, dout, scale ... dlse
        As for `attention_vjp`, and as the implementation got them: they are taken as exact.
    arithmetic, output
        As for `error_bound`; the output is also the format of an `out` that was kept for this.

    Returns
    -------
    Gradients, float64, in the shapes of the oracle's: pass if
    `(got == want) | (abs(got - want) <= bound)` everywhere. The bound is 0 where nothing is added
    up (rows that see no key, keys nobody sees), NaN where the oracle is NaN or infinite and inf
    where the arithmetic may overflow.

    Examples
    --------
    >>> from sparse_ref import Causal
    >>> one = np.ones((1, 2, 1))
    >>> bound = error_bound_vjp(one, one, one, Causal(), one, arithmetic="float16")
    >>> bound.dv[..., 0].round(5)
    array([[0.00221, 0.00074]])

    Source: the derivation stands at the top of `sparse_ref/gradient_bounds.py`.
    """
    given = problem(
        q, k, v, pattern, scale=scale, softcap=softcap, bias=bias, alibi_slopes=alibi_slopes,
        sink_logits=sink_logits, kv_lengths=kv_lengths, kv_positions=kv_positions, q_start=q_start,
    )  # fmt: skip
    b, h, m, _ = given.q.shape
    u = Limits(arithmetic_named(arithmetic, output))
    above = cotangent("dout", dout, given, (h, m, given.v.shape[-1])).astype(np.float64)
    above_lse = np.zeros((b, h, m))
    if dlse is not None:
        above_lse += cotangent("dlse", dlse, given, (h, m))
    table = given.bias.table if isinstance(given.bias, RelativeBias) else given.bias
    dq, dk, dv = (_Sum(x.shape) for x in (given.q, given.k, given.v))
    dbias = None if table is None else _Sum(table.shape)
    dsink = None if given.sink_logits is None else _Sum((h,))
    sizes, factor = absolute(given), abs(given.scale) * (1 + gamma(3, u.accumulate))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        for head in given.heads():
            size = dataclasses.replace(head, problem=sizes)
            for pairs in head.pairs():
                at, group = (head.batch, head.head, pairs.rows), (head.batch, head.group)
                up, up_lse = above[at], above_lse[at]
                g = _score_gradients(head, size, pairs, up, up_lse, u)
                dv.add(group, g.p.transposed(), up, u)
                dq.add(at, g.through, head.k, u, factor)
                dk.add(group, g.through.transposed(), head.q[pairs.rows], u, factor)
                if dbias is not None:
                    dbias.scatter(head.bias_index(g.pairs), g.score)
                if dsink is not None and np.isfinite(head.sink):
                    dsink.scatter(np.full(len(up), head.head), g.sink)
    shaped = [given.shaped(x.bound(u)) for x in (dq, dk, dv)]
    return Gradients(*shaped, *(None if x is None else x.bound(u) for x in (dbias, dsink)))


class _Off(NamedTuple):
    """Numbers, exact, and how far a computed one may be from each."""

    value: Any
    error: Any


class _Matrix(NamedTuple):
    """The same for the entries of a sparse matrix (rows, n)."""

    value: sparse.csr_array[Any]
    error: sparse.csr_array[Any]

    def transposed(self) -> _Matrix:
        """Its transpose."""
        return _Matrix(self.value.T.tocsr(), self.error.T.tocsr())


class _Sum:
    """A gradient as it is summed up: its value, its error, the size and number of its terms."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.value, self.error, self.size, self.terms = (np.zeros(shape) for _ in range(4))

    def add(self, at: Any, matrix: _Matrix, right: Floats, u: Limits, factor: float = 1.0) -> None:
        """Take factor * (matrix @ right) into account."""
        size, lost = np.abs(right), conversion_loss(right, u)
        most = abs(matrix.value) + matrix.error
        error = matrix.error @ size + gamma(3, u.accumulate) * (most @ size)
        if lost is not None:
            error += most @ lost
        self.value[at] += factor * (matrix.value @ right)
        self.error[at] += factor * error
        self.size[at] += factor * (most @ size)
        self.terms[at] += np.diff(matrix.value.indptr)[:, None]

    def scatter(self, index: Ints, off: _Off) -> None:
        """Add terms at flat indices."""
        shape, length = self.value.shape, self.value.size
        size = np.abs(off.value) + off.error
        self.value += np.bincount(index, off.value, length).reshape(shape)
        self.error += np.bincount(index, off.error, length).reshape(shape)
        self.size += np.bincount(index, size, length).reshape(shape)
        self.terms += np.bincount(index, minlength=length).reshape(shape)

    def bound(self, u: Limits) -> Floats:
        """How far the sum may be off, stored in the output's format."""
        error = self.error + summation(self.terms, u) * self.size
        error += (self.terms + 2) * u.tiny("accumulate")
        error += u.output * (np.abs(self.value) + error) + u.tiny("output")
        high = np.abs(self.value) + error > u.max("output")
        high |= self.size > u.max("accumulate")
        error = np.where(high | np.isnan(error), np.inf, error)
        return np.where(self.terms > 0, np.where(np.isfinite(self.value), error, np.nan), 0)


class _ScoreGradients(NamedTuple):
    pairs: Pairs  # those that are seen
    p: _Matrix  # probabilities,
    through: _Matrix  # and the gradient of q.k but for the scale, as the last products take them
    score: _Off  # the gradient of the score
    sink: _Off  # that of the sink, for every row


def _score_gradients(
    head: Head, size: Head, pairs: Pairs, up: Floats, up_lse: Floats, u: Limits
) -> _ScoreGradients:
    """Steps 1 to 5 of the derivation, for some rows."""
    p, lse = softmax(head, pairs)
    weights = weight_bounds(head, size, pairs, lse, u)
    out_error, lse_error = row_bounds(head, size, pairs, conversion_loss(head.v, u), u)
    more = lse_error + 3 * (u.exp + u.accumulate) * (lse - weights.peak) + gamma(4, u.accumulate)
    row, key = np.repeat(np.arange(len(up)), np.diff(p.indptr)), p.indices
    p_error = p.data * np.expm1(more[row]) + weights.error * np.exp(more[row])

    dp = np.einsum("te,te->t", up[row], head.v[key])
    dp_size = np.einsum("te,te->t", np.abs(up)[row], size.v[key])
    e = up.shape[-1]
    product = gamma(4, u.score) + gamma(e + 2, u.accumulate)
    dp_error = product * dp_size + (e + 2) * u.tiny("accumulate") + u.tiny("score")

    count, rows = np.diff(p.indptr), len(up)
    mean = np.bincount(row, p.data * dp, rows).astype(np.float64)
    most = (p.data + p_error) * (np.abs(dp) + dp_error)
    summed = np.bincount(row, most - p.data * np.abs(dp), rows).astype(np.float64)
    summed += summation(count, u) * np.bincount(row, most, rows)
    out = p @ head.v
    stored = np.einsum("re,re->r", np.abs(up), out_error)
    stored += product * np.einsum("re,re->r", np.abs(up), np.abs(out) + out_error)
    mean_error = np.fmax(summed, stored) + (e + 2) * u.tiny("accumulate")

    gap = dp - mean[row] + up_lse[row]
    gap_error = dp_error + mean_error[row]
    gap_error += gamma(2, u.accumulate) * (np.abs(dp) + dp_error + np.abs(mean - up_lse)[row])
    score = _times(_Off(p.data, p_error), _Off(gap, gap_error), u)
    seen = seen_pairs(pairs, p)
    through = _through_softcap(head, size, seen, score, u)
    sink_p = np.exp(head.sink - lse)
    off = gamma(6, u.score) * abs(head.sink) + 3 * (u.exp + u.accumulate) * (lse - head.sink)
    off = off + gamma(2 * u.function, u.exp) + more
    pull = gamma(2, u.accumulate) * (np.abs(up_lse) + np.abs(mean) + mean_error) + mean_error
    return _ScoreGradients(
        seen,
        _stored(p, _Off(p.data, p_error), u),
        _stored(p, through, u),
        score,
        _times(_Off(sink_p, sink_p * np.expm1(off)), _Off(up_lse - mean, pull), u),
    )


def _times(a: _Off, b: _Off, u: Limits) -> _Off:
    """A product, stored in `accumulate`."""
    most = (np.abs(a.value) + a.error) * (np.abs(b.value) + b.error)
    error = most - np.abs(a.value * b.value) + gamma(2, u.accumulate) * most
    return _Off(a.value * b.value, error + u.tiny("accumulate"))


def _through_softcap(head: Head, size: Head, pairs: Pairs, score: _Off, u: Limits) -> _Off:
    """The gradient of a score, times the slope of the softcap."""
    given = head.problem
    if given.softcap is None:
        return score
    dots = np.einsum("td,td->t", head.q[pairs.rows][pairs.row], head.k[pairs.key])
    sigma = score_bounds(size, pairs, scores(head, pairs), u) / given.softcap
    slope = 1 - np.tanh(given.scale * dots / given.softcap) ** 2
    return _times(score, _Off(slope, 2 * sigma + sigma**2 + gamma(2, u.accumulate)), u)


def _stored(like: sparse.csr_array[Any], off: _Off, u: Limits) -> _Matrix:
    """A matrix with the places of `like`, as the last products read it: in format `weight`."""
    most = np.abs(off.value) + off.error
    error = off.error + u.weight * most + u.tiny("weight")
    error = np.where(most > u.max("weight"), np.inf, error)
    return _Matrix(
        *(
            sparse.csr_array((x, like.indices, like.indptr), shape=like.shape)
            for x in (off.value, error)
        )
    )
