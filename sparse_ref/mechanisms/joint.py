"""DeepSeek-V4: attention to a window of tokens and to compressed entries, in one softmax."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sparse_ref._arrays import Bools, Floats, Ints, integer
from sparse_ref.gradients import attention_vjp
from sparse_ref.reference import attention
from sparse_ref.results import Attention
from sparse_ref.selection import lightning_indexer

from ._border import Counted, Extents


class CsaGradients(NamedTuple):
    """Gradients in the shapes of q, kv, entries and sink_logits (None if not given).

    >>> CsaGradients([0.0], [0.0], [0.0], None).dsink_logits is None
    True
    """

    dq: Any
    dkv: Any
    dentries: Any
    dsink_logits: Any


def csa(
    q: Any,
    kv: Any,
    entries: Any,
    index_q: Any,
    index_entries: Any,
    index_weights: Any,
    *,
    count: int = 512,
    ratio: int = 4,
    window: int = 128,
    sink_logits: Any = None,
    scale: Any = None,
) -> Attention:
    """Compressed sparse attention: the last tokens, and the best compressed entries before.

    1. Entry w stands for the tokens w ratio .. (w + 1) ratio - 1 (and through its overlap for the
       `ratio` before): `csa_compress`. The query at position p may use it once they are all there:
       w < (p + 1) // ratio. Tokens of the open group are reached through the window only.
    2. The lightning indexer (`selection.lightning_indexer`) chooses `count` of the entries it may
       use, by entries of its own, compressed alike with other weights; one choice for all heads.
    3. One softmax over {the last `window` tokens, p among them}, {chosen entries} and the sink.
       Tokens and entries are keys and values at once, one head for all queries.

    Before: q and kv are normalised and rotated, entries rotated at position w ratio. After: since
    values are rotated keys, the model turns the output's rotated part back by the query's
    position. Time O(m n / ratio H d_I) to choose, O(m (window + count) d) a head.

    Nothing keeps an entry and the window from showing the same token twice, and nothing should:
    they are different keys. Grouping is by position, so padding on the left moves all groups; the
    released code and transformers have no such case. V4.1's two-level indexer is not this.

    Parameters
    ----------
    q : (b, h, m, d) floats; the queries are the last m of n tokens
    kv : (b, n, d) floats
    entries : (b, n // ratio, d) floats
    index_q, index_entries, index_weights : (b, H, m, i), (b, n // ratio, i), (b, m, H) floats
    count : int >= 0
    ratio, window : int >= 1
    sink_logits : (h,) floats, optional
    scale : float, default d ** -0.5

    Returns
    -------
    Attention(out, lse), float64; lse includes the sink.

    Source: DeepSeek-V4, section 2.3.1 of its report, checked against the released inference code
    (`Compressor`, `Indexer`, `Attention`), not against the report itself. Witness: transformers
    5.23, `DeepseekV4Attention`, `DeepseekV4CSACompressor`, output and gradients.

    >>> q, kv = np.zeros((1, 1, 5, 1)), np.arange(5.0)[None, :, None]
    >>> entries, index, one = np.array([[[10.0], [20.0]]]), np.ones((1, 2, 1)), np.ones((1, 5, 1))
    >>> csa(q, kv, entries, one[:, None], index, one, count=1, ratio=2, window=1).out[0, 0, :, 0]
    array([0. , 5.5, 6. , 6.5, 7. ])
    """
    given = _Joint(q, kv, entries, ratio, window)
    given.choose(index_q, index_entries, index_weights, count)
    return given.attention(sink_logits, scale)


def hca(
    q: Any,
    kv: Any,
    entries: Any,
    *,
    ratio: int = 128,
    window: int = 128,
    sink_logits: Any = None,
    scale: Any = None,
) -> Attention:
    """Heavily compressed attention: the last tokens, and all compressed entries before.

    `csa` without its step 2, and with entries that do not overlap: time O(m (window + n / ratio) d)
    a head. Arguments, visibility, what is open, sources and witnesses as there (report section
    2.3.2, `DeepseekV4HCACompressor`).

    >>> q, kv = np.zeros((1, 1, 5, 1)), np.arange(5.0)[None, :, None]
    >>> hca(q, kv, np.array([[[10.0], [20.0]]]), ratio=2, window=1).out[0, 0, :, 0].round(3)
    array([ 0.   ,  5.5  ,  6.   , 11.   , 11.333])
    """
    return _Joint(q, kv, entries, ratio, window).attention(sink_logits, scale)


def csa_vjp(
    q: Any,
    kv: Any,
    entries: Any,
    index_q: Any,
    index_entries: Any,
    index_weights: Any,
    dout: Any,
    *,
    count: int = 512,
    ratio: int = 4,
    window: int = 128,
    sink_logits: Any = None,
    scale: Any = None,
) -> CsaGradients:
    """Gradients of `sum(out * dout)` for `csa`; the choice is a constant, as in `dsa_vjp`.

    dkv and dentries are the sums of what they get as keys and as values.

    >>> q, kv = np.zeros((1, 1, 4, 1)), np.ones((1, 4, 1))
    >>> index, one = np.ones((1, 2, 1)), np.ones((1, 4, 1))
    >>> x = q, kv, index, one[:, None], index, one
    >>> csa_vjp(*x, one[:, None], count=1, ratio=2, window=1).dentries[0, :, 0]
    array([1.5, 0. ])
    """
    given = _Joint(q, kv, entries, ratio, window)
    given.choose(index_q, index_entries, index_weights, count)
    return given.vjp(dout, sink_logits, scale)


def hca_vjp(
    q: Any,
    kv: Any,
    entries: Any,
    dout: Any,
    *,
    ratio: int = 128,
    window: int = 128,
    sink_logits: Any = None,
    scale: Any = None,
) -> CsaGradients:
    """Gradients of `sum(out * dout)` for `hca` with the same arguments.

    >>> q, kv = np.zeros((1, 1, 4, 1)), np.ones((1, 4, 1))
    >>> up = np.ones((1, 1, 4, 1))
    >>> hca_vjp(q, kv, np.ones((1, 2, 1)), up, ratio=2, window=1).dentries[0, :, 0].round(3)
    array([1.333, 0.333])
    """
    return _Joint(q, kv, entries, ratio, window).vjp(dout, sink_logits, scale)


class _Joint:
    """The checked arguments: tokens and entries as one list of keys, and who sees which."""

    def __init__(self, q: Any, kv: Any, entries: Any, ratio: int, window: int) -> None:
        self.sizes = Extents()
        self.q = self.sizes.floats("q", q, "b h m d")
        kv = self.sizes.floats("kv", kv, "b n d")
        ratio, window = integer("ratio", ratio, 1), integer("window", window, 1)
        b, m, n = (self.sizes[a] for a in "bmn")
        if m > n:
            raise ValueError(f"q must have at most kv's {n} positions, got {m}")
        self.sizes["w"] = n // ratio
        entries = self.sizes.floats("entries", entries, "b w d")
        self.keys = np.concatenate([kv, entries], axis=1)[:, None]
        p = np.arange(n - m, n)[:, None]
        age = p - np.arange(n)
        self.near: Bools = np.broadcast_to((age >= 0) & (age < window), (b, m, n))
        self.ends: Ints = (np.arange(n // ratio) + 1) * ratio - 1  # its last token's position
        self.usable: Bools = np.broadcast_to(self.ends <= p, (b, m, n // ratio))

    def choose(self, index_q: Any, index_entries: Any, index_weights: Any, count: int) -> None:
        """Leave each query the entries that the indexer chooses."""
        b, m, n, w = (self.sizes[a] for a in "bmnw")
        chosen = lightning_indexer(
            self.sizes.floats("index_q", index_q, "b H m i"),
            self.sizes.floats("index_entries", index_entries, "b w i"),
            self.sizes.floats("index_weights", index_weights, "b m H"),
            count=count, q_start=n - m, kv_positions=self.ends,
        )  # fmt: skip
        rows = [
            chosen.mask(m, w, batch=i, q_start=n - m, kv_positions=self.ends)[0] for i in range(b)
        ]
        self.usable = np.array(rows, dtype=bool).reshape(b, m, w)

    @property
    def seen(self) -> Counted:
        """(b, 1, m, n + w)."""
        return Counted(np.concatenate([self.near, self.usable], axis=2)[:, None])

    def attention(self, sink_logits: Any, scale: Any) -> Attention:
        """One softmax over what is seen."""
        return attention(
            self.q, self.keys, self.keys, self.seen,
            scale=scale, sink_logits=sink_logits, q_start=0,
        )  # fmt: skip

    def vjp(self, dout: Any, sink_logits: Any, scale: Any) -> CsaGradients:
        """Its gradients, those of keys and values together."""
        back = attention_vjp(
            self.q, self.keys, self.keys, self.seen, dout,
            scale=scale, sink_logits=sink_logits, q_start=0,
        )  # fmt: skip
        both: Floats = (back.dk + back.dv)[:, 0]
        n = self.sizes["n"]
        return CsaGradients(back.dq, both[:, :n], both[:, n:], back.dsink_logits)
