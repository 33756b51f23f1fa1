"""Mistakes about what nobody sees: rows without a key, padding, a NaN behind the mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sparse_ref._arrays import Bools, Floats
from sparse_ref.conformance.case import Call
from sparse_ref.conformance.mistakes import Mistake, Outcome, changed, repeated, right
from sparse_ref.patterns import Chunked, Full
from sparse_ref.results import Attention

from .answers import GITHUB, forward, joined, simple
from .changes import start
from .rewriting import leaves


def _empty(value: Callable[[Call], Floats | None]) -> Callable[[Call], Outcome | None]:
    """Rows that see no key give something else than 0: `value` (b, h, m, e), or what broadcasts."""

    def outcome(call: Call) -> Outcome | None:
        answer, bound = right(call)
        none = np.isneginf(answer.lse)
        given = value(call) if none.any() and call.k.shape[2] else None
        if given is None:
            return None
        spread = np.abs(call.v).max(initial=0) * 1e-2
        # what it says of its lse is not looked at: some say -inf, some log n, some NaN
        return (
            Attention(np.where(none[..., None], given, answer.out), answer.lse),
            Attention(
                np.where(none[..., None], spread, bound.out), np.where(none, np.inf, bound.lse)
            ),
        )

    return outcome


def _values(call: Call) -> Floats:
    """The values as query heads read them (b, h, n, e)."""
    return np.asarray(repeated(np.asarray(call.v, np.float64), call.q.shape[1]))


def _mean(call: Call) -> Floats:
    return np.asarray(_values(call).mean(axis=2, keepdims=True))


def _mean_so_far(call: Call) -> Floats | None:
    """The mean of the values up to the query's own position; 0 before the first."""
    if {"kv_lengths", "kv_positions"} & set(call.attributes):
        return None
    b, m, n = len(call.q), call.q.shape[2], call.k.shape[2]
    positions = np.broadcast_to(start(call), b)[:, None] + np.arange(m)  # (b, m)
    sums = np.pad(_values(call).cumsum(axis=2), ((0, 0), (0, 0), (1, 0), (0, 0)))
    count = np.clip(positions + 1, 0, n)[:, None, :, None]
    return np.asarray(np.take_along_axis(sums, count, axis=2) / np.maximum(count, 1))


def _not_finite(call: Call) -> Bools:
    """Which columns of the values of each query head hold a NaN or an infinity (b, h, 1, e)."""
    bad = ~np.isfinite(np.asarray(call.v, np.float64)).all(axis=2, keepdims=True)
    return np.asarray(repeated(bad, call.q.shape[1]))


def _masked_nan(call: Call) -> Outcome | None:
    """0 times NaN: what nobody may look at reaches everybody."""
    bad = _not_finite(call)
    if not bad.any():
        return None
    answer, bound = right(call)
    return Attention(np.where(bad, np.nan, answer.out), answer.lse), Attention(
        bound.out, np.full_like(bound.lse, np.inf)
    )


def _masked_nan_to_0(call: Call) -> Outcome | None:
    """A softmax that calls every NaN 0, as if the row saw no key."""
    bad = np.asarray(_not_finite(call).any(axis=-1))  # (b, h, 1)
    if not bad.any():
        return None
    answer, bound = right(call)
    out, off = (np.where(bad[..., None], 0.0, x) for x in (answer.out, bound.out))
    return Attention(out, answer.lse), Attention(off, np.where(bad, np.inf, bound.lse))


def _padded(size: int) -> Callable[[Call], Outcome | None]:
    """Keys of zeros up to a whole block are seen by all."""

    def outcome(call: Call) -> Outcome | None:
        n = call.k.shape[2]
        more = -n % size
        if not more or not simple(call) or not n:
            return None
        k, v = (np.zeros((*x.shape[:2], more, x.shape[3]), x.dtype) for x in (call.k, call.v))
        attributes = {k: x for k, x in call.attributes.items() if k in ("scale", "softcap")}
        padding = Call(call.q, k, v, Full(), attributes)
        return joined([right(call), right(padding)])

    return outcome


def _whole_bucket(call: Call) -> Call | None:
    """Keys of zeros up to a whole chunk, seen by whom the pattern shows that chunk."""
    chunks = leaves(call.pattern, Chunked)
    n = call.k.shape[2]
    more = -n % chunks[0].size if chunks and n else 0
    covers = call.pattern.covers
    if not more or not simple(call) or (covers is not None and covers < n + more):
        return None
    k, v = (_longer(x, more) for x in (call.k, call.v))
    return call._replace(k=k, v=v, attributes={**call.attributes, "q_start": start(call)})


def _longer(x: Any, more: int) -> Any:
    return np.pad(x, ((0, 0), (0, 0), (0, more), (0, 0)))


UNSEEN = tuple(
    Mistake(name, story, GITHUB + link, forward(outcome))
    for name, story, link, outcome in (
        ("padding-seen-16", "keys of zeros up to a multiple of 16 are seen",
         "66RING/tiny-flash-attention/issues/12", _padded(16)),
        ("padding-seen-64", "keys of zeros up to a multiple of 64 are seen",
         "66RING/tiny-flash-attention/issues/12", _padded(64)),
        ("bucket-padding-seen", "the zeros that fill up the last chunk are seen as keys",
         "lucidrains/local-attention", changed(_whole_bucket)),
        ("empty-mean", "a query that sees no key gets the mean of all values",
         "pytorch/pytorch/pull/196170", _empty(_mean)),
        ("empty-mean-so-far", "a query that sees no key gets the mean of the values up to its own",
         "microsoft/onnxruntime/pull/21110", _empty(_mean_so_far)),
        ("empty-nan", "a query that sees no key gets NaN",
         "pytorch/pytorch/pull/131060", _empty(lambda call: np.asarray(np.nan))),
        ("masked-nan", "a NaN that nobody may look at reaches the output: 0 times NaN",
         "onnx/onnx/pull/8068", _masked_nan),
        ("masked-nan-to-0", "a NaN that nobody may look at makes all rows of its head 0",
         "openvinotoolkit/openvino/pull/36016", _masked_nan_to_0),
    )
)  # fmt: skip
