"""Longformer: a window and global tokens, whose own attention has other projections."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from sparse_ref._arrays import Floats
from sparse_ref.gradients import attention_vjp
from sparse_ref.patterns import Full, Keys, Pattern, PerBatch, Rows
from sparse_ref.recipes import longformer as pattern_of
from sparse_ref.reference import attention, merge
from sparse_ref.results import Attention

from ._border import Extents, lengths_of


class LongformerGradients(NamedTuple):
    """Gradients of the local and the global projections' outputs, each in its own shape.

    >>> LongformerGradients(*"abcdef").dglobal_q
    'd'
    """

    dq: Any
    dk: Any
    dv: Any
    dglobal_q: Any
    dglobal_k: Any
    dglobal_v: Any


def longformer(
    q: Any,
    k: Any,
    v: Any,
    global_q: Any,
    global_k: Any,
    global_v: Any,
    *,
    window: int,
    global_tokens: Iterable[Any] = (),
    dilation: int = 1,
    lengths: Any = None,
    scale: Any = None,
) -> Attention:
    """Longformer's attention, with the second set of projections for the global tokens.

    1. A token that is not global: one softmax over its window (window / 2 keys on each side and
       itself) and the global tokens, each key once, by the local q, k and v - also where the key
       is a global token.
    2. A global token: one softmax over all keys, by global_q, global_k and global_v - also where
       the key is not global. What its local q would give is not used.
    3. Keys at and past a row's length are never seen; queries there give 0 (lse -inf).

    Time O(n (window + g) + g n) for g global tokens. Published code disagrees about what window
    means (one-sided in allenai's code and ORT's operator, both sides together in transformers and
    here), and the paper's autoregressive form has no global tokens. BigBird's global blocks and
    ETC's have no second projections.

    Parameters
    ----------
    q, k, v, global_q, global_k, global_v : (b, h, n, d) floats, v and global_v (b, h, n, e)
    window, dilation : as for `recipes.longformer`
    global_tokens : positions, or one list of them for every batch row
    lengths : int or (b,) ints, default n
        Tokens of each batch row, the rest is right padding.
    scale : float, default d ** -0.5

    Returns
    -------
    Attention(out, lse), float64.

    Source: Beltagy, Peters & Cohan 2020 (arXiv:2004.05150). Witness: transformers,
    `LongformerSelfAttention`.

    >>> q = k = np.zeros((1, 1, 4, 2))
    >>> v = np.eye(4)[None, None]
    >>> longformer(q, k, v, q, k, 2 * v, window=2, global_tokens=[3]).out[0, 0].round(3)
    array([[0.333, 0.333, 0.   , 0.333],
           [0.25 , 0.25 , 0.25 , 0.25 ],
           [0.   , 0.333, 0.333, 0.333],
           [0.5  , 0.5  , 0.5  , 0.5  ]])
    """
    local, other = _checked(q, k, v, global_q, global_k, global_v)
    kinds = _kinds(local.q, window, global_tokens, dilation, lengths)
    parts = zip((local, other), kinds, strict=True)
    return merge(*(attention(x.q, x.k, x.v, kind, scale=scale) for x, kind in parts))


def longformer_vjp(
    q: Any,
    k: Any,
    v: Any,
    global_q: Any,
    global_k: Any,
    global_v: Any,
    dout: Any,
    *,
    window: int,
    global_tokens: Iterable[Any] = (),
    dilation: int = 1,
    lengths: Any = None,
    scale: Any = None,
    dlse: Any = None,
) -> LongformerGradients:
    """Gradients of `sum(out * dout) + sum(lse * dlse)` for `longformer` with the same arguments.

    A query belongs to one of the two attentions, so each gets dout as it is.

    >>> x = np.ones((1, 1, 4, 2))
    >>> found = longformer_vjp(x, x, x, x, x, x, x, window=2, global_tokens=[3])
    >>> found.dv[0, 0, :, 0].round(3), found.dglobal_v[0, 0, :, 0]
    (array([0.583, 0.917, 0.583, 0.917]), array([0.25, 0.25, 0.25, 0.25]))
    """
    local, other = _checked(q, k, v, global_q, global_k, global_v)
    kinds = _kinds(local.q, window, global_tokens, dilation, lengths)
    near, far = (
        attention_vjp(x.q, x.k, x.v, kind, dout, scale=scale, dlse=dlse)
        for x, kind in zip((local, other), kinds, strict=True)
    )
    return LongformerGradients(near.dq, near.dk, near.dv, far.dq, far.dk, far.dv)


class _Projected(NamedTuple):
    """What one set of projections makes of the tokens."""

    q: Floats
    k: Floats
    v: Floats


def _checked(*given: Any) -> tuple[_Projected, _Projected]:
    """The arrays of the local and of the global attention."""
    sizes = Extents()
    names = ("q", "k", "v", "global_q", "global_k", "global_v")
    axes = ("b h n d", "b h n d", "b h n e") * 2
    arrays = [sizes.floats(*one) for one in zip(names, given, axes, strict=True)]
    return _Projected(*arrays[:3]), _Projected(*arrays[3:])


def _kinds(
    q: Floats, window: int, global_tokens: Iterable[Any], dilation: int, lengths: object
) -> tuple[Pattern, Pattern]:
    """What the local and what the global queries of every batch row see; no query is both."""
    b, n = q.shape[0], q.shape[2]
    tokens = list(global_tokens)
    each = tokens if any(np.ndim(one) for one in tokens) else [tokens] * b
    if len(each) != b:
        raise ValueError(f"global_tokens must be one list or {b} of them, got {len(each)}")
    local, other = [], []
    for chosen, length in zip(each, lengths_of(lengths, b, n), strict=True):
        padding = range(int(length), n)
        seen = pattern_of(window, chosen, dilation) - Keys(padding) - Rows(padding)
        local.append(seen - Rows(chosen))
        other.append(seen & Rows(chosen))
    return (PerBatch(local), PerBatch(other)) if b else (Full(), Full())
