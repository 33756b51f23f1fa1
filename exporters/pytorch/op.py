"""The operator `sparse_ref::attention`: one opaque node for autograd, compile and export.

A dispatcher operator takes tensors, numbers and strings, so a pattern travels as its JSON text; its
mask is built once for every text, shape and head count.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import sparse_ref as sr


def sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, pattern: sr.Pattern, *, scale: float | None = None
) -> Tensor:
    """Attention over the keys that `pattern` lets each query see, on tensors, with gradients.

    Parameters
    ----------
    q : (b, h, m, d) float tensor
    k, v : (b, g, n, d) and (b, g, n, e) float tensors; g divides h
    pattern : Pattern
        A set, the same for every batch row. The queries are the last m positions.
    scale : float, default d ** -0.5

    Returns
    -------
    Tensor (b, h, m, e). A query that sees no key gets 0. As in PyTorch's own attention, a NaN in a
    value that is not allowed does reach the output.

    Examples
    --------
    >>> q = k = torch.zeros(1, 1, 2, 3)
    >>> sparse_attention(q, k, torch.eye(2)[None, None], sr.Causal())
    tensor([[[[1.0000, 0.0000],
              [0.5000, 0.5000]]]])
    """
    out: Tensor = attention(
        q, k, v, spelled(pattern), q.shape[-1] ** -0.5 if scale is None else scale
    )
    return out


def spelled(pattern: sr.Pattern) -> str:
    """The pattern as the operator takes it: JSON of `sr.to_dict`."""
    if not isinstance(pattern, sr.Pattern):
        raise TypeError(f"pattern must be a Pattern, got {type(pattern).__name__}")
    if pattern.multiset or pattern.batches is not None:
        raise ValueError(f"pattern must be one set of keys for every batch row, got {pattern!r}")
    return json.dumps(sr.to_dict(pattern), separators=(",", ":"), sort_keys=True)


def unspelled(text: str) -> sr.Pattern:
    """The pattern that `spelled` wrote."""
    return sr.from_dict(json.loads(text))


@torch.library.custom_op("sparse_ref::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, pattern: str, scale: float) -> Tensor:
    """From q (b, h, m, d), k (b, g, n, d) and v (b, g, n, e) to out (b, h, m, e)."""
    mask = _mask(pattern, q.shape[1], q.shape[2], k.shape[2]).to(q.device)
    out = scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    # what PyTorch answers for a row without keys differs from kernel to kernel
    return out.masked_fill(~mask.any(-1, keepdim=True), 0.0).contiguous()


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, pattern: str, scale: float) -> Tensor:
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


@torch.library.custom_op("sparse_ref::attention_backward", mutates_args=())
def attention_backward(
    dout: Tensor, out: Tensor, q: Tensor, k: Tensor, v: Tensor, pattern: str, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; the probabilities are computed again, not kept."""
    h, g = q.shape[1], k.shape[1]
    hidden = ~_mask(pattern, h, q.shape[2], k.shape[2]).to(q.device)
    keys, values = (x.repeat_interleave(h // g, dim=1) if h != g else x for x in (k, v))
    scaled = scale * q
    scores = (scaled @ keys.mT).masked_fill_(hidden, -torch.inf)
    weights = scores.softmax(-1).masked_fill_(hidden, 0.0)  # and rows without keys, NaN so far
    total = (dout * out).sum(-1, keepdim=True)
    dscores = (dout @ values.mT).sub_(total).mul_(weights)
    dkeys, dvalues = dscores.mT @ scaled, weights.mT @ dout
    dk, dv = (x.reshape(-1, g, h // g, *x.shape[2:]).sum(2) for x in (dkeys, dvalues))
    return scale * (dscores @ keys), dk, dv


@attention_backward.register_fake
def _(
    dout: Tensor, out: Tensor, q: Tensor, k: Tensor, v: Tensor, pattern: str, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, ctx.pattern, ctx.scale = inputs
    ctx.save_for_backward(output, q, k, v)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    dq, dk, dv = attention_backward(dout, *ctx.saved_tensors, ctx.pattern, ctx.scale)
    return dq, dk, dv, None, None


attention.register_autograd(_backward, setup_context=_setup_context)


@lru_cache(maxsize=128)
def _mask(text: str, heads: int, q_len: int, kv_len: int) -> Tensor:
    """Bool (1, heads, q_len, kv_len), or (1, 1, q_len, kv_len) where the heads are alike."""
    pattern = unspelled(text)
    mask = pattern.mask(q_len, kv_len, heads=1 if pattern.heads == 1 else heads)
    return torch.from_numpy(mask[None])  # four axes: PyTorch has no fused kernel for three
