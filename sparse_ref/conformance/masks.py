"""The mask an implementation really applies, read from outside.

With q = 0 every key that is seen weighs the same, and where v is the identity the output is the
row of weights. Nothing of the implementation is looked into, and nothing is assumed of the mask.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_ref._arrays import Bools, Floats, Ints, integer

from .calling import Implementation, ask


def read_mask(
    fn: Implementation,
    q_len: int,
    kv_len: int,
    *,
    pattern: Any = None,
    heads: int = 1,
    kv_heads: int | None = None,
    head_dim: int = 64,
) -> Bools:
    """Which keys each query of an implementation really sees.

    Parameters
    ----------
    fn : callable
        `f(q, k, v) -> out`, or with a pattern `fn(q, k, v, pattern) -> out or (out, lse)`; arrays
        are q (1, heads, q_len, head_dim) and k, v (1, kv_heads, kv_len, head_dim).
    q_len, kv_len : int >= 0
    pattern : Pattern, optional
        What fn is asked for; without one it is called as f(q, k, v). Arrays are float32: a kernel
        of another type is asked through a `Candidate`.
    heads, kv_heads, head_dim : int
        kv_heads defaults to heads. head_dim keys are read at a call.

    Returns
    -------
    bool (heads, q_len, kv_len). Any weight above 0 counts as seen: a mask of -10 instead of -inf
    hides nothing. Rows of NaN see nothing.

    Raises
    ------
    AnswerError
        If the output has another shape than attention has.

    >>> import sparse_ref as sr
    >>> def off_by_one(q, k, v):
    ...     return sr.attention(q, k, v, sr.Causal() & sr.SlidingWindow(3, 0)).out
    >>> print(sr.compare(sr.Causal() & sr.SlidingWindow(2, 0), read_mask(off_by_one, 5, 5), 5))
    # . . . .
    # # . . .
    # # # . .
    + # # # .
    . + # # #
    both 12, only a 0, only b 2
    first difference at (head, query, key) = (0, 3, 0)
    b sees 1 more key on the left

    Works on content-free attention; a selection by content sees no content here.
    """
    weights = read_weights(
        fn, q_len, kv_len, pattern=pattern, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
    )  # fmt: skip
    return np.asarray(weights > 0)


def read_weights(
    fn: Implementation,
    q_len: int,
    kv_len: int,
    *,
    pattern: Any = None,
    heads: int = 1,
    kv_heads: int | None = None,
    head_dim: int = 64,
    dtype: Any = np.float32,
) -> Floats:
    """The weights with q = 0, float64 (heads, q_len, kv_len); 1 / (keys seen) without a bias."""
    m, n, h = integer("q_len", q_len), integer("kv_len", kv_len), integer("heads", heads, 1)
    g = h if kv_heads is None else integer("kv_heads", kv_heads, 1)
    d = integer("head_dim", head_dim, 1)
    q, k = np.zeros((1, h, m, d), dtype), keys(g, n, d, dtype)
    unit = 2.0 ** min(int(n).bit_length(), 12)  # so that half precision holds unit / n
    weights = np.zeros((h, m, n))
    for start in range(0, n, d):
        stop = min(start + d, n)
        v = np.zeros((1, g, n, d), dtype)
        v[:, :, np.arange(start, stop), np.arange(stop - start)] = unit
        out = ask(fn, q, k, v, pattern, {}).out[0]
        weights[:, :, start:stop] = out[..., : stop - start].astype(np.float64) / unit
    return weights


def read_groups(
    fn: Implementation,
    q_len: int,
    kv_len: int,
    *,
    heads: int,
    kv_heads: int,
    pattern: Any = None,
    head_dim: int = 64,
    dtype: Any = np.float32,
) -> Ints:
    """The key/value head that each query head reads, (heads,); -1 where that cannot be told.

    Group g has the value 2 ** g everywhere, so whatever the mask, the output is that number.
    """
    q = np.zeros((1, heads, q_len, head_dim), dtype)
    k = keys(kv_heads, kv_len, head_dim, dtype)
    v = np.broadcast_to(2.0 ** np.arange(kv_heads)[:, None, None], k.shape[1:])
    out = ask(fn, q, k, v[None].astype(dtype), pattern, {}).out[0].astype(np.float64)
    group = np.full(heads, -1)
    for head in range(heads):
        some = np.unique(out[head][np.isfinite(out[head]) & (out[head] != 0)].round(3))
        if len(some) == 1 and float(np.log2(some[0])).is_integer():
            group[head] = int(np.log2(some[0]))
    return group


def keys(g: int, n: int, d: int, dtype: Any) -> Any:
    """Keys that make no difference to q = 0, and would if it were not."""
    return (np.random.default_rng(1).integers(-64, 65, (1, g, n, d)) / 64).astype(dtype)
