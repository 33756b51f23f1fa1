r"""An a-priori bound on the error of any correct attention in a given arithmetic, per element.

One row sees keys j with scores s_j, weights w_j = exp(s_j), p_j = w_j / sum(w), o = sum p_j v_j;
a sink is a key with v = 0, and a key that counts c times has log c in its score. Write u_x for the
unit roundoff of format x, gamma(n, u) = n u / (1 - n u), e = 2 exp_ulps (one ulp is at most 2 u),
m for the number of keys, R_j = max s - s_j. The kernel rounds to nearest; its inputs are exact.

1. Scores. With a_j = |scale| sum |q||k_j|: scale and its constant, or q and k on entry, and the
   stored result are 4 roundings; products and their sum are d in `accumulate`, 2 more pay for 3.
   Bias and ALiBi, A of them of size b_j, add A roundings to a_j and have up to 6 of their own.
   Tanh may be made of exp, so its error is absolute:
       sigma_j = (gamma(4 + A, u_s) + gamma(d + 2, u_a)) a_j + gamma(6, u_s) b_j
                 + softcap (e u_e + 4 u_s) + underflow
   A key counted c > 1 times adds u_s |s_j| + (2 + e) u_e log c, or one factor to its weight.
   (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed. 2002, section 3.1.)
2. Weights. Any common shift cancels. Subtracting it costs u_e R_j, a change of base (exp2) twice
   that; shifts of an online softmax telescope to R_j. Parts may be joined by a rounded lse: as
   s_j <= lse_part <= s_j + R_j + log m, that is at most 2 u_a |s_j| (in 1), 3 u_a R_j and
   (3 + 2 e) u_a log m. So each weight is off by a factor within exp(-+delta_j) and by eta:
       delta_j = sigma_j + 3 (u_e + u_a) R_j + (3 + 2 e) u_a log m
                 + gamma(2 e, u_e) + gamma(1, u_w) + gamma(2, u_a)
   and eta pays for exp and weights below their normal range, as max w / max(w) = 1 <= sum.
3. Propagation, exact to all orders. Let p'_j = p_j + eps_j, |eps_j| <= E_j = p_j expm1(delta_j)
   + eta. As sum p_j (v_j - o) = 0, the quotient is o' - o = sum eps_j (v_j - o) / sum p'_j, and
   sum p'_j >= S = exp(-sum p_j delta_j) - m eta by Jensen, hence
       |o' - o| <= (sum E_j |v_j| + |o| sum E_j) / S.
   The two terms also cover weights rounded in the numerator only, and rounded after division.
   Values that `weight` cannot hold are off by u_w |v_j| more.
4. Sums, rescaling, division: gamma(C, u_a) sum p'_j |v_j|, C = min(2 m + 8, 8 sqrt(m) + 16).
   Up to 23 keys the first decides: a worst case for one block of keys, summed in any order. Then
   the second decides. It is a worst case for pairwise sums, and for blocks of 0.6 sqrt(m) to
   3.4 sqrt(m) keys with a rescaling after each; for every other order it is probabilistic, with
   4 sqrt(m) for the numerator and as much for the denominator (Higham and Mary 2019,
   doi 10.1137/18M1226312). The 16 pays for the division and for the exponentials by which a running
   maximum rescales when it changes. Adding more than about 1,000 *equal* numbers one after another
   drifts and can exceed the bound: such a kernel loses digits that blocks would keep.
5. Output: u_o |o'| and its underflow. Where a format may overflow nothing is claimed: inf.

   lse: log(sum w') is off by at most max(-log S, log(1 + sum E_j)) + gamma(C, u_a); the logarithm
   l = lse - max s, the addition, and a base of 2 cost u_a (4 |lse| + (e + 4) l); it is stored in
   float32 unless the output is float64.

The oracle's own error is float64's: 2^-53 is added to every unit roundoff.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from ._arrays import Floats
from .arithmetic import Arithmetic, Limits, arithmetic_named, gamma, summation
from .heads import Head, Pairs, Problem, Selectable
from .patterns import Pattern
from .problem import problem
from .reference import scores, softmax
from .relative_bias import RelativeBias
from .results import Attention


def error_bound(
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
    arithmetic: str | Arithmetic = "float32",
    output: str = "float32",
) -> Attention:
    """How far a correct implementation in some arithmetic may be from `attention`, per element.

    Parameters
    ----------
    q, k, v, pattern, scale ... q_start
        As for `attention`, and as the implementation got them: they are taken as exact.
    arithmetic : str or Arithmetic
        What happens inside. A name is one of float64, float32, tf32 (both products on rounded
        inputs), and bfloat16, float16, float8_e4m3, float8_e5m2: float32 but for the weights, which
        are rounded to that type. Half inputs with float32 weights are "float32". 8-bit inputs with
        scales are given as what they mean, scale times number.
    output : str
        The format `out` is returned in, where `arithmetic` is a name (say "float16" for a kernel
        that returns half); an Arithmetic has its own.

    Returns
    -------
    Attention(out, lse), float64, in the shapes of the oracle's. An implementation passes if
    `(got == want) | (abs(got - want) <= bound)` everywhere. The bound is 0 where a row sees no key
    (out = 0 and lse = -inf are exact), NaN where the oracle is NaN or infinite (the implementation
    must be the same there) and inf where the arithmetic may overflow. Which form decides depends on
    how many keys a row sees: up to 23 it is a worst case for sums in any order, beyond that one for
    sums by blocks or pairs, and probabilistic for every other order.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what it must be and what was got.

    Examples
    --------
    >>> from sparse_ref import Causal
    >>> one = np.ones((1, 2, 1))
    >>> bound = error_bound(one, one, one, Causal(), arithmetic="float16", output="float16")
    >>> bound.out[..., 0].round(5)
    array([[0.00147, 0.00147]])

    Source: the derivation stands at the top of `sparse_ref/bounds.py`.
    """
    given = problem(
        q, k, v, pattern, scale=scale, softcap=softcap, bias=bias, alibi_slopes=alibi_slopes,
        sink_logits=sink_logits, kv_lengths=kv_lengths, kv_positions=kv_positions, q_start=q_start,
    )  # fmt: skip
    limits = Limits(arithmetic_named(arithmetic, output))
    sizes = absolute(given)
    b, h, m, _ = given.q.shape
    out, lse = np.zeros((b, h, m, given.v.shape[-1])), np.zeros((b, h, m))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        for head in given.heads():
            size = dataclasses.replace(head, problem=sizes)
            lost = conversion_loss(head.v, limits)
            for pairs in head.pairs():
                at = head.batch, head.head, pairs.rows
                out[at], lse[at] = row_bounds(head, size, pairs, lost, limits)
    return Attention(given.shaped(out), given.shaped(lse))


def row_bounds(
    head: Head, size: Head, pairs: Pairs, lost: Floats | None, u: Limits
) -> tuple[Floats, Floats]:
    """The bounds of out and lse for some rows; `size` is the head with all its numbers positive."""
    p, lse = softmax(head, pairs)
    out, values = p @ head.v, size.v
    weights = weight_bounds(head, size, pairs, lse, u)
    count, least = weights.keys, weights.least
    sums = summation(count, u)

    most = like(p, p.data + weights.error)  # no weight is larger
    size_sum = most @ values
    error = like(p, weights.error) @ values + np.abs(out) * weights.spread[:, None]
    error += sums[:, None] * size_sum
    if lost is not None:
        error += most @ lost
    error /= least[:, None]
    error += ((count + 2) * u.tiny("accumulate"))[:, None]
    error += u.output * (np.abs(out) + error) + u.tiny("output")
    log_sum = lse - weights.peak
    high = np.abs(out) + error > u.max("output")
    high |= size_sum * np.exp(log_sum)[:, None] > u.max("accumulate")
    error = np.where(high | np.isnan(error), np.inf, error)

    lse_error = np.maximum(-np.log(least), np.log1p(weights.spread)) + sums
    lse_error += u.accumulate * (4 * np.abs(lse) + (u.function + 4) * log_sum)
    lse_error += u.lse * np.abs(lse) + u.tiny("accumulate")

    sees = np.diff(p.indptr)[:, None] > 0
    error = np.where(sees, np.where(np.isfinite(out), error, np.nan), 0)
    lse_error = np.where(np.isfinite(lse), lse_error, np.where(np.isneginf(lse), 0, np.nan))
    return error, lse_error


class Weights(NamedTuple):
    """Step 2 of the derivation, for some rows."""

    error: Floats  # E_j of every seen pair
    spread: Floats  # the sum of a row's E_j, its sink's too
    least: Floats  # S
    keys: Floats  # m
    peak: Floats  # max s


def weight_bounds(head: Head, size: Head, pairs: Pairs, lse: Floats, u: Limits) -> Weights:
    s = scores(head, pairs) + np.log(pairs.times)
    seen = ~np.isneginf(s)
    off = score_bounds(size, pairs, s, u)[seen]
    s, row, times, rows = s[seen], pairs.row[seen], pairs.times[seen], len(lse)
    keys = len(s)
    if head.sink > -np.inf:  # one more key for each row, the value of which is 0
        s = np.append(s, np.full(rows, head.sink))
        off = np.append(off, np.full(rows, gamma(6, u.score) * abs(head.sink)))
        row, times = np.append(row, np.arange(rows)), np.append(times, np.ones(rows))
    count = np.bincount(row, times, rows).astype(np.float64)
    peak = np.full(rows, -np.inf)
    np.maximum.at(peak, row, s)
    delta = (
        off
        + 3 * (u.exp + u.accumulate) * (peak[row] - s)
        + (3 + 2 * u.function) * u.accumulate * np.log(count)[row]
        + gamma(2 * u.function, u.exp) + gamma(1, u.weight) + gamma(2, u.accumulate)
    )  # fmt: skip
    eta = u.tiny("exp") + u.tiny("weight")
    log_p = s - lse[row]
    p = np.exp(log_p)
    # p expm1(delta), or the larger p exp(delta) where that might overflow before p makes it small
    error = np.where(delta < 1, p * np.expm1(delta), np.exp(log_p + delta)) + eta
    spread = np.bincount(row, error, rows).astype(np.float64)
    least = np.maximum(np.exp(-np.bincount(row, p * delta, rows)) - count * eta, 0)
    return Weights(error[:keys], spread, least, count, peak)


def like(p: sparse.csr_array[Any], data: Floats) -> sparse.csr_array[Any]:
    return sparse.csr_array((data, p.indices, p.indptr), shape=p.shape)


def score_bounds(size: Head, pairs: Pairs, s: Floats, u: Limits) -> Floats:
    """sigma_j of every allowed pair, and what its multiplicity costs."""
    given = size.problem
    dots = given.scale * np.einsum("td,td->t", size.q[pairs.rows][pairs.row], size.k[pairs.key])
    added = size.added(pairs)
    addends = (given.bias is not None) + (given.alibi_slopes is not None)
    d = size.q.shape[-1]
    error = (gamma(4 + addends, u.score) + gamma(d + 2, u.accumulate)) * dots
    error += gamma(6, u.score) * added
    error += (d + 2) * u.tiny("accumulate") * max(1.0, given.scale) + u.tiny("score")
    if given.softcap is not None:
        error += given.softcap * (u.function * u.exp + 4 * u.score)
    counted = u.score * np.abs(s) + (2 + u.function) * u.exp * np.log(pairs.times)
    error += np.where(pairs.times > 1, counted, 0)
    return np.asarray(np.where(dots + added > u.max("score"), np.inf, error))


def conversion_loss(v: Floats, u: Limits) -> Floats | None:
    """How much of each value its conversion to the weights' format may lose; None if nothing."""
    held = u.formats["weight"].holds(v)
    if held.all():
        return None
    lost = np.where(held, 0, u.weight * np.abs(v) + u.tiny("weight"))
    return np.where(np.abs(v) > u.max("weight"), np.inf, lost)


def absolute(given: Problem) -> Problem:
    """The problem with every number positive: what its scores are made of, in size."""
    bias, slopes = given.bias, given.alibi_slopes
    if isinstance(bias, RelativeBias):
        bias = RelativeBias(np.abs(bias.table), bias.left)
    elif bias is not None:
        bias = np.abs(bias)
    return dataclasses.replace(
        given,
        q=np.abs(given.q),
        k=np.abs(given.k),
        v=np.abs(given.v),
        scale=abs(given.scale),
        bias=bias,
        alibi_slopes=None if slopes is None else -np.abs(slopes),  # it is subtracted
    )
