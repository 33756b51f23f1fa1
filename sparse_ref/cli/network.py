"""The demo's network once more, in NumPy, in whatever precision its weights have.

In float64 with `oracle` it is what the other runs are judged by; in float32 with `dense` it shows
how much rounding alone may cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import sparse_ref as sr

Array: TypeAlias = NDArray[Any]
Attend: TypeAlias = Callable[[Array, Array, Array, sr.Pattern], Array]


def logits(
    weights: Mapping[str, Array],
    tokens: Array,
    patterns: Sequence[sr.Pattern],
    heads: int,
    attend: Attend,
) -> Array:
    """The logits (b, classes) of tokens (b, n).

    Parameters
    ----------
    weights : mapping of arrays of one dtype, named as in `exporters.SparseTransformer`
    tokens : ints (b, rows * columns)
    patterns : sequence of Pattern, one a block
    heads : int
    attend : (q, k, v, pattern) -> out, on (b, heads, n, d / heads)
    """

    def linear(x: Array, name: str) -> Array:
        return np.asarray(x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])

    def norm(x: Array, name: str) -> Array:
        centred: Array = x - x.mean(-1, keepdims=True)
        spread = np.sqrt(np.square(centred).mean(-1, keepdims=True) + x.dtype.type(1e-5))
        return np.asarray(centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"])

    grid = weights["row.weight"][:, None] + weights["column.weight"]
    h = weights["value.weight"][tokens] + grid.reshape(-1, grid.shape[-1])
    b, n, dim = h.shape
    for i, pattern in enumerate(patterns):
        block = f"blocks.{i}"
        qkv = linear(norm(h, f"{block}.attention_norm"), f"{block}.attention.qkv")
        q, k, v = qkv.reshape(b, n, 3, heads, dim // heads).transpose(2, 0, 3, 1, 4)
        out = attend(q, k, v, pattern).swapaxes(1, 2).reshape(b, n, dim)
        h = h + linear(out, f"{block}.attention.project")
        wide = linear(norm(h, f"{block}.feed_norm"), f"{block}.expand")
        sigmoid = 1 / (1 + np.exp(wide.dtype.type(-1.702) * wide))
        h = h + linear(wide * sigmoid, f"{block}.contract")
    return linear(norm(h, "norm").mean(1), "classify")


def oracle(q: Array, k: Array, v: Array, pattern: sr.Pattern) -> Array:
    """`sparse_ref.attention`, in float64."""
    out: Array = sr.attention(q, k, v, pattern).out
    return out


def dense(q: Array, k: Array, v: Array, pattern: sr.Pattern) -> Array:
    """The plain softmax over all keys, the hidden ones at -inf, in the precision of q."""
    scores = q @ k.swapaxes(-1, -2) * q.dtype.type(q.shape[-1] ** -0.5)
    scores[:, ~np.broadcast_to(pattern.mask(q.shape[-2], k.shape[-2]), scores.shape[1:])] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True) @ v)
