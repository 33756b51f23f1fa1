"""Gradients of `gather`, from the log-sum-exp of the forward pass: weights are computed again."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from .gather import Scores, gathered, items, whole


def gathered_gradients(
    dout: Tensor,
    dlse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask,
    how: Scores,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and sinks; see `gathered_attention`."""
    h, g, m, n = q.shape[1], k.shape[1], q.shape[2], k.shape[2]
    bq, bk = mask.BLOCK_SIZE
    x = whole(q, bq), whole(k, bk), whole(v, bk)
    mean = (dout * out).sum(-1)
    mean = mean if dlse is None else mean - dlse
    above, means, sums = (whole(y, bq) for y in (dout, mean[..., None], lse[..., None]))
    sums = sums.masked_fill(sums == -math.inf, 0.0)
    dq, dk, dv = (torch.zeros_like(y) for y in x)
    for of in items(mask, h):
        near = gathered(x, mask, of, how, (m, n))
        at = slice(None), of.head, of.row
        weights = (near.scores - sums[at]).exp()
        dscores = (above[at] @ near.v.mT - means[at]) * weights * near.slope
        dq[at] = how.scale * (dscores @ near.k)
        group, w = (of.head // (h // g))[:, None], of.blocks.shape[1]
        to: Any = slice(None), group, of.blocks.clamp(min=0)
        for total, part in ((dk, how.scale * (dscores.mT @ near.q)), (dv, weights.mT @ above[at])):
            _add(total, to, part.reshape(*part.shape[:2], w, bk, part.shape[-1]))
    dsinks = lse.new_zeros(h)
    if sinks is not None:
        share = (sinks.to(lse.dtype)[:, None] - lse).exp()
        dsinks = -(share.masked_fill(lse == -math.inf, 0.0) * mean).sum((0, 2))
    dq, dk, dv = (y.flatten(2, 3)[:, :, : z.shape[2]] for y, z in ((dq, q), (dk, k), (dv, v)))
    return dq, dk, dv, dsinks


def _add(total: Tensor, at: tuple[Any, Tensor, Tensor], part: Tensor) -> None:
    """Add blocks (b, i, w, bk, d) to (b, g, columns, bk, d), several to one place."""
    flat = (at[1] * total.shape[2] + at[2]).flatten()
    total.flatten(1, 2).index_add_(1, flat, part.flatten(1, 2))
