"""The operator `sparse_ref::attention`: one opaque node for autograd, compile and export.

A dispatcher operator takes tensors, numbers and strings, so a pattern travels as its JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

import sparse_ref as sr

from . import by_blocks, by_flex, by_kernels
from .given import Options


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: sr.Pattern,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    q_start: Tensor | None = None,
    key_start: Tensor | None = None,
    key_length: Tensor | None = None,
    tokens: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
) -> Tensor:
    """Attention over the keys that `pattern` lets each query see, on tensors, with gradients.

    Parameters
    ----------
    q : (b, h, m, d) float tensor
    k, v : (b, g, n, d) and (b, g, n, e) float tensors; g divides h
    pattern : Pattern
        The same for every batch row.
    scale : float, default d ** -0.5
    softcap : float > 0, optional
        Scores become softcap * tanh(score / softcap).
    sink_logits : (h,) tensor, optional
        One more score of each head, in the denominator only.
    q_start, key_start : (b,) int64 tensors, optional
        Position of the first query, by default that of key n - m; and of the first key, by
        default 0.
    key_length : (b,) int64 tensor, optional
        Keys from there on are no keys. It does not move the queries.
    tokens : (b, positions) bool or int64 tensor, optional
        What stands for the pattern's one `Runtime` in each batch row.
    alibi_slopes : (h,) tensor, optional
        Scores fall by slope * |p - k| of positions (arXiv:2108.12409). It gets no gradient.

    Returns
    -------
    Tensor (b, h, m, e) in q's type. A query that sees no key gets 0. On a CPU the kernels compute
    it; elsewhere FlexAttention, and plain torch where there is no Numba, which let a NaN in a
    value that is not allowed reach the output, as PyTorch's own attention does.

    Examples
    --------
    >>> q = k = torch.zeros(1, 1, 2, 3)
    >>> sparse_attention(q, k, torch.eye(2)[None, None], sr.Causal())
    tensor([[[[1.0000, 0.0000],
              [0.5000, 0.5000]]]])
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    for record in _LISTENERS:
        moves = sink_logits, q_start, key_start, key_length, tokens, alibi_slopes
        record(q, k, pattern, Options.of(pattern, scale, softcap or 0.0, *moves))
    moved = any(x is not None for x in (q_start, key_start, tokens))
    if q.device.type != "cpu" and not moved:
        given = Options(pattern, scale, softcap or 0.0, sink_logits, None, None, key_length,
                        alibi_slopes)  # fmt: skip
        return by_flex.forward(q, k, v, given)
    out: Tensor = attention(
        q, k, v, spelled(pattern), scale, softcap or 0.0, sink_logits, q_start, key_start,
        key_length, tokens, alibi_slopes,
    )[0]  # fmt: skip
    return out


_LISTENERS: list[Callable[[Tensor, Tensor, sr.Pattern, Options], None]] = []


@contextmanager
def listening(record: Callable[[Tensor, Tensor, sr.Pattern, Options], None]) -> Iterator[None]:
    """Tell `record` of every call of `sparse_attention`."""
    _LISTENERS.append(record)
    try:
        yield
    finally:
        _LISTENERS.remove(record)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # asked once, kept
def spelled(pattern: sr.Pattern) -> str:
    """The pattern as the operator takes it: JSON of `sr.to_dict`."""
    return _spelled(pattern)


@lru_cache(maxsize=128)
def _spelled(pattern: sr.Pattern) -> str:
    if not isinstance(pattern, sr.Pattern):
        raise TypeError(f"pattern must be a Pattern, got {type(pattern).__name__}")
    if pattern.batches is not None:
        raise ValueError(f"pattern must be the same for every batch row, got {pattern!r}")
    return json.dumps(sr.to_dict(pattern), separators=(",", ":"), sort_keys=True)


@lru_cache(maxsize=128)
def unspelled(text: str) -> sr.Pattern:
    """The pattern that `spelled` wrote."""
    return sr.from_dict(json.loads(text))


@torch.library.custom_op("sparse_ref::attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: str,
    scale: float,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    q_start: Tensor | None = None,
    key_start: Tensor | None = None,
    key_length: Tensor | None = None,
    tokens: Tensor | None = None,
    slopes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """From q (b, h, m, d), k (b, g, n, d) and v (b, g, n, e) to out (b, h, m, e), lse (b, h, m)."""
    tensors = sinks, q_start, key_start, key_length, tokens, slopes
    given = Options.of(unspelled(pattern), scale, softcap, *tensors)
    if _kernels(q):
        return by_kernels.forward(q, k, v, given)
    return by_blocks.forward(q, k, v, given)


def _kernels(q: Tensor) -> bool:
    return q.device.type == "cpu" and by_kernels.AVAILABLE


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, pattern: str, scale: float, *options: Any) -> Any:
    wide = torch.float64 if torch.float64 in (q.dtype, k.dtype, v.dtype) else torch.float32
    return q.new_empty((*q.shape[:-1], v.shape[-1])), q.new_empty(q.shape[:-1], dtype=wide)


@torch.library.custom_op("sparse_ref::attention_backward", mutates_args=())
def attention_backward(
    dout: Tensor,
    dlse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: str,
    scale: float,
    softcap: float,
    sinks: Tensor | None,
    q_start: Tensor | None,
    key_start: Tensor | None,
    key_length: Tensor | None,
    tokens: Tensor | None,
    slopes: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and sinks; the weights are computed again, not kept."""
    tensors = sinks, q_start, key_start, key_length, tokens, slopes
    given = Options.of(unspelled(pattern), scale, softcap, *tensors)
    backward = by_kernels.backward if _kernels(q) else by_blocks.backward
    return backward(dout, dlse, out, lse, q, k, v, given)


@attention_backward.register_fake
def _(
    dout: Tensor, dlse: Any, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> Any:
    return *(x.new_empty(x.shape) for x in (q, k, v)), lse.new_empty(q.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.pattern, ctx.scale, ctx.softcap, *tensors = inputs
    ctx.save_for_backward(*output, q, k, v, *tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    out, lse, q, k, v, sinks, *others = ctx.saved_tensors
    none = [None] * len(others)
    if dout is None and dlse is None:
        return None, None, None, None, None, None, None, *none
    dout = torch.zeros_like(out) if dout is None else dout
    dq, dk, dv, dsinks = attention_backward(
        dout, dlse, out, lse, q, k, v, ctx.pattern, ctx.scale, ctx.softcap, sinks, *others
    )
    if sinks is not None:
        sinks = dsinks.to(sinks.dtype)
    return dq, dk, dv, None, None, None, sinks, *none


attention.register_autograd(_backward, setup_context=_setup_context)
