"""The operator `sparse_ref::attention`: one opaque node for autograd, compile and export.

A dispatcher operator takes tensors, numbers and strings, so a pattern travels as its JSON text.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import sparse_ref as sr

from .dense import Options, bound, probabilities

DENSE = 512 * 512  # up to as many pairs a mask is cheaper than a call of the kernels


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
    tokens : (b, positions) bool tensor, optional
        What stands for the pattern's one `Runtime` in each batch row.

    Returns
    -------
    Tensor (b, h, m, e). A query that sees no key gets 0. On a GPU, and where m * n is small, a NaN
    in a value that is not allowed does reach the output, as in PyTorch's own attention.

    Examples
    --------
    >>> q = k = torch.zeros(1, 1, 2, 3)
    >>> sparse_attention(q, k, torch.eye(2)[None, None], sr.Causal())
    tensor([[[[1.0000, 0.0000],
              [0.5000, 0.5000]]]])
    """
    out: Tensor = attention(
        q, k, v, spelled(pattern), q.shape[-1] ** -0.5 if scale is None else scale,
        softcap or 0.0, sink_logits, q_start, key_start, key_length, tokens,
    )  # fmt: skip
    return out


@lru_cache(maxsize=128)
def spelled(pattern: sr.Pattern) -> str:
    """The pattern as the operator takes it: JSON of `sr.to_dict`."""
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
) -> Tensor:
    """From q (b, h, m, d), k (b, g, n, d) and v (b, g, n, e) to out (b, h, m, e)."""
    seen = bound(unspelled(pattern), tokens)
    given = Options(seen, scale, softcap, sinks, q_start, key_start, key_length)
    large = q.shape[2] * k.shape[2] > DENSE
    if large and q.device.type == "cpu" and find_spec("numba"):
        return _by_kernels(q, k, v, given)
    weights = probabilities(q, k, given).weights
    return weights @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


def _by_kernels(q: Tensor, k: Tensor, v: Tensor, given: Options) -> Tensor:
    """Without a mask: memory follows what is seen."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    arrays = (x.detach().to(wide).numpy() for x in (q, k, v))
    got = sr.kernels.attention(
        *arrays, given.pattern, scale=given.scale, softcap=given.softcap or None,
        sink_logits=None if given.sinks is None else given.sinks.detach().to(wide).numpy(),
        **given.positions(q, k),
    )  # fmt: skip
    return torch.from_numpy(got.out).to(q.dtype)


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, pattern: str, scale: float, *options: Any) -> Tensor:
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


@torch.library.custom_op("sparse_ref::attention_backward", mutates_args=())
def attention_backward(
    dout: Tensor,
    out: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and sinks; the probabilities are computed again, not kept."""
    h, g = q.shape[1], k.shape[1]
    seen = bound(unspelled(pattern), tokens)
    given = Options(seen, scale, softcap, sinks, q_start, key_start, key_length)
    weights, of_sinks, slope = probabilities(q, k, given)
    keys, values = (x.repeat_interleave(h // g, dim=1) for x in (k, v))
    total = (dout * out).sum(-1, keepdim=True)
    dscores = (dout @ values.mT).sub_(total).mul_(weights).mul_(slope)
    dkeys, dvalues = dscores.mT @ (scale * q), weights.mT @ dout
    dk, dv = (x.reshape(-1, g, h // g, *x.shape[2:]).sum(2) for x in (dkeys, dvalues))
    return scale * (dscores @ keys), dk, dv, -(of_sinks * total).sum((0, 2, 3))


@attention_backward.register_fake
def _(dout: Tensor, out: Tensor, q: Tensor, k: Tensor, v: Tensor, *options: Any) -> Any:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), q.new_empty(q.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, ctx.pattern, ctx.scale, ctx.softcap, *tensors = inputs
    ctx.save_for_backward(output, q, k, v, *tensors)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    out, q, k, v, sinks, *positions = ctx.saved_tensors
    dq, dk, dv, dsinks = attention_backward(
        dout, out, q, k, v, ctx.pattern, ctx.scale, ctx.softcap, sinks, *positions
    )
    if sinks is not None:
        sinks = dsinks.to(sinks.dtype)
    return dq, dk, dv, None, None, None, sinks, *(None for _ in positions)


attention.register_autograd(_backward, setup_context=_setup_context)
