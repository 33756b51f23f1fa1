"""The X-ray of an implementation: everything it really computes, read from outside."""

from __future__ import annotations

import numpy as np

from sparse_ref._arrays import Bools, Floats, integer
from sparse_ref.patterns import Pattern, compare

from .attributes import (
    Asked,
    Response,
    pair_of,
    read_deaf,
    read_key_heads,
    read_response,
    read_sink,
)
from .bits import read_bits
from .calling import Implementation
from .findings import HeadReading, Xray
from .masks import read_weights
from .seen import seen_in
from .uneven import Uneven, read_uneven, tidy


def xray(
    fn: Implementation,
    q_len: int,
    kv_len: int,
    *,
    pattern: Pattern | None = None,
    heads: int = 1,
    kv_heads: int | None = None,
    head_dim: int = 64,
) -> Xray:
    """What an implementation really computes: mask, alignment, heads, scale, softcap, sinks, bits.

    Parameters
    ----------
    fn : callable
        `f(q, k, v) -> out`, or with a pattern `fn(q, k, v, pattern) -> out or (out, lse)`; arrays
        are q (1, heads, q_len, head_dim) and k, v (1, kv_heads, kv_len, head_dim), float32. A
        kernel of another type is asked through a `Candidate`.
    q_len, kv_len : int >= 1
        A window longer than these is not seen.
    pattern : Pattern, optional
        What fn is asked for, and what its mask is compared with.
    heads, kv_heads : int
        kv_heads defaults to heads.
    head_dim : int >= 2

    Returns
    -------
    Xray

    Raises
    ------
    AnswerError
        If the output has another shape than attention has.
    ValueError
        If a size is out of range.

    A softcap is told from none up to 300, a sink where it is within 60 of the scores that the
    implementation can make.

    >>> import sparse_ref as sr
    >>> def mine(q, k, v):
    ...     return sr.attention(q, k, v, sr.Causal() & sr.SlidingWindow(2, 0), scale=0.3).out
    >>> print(xray(mine, 4, 4, head_dim=8))
    read with 4 queries and 4 keys
    causal window of 3 keys: hf sliding_window=3, flash_attn window_size=(2, 0), ...
      scale 0.3, no softcap
        # . . .
        # # . .
        # # # .
        . # # #
    key/value heads: each query head has its own
    precision: scores 24 bits, weights 24, values 24; small weights kept
    """
    m, n, h = (integer(name, value, 1) for name, value in
               (("q_len", q_len), ("kv_len", kv_len), ("heads", heads)))  # fmt: skip
    g = h if kv_heads is None else integer("kv_heads", kv_heads, 1)
    d = integer("head_dim", head_dim, 2)
    asked = Asked(fn, pattern, h, g, m, n, d)
    weights = read_weights(fn, m, n, pattern=pattern, heads=h, kv_heads=g, head_dim=d)
    key_heads = read_key_heads(asked, weights)
    responses = [_response(asked, weights[head], head) for head in range(h)]
    deaf = np.zeros((h, m), dtype=bool)
    for head, response in enumerate(responses):
        if response is not None and response.scale:
            deaf[head] = read_deaf(asked, response)[head]
    readings = tuple(
        _head(asked, weights[head], deaf[head], responses[head], int(key_heads[head]), head)
        for head in range(h)
    )
    bits: dict[str, int | bool] = {}
    for head, (one, response) in enumerate(zip(readings, responses, strict=True)):
        if response is not None and one.plain:
            bits = read_bits(asked, np.where(one.mask, weights[head], 0), response, head)
            break
    found = np.stack([one.mask for one in readings])
    differs = None if pattern is None else compare(pattern, found, m, n)
    return Xray(m, n, d, g, readings, bits, differs)


def _response(asked: Asked, weights: Floats, head: int) -> Response | None:
    """How the scores of a head follow q . k; None where no query sees two keys."""
    for rows in (slice(None), slice(None, None, -1)):  # a deaf row says nothing
        pair = pair_of(weights[rows])
        if pair is None:
            return None
        row = pair.row if rows.step is None else asked.q_len - 1 - pair.row
        got = read_response(asked, pair._replace(row=row), head)
        if got.scale:
            break
    return got


def _head(
    asked: Asked, weights: Floats, deaf: Bools, response: Response | None, key_head: int, head: int
) -> HeadReading:
    given = np.where(deaf[:, None], 0, weights)
    uneven: Uneven = read_uneven(given, asked.bits)
    sink, lost = read_sink(asked, given, response or Response(0.0, None), head)
    error = 2.0 ** (4 - asked.bits)
    nothing = ~(np.nan_to_num(weights) > 0).any(1)
    wrong = np.isnan(weights).any(1)
    kinds = {"0": nothing & ~wrong, "NaN": wrong, "the mean of V": deaf}
    empty = [kind for kind, rows in kinds.items() if rows.any()]
    scale = None if response is None else _near(response.scale, asked.head_dim**-0.5, error / 4)
    cap = (
        None if response is None or response.softcap is None else tidy(response.softcap, 4 * error)
    )
    return HeadReading(
        mask=uneven.seen, seen=seen_in(uneven.seen), key_head=key_head, scale=scale, softcap=cap,
        sink=None if sink is None else _sink(sink, error), empty=" or ".join(empty) or None,
        uneven=uneven.words, leak=uneven.leak, times=uneven.times, lost=lost,
    )  # fmt: skip


def _near(scale: float, default: float, error: float) -> float:
    """The default where it cannot be told from it, else as few digits as tell it."""
    usual = abs(scale - default) <= max(error, 1e-3) * default
    return default if usual else tidy(scale, error)


def _sink(sink: float, error: float) -> float:
    return 0.0 if abs(sink) <= 8 * error else tidy(sink, 8 * error / max(abs(sink), 1e-9))
