"""Native sparse attention: compressed, selected and recent tokens, mixed by gates."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sparse_ref._arrays import Floats, integer
from sparse_ref.gradients import attention_vjp
from sparse_ref.patterns import Causal, Pattern, SlidingWindow
from sparse_ref.reference import attention
from sparse_ref.selection import Selection, nsa_blocks

from ._border import Extents
from .compressing import nsa_compress, nsa_compress_vjp


class NsaGradients(NamedTuple):
    """Gradients in the shapes of q, k, v, gates and the compressed arrays (None if not given).

    >>> NsaGradients(1, 2, 3, 4, None, None).dgates
    4
    """

    dq: Any
    dk: Any
    dv: Any
    dgates: Any
    dcompressed_k: Any
    dcompressed_v: Any


def nsa(
    q: Any,
    k: Any,
    v: Any,
    gates: Any,
    *,
    compressed_k: Any = None,
    compressed_v: Any = None,
    count: int = 16,
    block_size: int = 64,
    window: int = 32,
    stride: int = 16,
    initial: int = 1,
    local: int = 2,
    recent: int = 512,
    scale: Any = None,
) -> Floats:
    """Three attentions with a softmax each, added with a gate each.

    1. Compression: attention to the compressed keys whose window ended by the query's position,
       c stride + window - 1 <= p. The first window - 1 queries see none: 0.
    2. Selection: attention to the visible keys of the `count` blocks that `selection.nsa_blocks`
       chooses by the same compressed keys, one list for each group of heads.
    3. Window: attention to the last `recent` keys, the query's own among them.
    4. out = gates[..., 0] compression + gates[..., 1] selection + gates[..., 2] window.

    Time O(m (n / stride + count block_size + recent) d) a head. In the paper gates are the sigmoid
    of an MLP of the token; they do not sum to 1, and there is no common denominator.

    Published code disagrees about more than the choice of blocks (see there) and the compression
    (see `nsa_compress`). The window: fla-core hands flash-attention (w - 1, 0), w keys, as here;
    XunhaoLai's module (w, -1), w + 1 keys. Gates: one a token and branch for all heads there, one
    a head in fla-core; both fit. Separate keys and values for each branch, which the paper has,
    are three calls with two gates 0.

    Parameters
    ----------
    q : (b, h, m, d) floats; the queries are the last m of n positions
    k, v : (b, g, n, d), (b, g, n, e) floats
    gates : (b, h, m, 3) or (b, 1, m, 3) floats
    compressed_k, compressed_v : (b, g, c, d), (b, g, c, e) floats
        Default: the mean of every window.
    count, block_size, window, stride, initial, local : as for `selection.nsa_blocks`
    recent : int >= 1
    scale : float, default d ** -0.5

    Returns
    -------
    (b, h, m, e), float64.

    Source: Yuan et al. 2025 (arXiv:2502.11089), by the code named above. Witness: the references
    of fla-core 0.6.0 (`naive_nsa_compression`, `naive_nsa_topk`, `naive_nsa_selection`).

    >>> q = k = np.zeros((1, 1, 4, 1))
    >>> gates = np.array([1.0, 10.0, 100.0]) * np.ones((1, 1, 4, 1))
    >>> v = np.array([[[[1.0], [2.0], [3.0], [4.0]]]])
    >>> sizes = dict(count=1, block_size=2, window=2, stride=2, local=0, recent=1)
    >>> nsa(q, k, v, gates, **sizes)[0, 0, :, 0]
    array([110. , 216.5, 316.5, 417.5])
    """
    given = _Nsa(q, k, v, gates, compressed_k, compressed_v, window, stride, recent)
    chosen = given.choose(count, block_size, initial, local, scale)
    out = np.zeros((*given.q.shape[:3], given.v.shape[-1]))
    for i, one in enumerate(given.branches(chosen)):
        part = attention(
            given.q, one.k, one.v, one.seen, scale=scale, kv_positions=one.kv_positions,
            q_start=one.q_start,
        )  # fmt: skip
        out += given.gates[..., i, None] * part.out
    return out


def nsa_vjp(
    q: Any,
    k: Any,
    v: Any,
    gates: Any,
    dout: Any,
    *,
    compressed_k: Any = None,
    compressed_v: Any = None,
    count: int = 16,
    block_size: int = 64,
    window: int = 32,
    stride: int = 16,
    initial: int = 1,
    local: int = 2,
    recent: int = 512,
    scale: Any = None,
) -> NsaGradients:
    """Gradients of `sum(out * dout)` for `nsa` with the same arguments.

    The choice of blocks is a constant: compressed keys learn from the compression branch alone, as
    in the paper. Means that `nsa` takes itself pass their gradient on to k and v.

    >>> x = np.ones((1, 1, 4, 1))
    >>> gates = np.ones((1, 1, 4, 3))
    >>> sizes = dict(count=1, block_size=2, window=2, stride=2, local=0, recent=1)
    >>> nsa_vjp(x, x, x, gates, x, **sizes).dgates[0, 0]
    array([[0., 1., 1.],
           [1., 1., 1.],
           [1., 1., 1.],
           [1., 1., 1.]])
    """
    given = _Nsa(q, k, v, gates, compressed_k, compressed_v, window, stride, recent)
    chosen = given.choose(count, block_size, initial, local, scale)
    up = given.sizes.floats("dout", dout, "b h m e")
    dq, dgates, parts = np.zeros_like(given.q), np.zeros((*up.shape[:3], 3)), []
    for i, one in enumerate(given.branches(chosen)):
        part = attention(
            given.q, one.k, one.v, one.seen, scale=scale, kv_positions=one.kv_positions,
            q_start=one.q_start,
        )  # fmt: skip
        back = attention_vjp(
            given.q, one.k, one.v, one.seen, up * given.gates[..., i, None], scale=scale,
            kv_positions=one.kv_positions, q_start=one.q_start,
        )  # fmt: skip
        dgates[..., i] = np.sum(part.out * up, axis=-1)
        dq += back.dq
        parts.append((back.dk, back.dv))
    far, dk, dv = parts[0], parts[1][0] + parts[2][0], parts[1][1] + parts[2][1]
    sizes = {"window": window, "stride": stride}
    if compressed_k is None:
        dk = dk + nsa_compress_vjp(k, None, None, far[0], **sizes).dx
    if compressed_v is None:
        dv = dv + nsa_compress_vjp(v, None, None, far[1], **sizes).dx
    if given.gates.shape[1] == 1:
        dgates = dgates.sum(axis=1, keepdims=True)
    return NsaGradients(
        dq, dk, dv, dgates,
        None if compressed_k is None else far[0], None if compressed_v is None else far[1],
    )  # fmt: skip


class _Branch(NamedTuple):
    """The keys and values of one attention, and what each query sees of them."""

    k: Floats
    v: Floats
    seen: Pattern | Selection
    q_start: int
    kv_positions: Any


class _Nsa:
    """The checked arguments, and the three attentions."""

    def __init__(
        self, q: Any, k: Any, v: Any, gates: Any, compressed_k: Any, compressed_v: Any,
        window: int, stride: int, recent: int,
    ) -> None:  # fmt: skip
        sizes = self.sizes = Extents()
        self.q = sizes.floats("q", q, "b h m d")
        self.k = sizes.floats("k", k, "b g n d")
        self.v = sizes.floats("v", v, "b g n e")
        self.gates: Floats = sizes.floats("gates", gates, "b gate m branch")
        if self.gates.shape[1] not in (1, sizes["h"]) or self.gates.shape[3] != 3:
            raise ValueError(
                f"gates must have 1 or {sizes['h']} heads and 3 branches, got {self.gates.shape}"
            )
        self.window, self.stride = window, stride
        self.recent = integer("recent", recent, 1)
        means = {"window": window, "stride": stride}
        k_, v_ = (nsa_compress(x, **means) for x in (self.k, self.v))
        sizes["c"] = k_.shape[2]
        given = {"compressed_k": (compressed_k, k_, "d"), "compressed_v": (compressed_v, v_, "e")}
        self.far_k, self.far_v = (
            mean if x is None else sizes.floats(name, x, f"b g c {size}")
            for name, (x, mean, size) in given.items()
        )

    def choose(self, count: int, size: int, initial: int, local: int, scale: Any) -> Selection:
        """The blocks of every query and group."""
        return nsa_blocks(
            self.q, self.k, count=count, block_size=size, window=self.window, stride=self.stride,
            compressed=self.far_k, initial=initial, local=local, scale=scale,
        )  # fmt: skip

    def branches(self, chosen: Selection) -> list[_Branch]:
        """Compression, selection and window."""
        near: Pattern = Causal() & SlidingWindow(self.recent - 1, 0)
        start = self.sizes["n"] - self.sizes["m"]
        ends = np.arange(self.sizes["c"]) * self.stride + self.window - 1
        return [
            _Branch(self.far_k, self.far_v, Causal(), start, ends),
            _Branch(self.k, self.v, chosen, start, None),
            _Branch(self.k, self.v, near, start, None),
        ]
