"""What makes one key of several: DeepSeek-V4's gated pooling, NSA's windows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sparse_ref._arrays import Floats, integer

from ._border import Extents


class CsaCompressGradients(NamedTuple):
    """Gradients in the shapes of values, gates, position_bias and norm.

    >>> CsaCompressGradients(1, 2, 3, 4).dnorm
    4
    """

    dvalues: Any
    dgates: Any
    dposition_bias: Any
    dnorm: Any


class NsaCompressGradients(NamedTuple):
    """Gradients in the shapes of x, weight and position (None if not given).

    >>> NsaCompressGradients([0.0], None, None).dweight is None
    True
    """

    dx: Any
    dweight: Any
    dposition: Any


def csa_compress(
    values: Any, gates: Any, position_bias: Any, norm: Any, *, eps: float = 1e-6
) -> Floats:
    """DeepSeek-V4's compressor: each channel of an entry is a softmax-weighted mean over tokens.

    1. Tokens in groups of `ratio`; an incomplete last group makes no entry.
    2. Without overlap (HCA): entry w pools its group's values with weights softmax over the group,
       channel by channel, of gates + position_bias.
    3. With overlap (CSA): values and gates hold two series. Entry w pools 2 ratio slots in one
       softmax: the *first* series of group w - 1 and the *second* series of group w; for w = 0 the
       first ratio slots have weight 0. Position bias belongs to the token's place in its own group.
    4. RMSNorm: y * norm / sqrt(mean(y^2) + eps). Rotation at position w ratio is the caller's.

    Overlap is when values have twice the size of norm. Time O(n d).

    Parameters
    ----------
    values, gates : (b, n, c) floats
        Two projections of the hidden states.
    position_bias : (ratio, c) floats
    norm : (d,) floats; c = d or 2 d
    eps : float

    Returns
    -------
    (b, n // ratio, d), float64.

    Source: DeepSeek-V4, released inference code (`Compressor`, `overlap_transform`). Witness:
    transformers 5.23, `DeepseekV4CSACompressor`, `DeepseekV4HCACompressor`.

    >>> x = np.arange(6.0)[None, :, None]
    >>> two = np.concatenate([100 + x, x], axis=2)
    >>> csa_compress(x, 0 * x, np.zeros((2, 1)), [1e6], eps=1e12)[0, :, 0].round(3)
    array([0.5, 2.5, 4.5])
    >>> csa_compress(two, 0 * two, np.zeros((2, 2)), [1e6], eps=1e12)[0, :, 0].round(3)
    array([ 0.5, 51.5, 53.5])
    """
    return _Pooled(values, gates, position_bias, norm, eps).out


def csa_compress_vjp(
    values: Any, gates: Any, position_bias: Any, norm: Any, dout: Any, *, eps: float = 1e-6
) -> CsaCompressGradients:
    """Gradients of `sum(out * dout)` for `csa_compress` with the same arguments.

    >>> x = np.ones((1, 4, 1))
    >>> csa_compress_vjp(x, x, np.zeros((2, 1)), [1.0], np.ones((1, 2, 1)), eps=1.0).dnorm.round(3)
    array([1.414])
    """
    given = _Pooled(values, gates, position_bias, norm, eps)
    up = given.sizes.floats("dout", dout, "b w d")
    unit = given.sums / given.root
    along = np.mean(unit * up * given.norm, axis=-1, keepdims=True)
    dsums = (up * given.norm - unit * along) / given.root
    dvalues = given.shares * dsums[:, :, None]
    dgates = given.shares * (given.values - given.sums[:, :, None]) * dsums[:, :, None]
    bias = given.grouped(dgates)
    return CsaCompressGradients(
        given.ungrouped(given.grouped(dvalues)),
        given.ungrouped(bias),
        bias.sum(axis=(0, 1)),
        np.sum(up * unit, axis=(0, 1)),
    )


def nsa_compress(
    x: Any, weight: Any = None, position: Any = None, *, window: int = 32, stride: int = 16
) -> Floats:
    """NSA's compression of keys or values: one vector of every window of tokens.

    Window c is the tokens c stride .. c stride + window - 1; one that is not complete makes none.
    Its vector is (tokens + position, laid end to end) @ weight, or without a weight their mean.

    Published code disagrees on this map, which the paper calls an MLP with positions within the
    block: XunhaoLai's is the linear one here, positions for keys only, on keys not rotated yet;
    fla-core takes the mean, window = stride = block; lucidrains' package has an MLP. `nsa` takes
    the compressed keys and values of any of them. Time O(n window / stride d e); the default sizes
    are the paper's.

    Parameters
    ----------
    x : (b, g, n, d) floats
    weight : (g, window, d, e) floats, optional
    position : (g, window, d) floats, optional
    window, stride : int >= 1

    Returns
    -------
    (b, g, windows, e), float64; windows = (n - window) // stride + 1, or 0.

    Source: Yuan et al. 2025 (arXiv:2502.11089), and XunhaoLai's
    native-sparse-attention-triton, `linear_compress`. No runnable witness of the linear map, two
    derivations; the mean is inside `naive_nsa_compression` of fla-core 0.6.0, see `nsa`.

    >>> nsa_compress(np.arange(5.0)[None, None, :, None], window=2, stride=1)[0, 0, :, 0]
    array([0.5, 1.5, 2.5, 3.5])
    """
    tokens, weight, _ = _windows(x, weight, position, window, stride)
    return np.asarray(np.einsum("bgcld,glde->bgce", tokens, weight))


def nsa_compress_vjp(
    x: Any,
    weight: Any,
    position: Any,
    dout: Any,
    *,
    window: int = 32,
    stride: int = 16,
) -> NsaCompressGradients:
    """Gradients of `sum(out * dout)` for `nsa_compress` with the same arguments.

    >>> x = np.ones((1, 1, 4, 1))
    >>> up = np.ones((1, 1, 3, 1))
    >>> nsa_compress_vjp(x, None, None, up, window=2, stride=1).dx[0, 0, :, 0]
    array([0.5, 1. , 1. , 0.5])
    """
    tokens, full, at = _windows(x, weight, position, window, stride)
    sizes = Extents({"b": len(tokens), "g": tokens.shape[1], "c": len(at), "e": full.shape[-1]})
    up = sizes.floats("dout", dout, "b g c e")
    dtokens = np.einsum("bgce,glde->bgcld", up, full)
    dx = np.zeros(np.shape(x))
    for c, where in enumerate(at):
        dx[:, :, where] += dtokens[:, :, c]
    return NsaCompressGradients(
        dx,
        None if weight is None else np.einsum("bgce,bgcld->glde", up, tokens),
        None if position is None else dtokens.sum(axis=(0, 2)),
    )


def _windows(
    x: Any, weight: Any, position: Any, window: int, stride: int
) -> tuple[Floats, Floats, Any]:
    """The tokens of every window with positions added, the weight, and where the tokens are."""
    sizes = Extents()
    x = sizes.floats("x", x, "b g n d")
    l, stride = integer("window", window, 1), integer("stride", stride, 1)  # noqa: E741
    sizes["l"], d, g = l, sizes["d"], sizes["g"]
    if weight is None:
        weight = np.broadcast_to(np.eye(d) / l, (g, l, d, d))
    weight = sizes.floats("weight", weight, "g l d e")
    count = max((sizes["n"] - l) // stride + 1, 0)
    at = np.arange(count)[:, None] * stride + np.arange(l)
    tokens = x[:, :, at]
    if position is not None:
        tokens = tokens + sizes.floats("position", position, "g l d")[:, None]
    return tokens, weight, at


class _Pooled:
    """The checked arguments of `csa_compress`, and every step of it."""

    def __init__(self, values: Any, gates: Any, bias: Any, norm: Any, eps: float) -> None:
        self.sizes = Extents()
        values = self.sizes.floats("values", values, "b n c")
        gates = self.sizes.floats("gates", gates, "b n c")
        bias = self.sizes.floats("position_bias", bias, "r c")
        self.norm = self.sizes.floats("norm", np.asarray(norm), "d")
        b, n, c, self.r, self.d = (self.sizes[a] for a in "bncrd")
        if c not in (self.d, 2 * self.d) or not self.r:
            raise ValueError(
                f"values must have once or twice norm's size {self.d}, and groups of at least 1 "
                f"token, got {c} and {self.r}"
            )
        self.overlap, self.sizes["w"] = c == 2 * self.d, n // self.r
        groups = (b, n // self.r, self.r, c)
        whole = n // self.r * self.r
        self.values = self._slots(values[:, :whole].reshape(groups), 0.0)
        logits = self._slots(gates[:, :whole].reshape(groups) + bias, -np.inf)
        weights = np.exp(logits - logits.max(axis=2, keepdims=True, initial=-np.inf))
        self.shares = weights / weights.sum(axis=2, keepdims=True)
        self.sums = np.sum(self.shares * self.values, axis=2)
        self.root = np.sqrt(np.mean(self.sums**2, axis=-1, keepdims=True) + eps)
        self.out: Floats = self.sums / self.root * self.norm

    def _slots(self, x: Floats, missing: float) -> Floats:
        """What every entry pools, (b, w, slots, d)."""
        if not self.overlap:
            return x
        before = np.full((*x.shape[:3], self.d), missing)
        before[:, 1:] = x[:, :-1, :, : self.d]
        return np.concatenate([before, x[..., self.d :]], axis=2)

    def grouped(self, slots: Floats) -> Floats:
        """The adjoint of `_slots`: (b, w, r, c)."""
        if not self.overlap:
            return slots
        first = np.zeros_like(slots[:, :, : self.r])
        first[:, :-1] = slots[:, 1:, : self.r]
        return np.concatenate([first, slots[:, :, self.r :]], axis=-1)

    def ungrouped(self, groups: Floats) -> Floats:
        """Back to tokens, (b, n, c); those in no group get 0."""
        b, n, c = (self.sizes[a] for a in "bnc")
        rest = np.zeros((b, n - n // self.r * self.r, c))
        return np.concatenate([groups.reshape(b, -1, c), rest], axis=1)
