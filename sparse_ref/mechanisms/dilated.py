"""LongNet: attention in several dilated segmentations, joined by log-sum-exp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparse_ref.gradients import attention_vjp
from sparse_ref.recipes import longnet as pattern_of
from sparse_ref.reference import attention, merge
from sparse_ref.results import Attention, Gradients

from ._border import Extents


def longnet(
    q: Any,
    k: Any,
    v: Any,
    segments: Sequence[int],
    dilations: Sequence[int],
    *,
    causal: bool = True,
    scale: Any = None,
) -> Attention:
    """Dilated attention as it is computed: one attention a branch, then a weighted mean.

    1. For each branch (w, r): segments of w tokens; head i keeps every r-th token of a segment,
       from its own place on; softmax among those, out_b and lse_b.
    2. out = sum of out_b weighted by softmax over the branches of lse_b; a token that a branch
       leaves out has lse_b = -inf there.

    A key that c branches show to a query therefore counts c times: the same as `attention` with
    `recipes.longnet`, a `Multi`. Time O(n w / r^2) a branch and head. Tokens that no branch shows
    to a head give 0 there. Which place a head has is said differently by paper and code, see the
    recipe. Three more habits of torchscale's code: a log-sum-exp of exactly 0 counts as a token
    left out; where r does not divide w the outputs of later segments move; in bidirectional mode
    the zeros that pad the last segment are attended to.

    Parameters
    ----------
    q, k, v : (..., h, n, d), (..., h, n, d), (..., h, n, e) floats, of one length
    segments, dilations : ints >= 1, as many of each
    causal : bool
    scale : float, default d ** -0.5

    Returns
    -------
    Attention(out, lse), float64.

    Source: Ding et al. 2023 (arXiv:2307.02486). Witness: none that installs - torchscale's
    `DilatedAttention` agreed to 1e-15 in float64, gradients too, when it was run once (its package
    does not hold that file). Two derivations: the tests cut the segments out, and compare with the
    multiset.

    >>> q = k = np.zeros((1, 4, 2))
    >>> longnet(q, k, np.eye(4)[None], [2, 4], [1, 2]).out[0].round(3)
    array([[1.   , 0.   , 0.   , 0.   ],
           [0.5  , 0.5  , 0.   , 0.   ],
           [0.333, 0.   , 0.667, 0.   ],
           [0.   , 0.   , 0.5  , 0.5  ]])
    """
    heads = _heads(q, k, v)
    branches = [
        attention(q, k, v, pattern_of([w], [r], heads, causal=causal), scale=scale)
        for w, r in zip(*_alike(segments, dilations), strict=True)
    ]
    return merge(*branches)


def longnet_vjp(
    q: Any,
    k: Any,
    v: Any,
    segments: Sequence[int],
    dilations: Sequence[int],
    dout: Any,
    *,
    causal: bool = True,
    scale: Any = None,
    through_shares: bool = True,
) -> Gradients:
    """Gradients of `sum(out * dout)` for `longnet` with the same arguments.

    They are those of attention over the multiset. torchscale trains with others: it takes the
    branches' shares for constants, which is `through_shares=False`.

    >>> one = np.ones((1, 4, 2))
    >>> longnet_vjp(one, one, one, [2, 4], [1, 2], one).dv[0, :, 0].round(3)
    array([1.833, 0.5  , 1.167, 0.5  ])
    """
    heads, branches = _heads(q, k, v), list(zip(*_alike(segments, dilations), strict=True))
    if through_shares:
        pattern = pattern_of(segments, dilations, heads, causal=causal)
        return attention_vjp(q, k, v, pattern, dout, scale=scale)
    parts = [pattern_of([w], [r], heads, causal=causal) for w, r in branches]
    lses = np.array([attention(q, k, v, part, scale=scale).lse for part in parts])
    peak = lses.max(axis=0)
    shares = np.exp(lses - np.where(np.isneginf(peak), 0.0, peak))
    shares /= np.maximum(shares.sum(axis=0), 1.0)  # 0 where no branch has the token, else >= 1
    back = [
        attention_vjp(q, k, v, part, np.asarray(dout) * share[..., None], scale=scale)
        for part, share in zip(parts, shares, strict=True)
    ]
    dq, dk, dv = (sum(getattr(found, name) for found in back) for name in ("dq", "dk", "dv"))
    return Gradients(dq, dk, dv, None, None)


def _heads(q: Any, k: Any, v: Any) -> int:
    """The number of heads; queries and keys must be of one length, for a segment holds both."""
    sizes, names = Extents(), ("q", "k", "v")
    axes = " ".join(f"b{i}" for i in range(np.ndim(q) - 3))
    for name, x, own in zip(names, (q, k, v), ("h n d", "h n d", "h n e"), strict=True):
        sizes.fit(name, np.shape(x), f"{axes} {own}")
    return sizes["h"]


def _alike(segments: Sequence[int], dilations: Sequence[int]) -> tuple[Any, Any]:
    """Both lists, checked by the recipe."""
    pattern_of(segments, dilations, 1)
    return list(segments), list(dilations)
