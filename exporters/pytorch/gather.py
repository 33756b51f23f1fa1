"""Attention over the blocks of a BlockMask in plain PyTorch: any device, memory as blocks are seen.

Block rows with about equally many key blocks are computed together, so that one that sees all
does not pad the others. This file needs torch alone: emitted files hold its text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask


class Items(NamedTuple):
    """Block rows, each of one query head, and as many key blocks for each of them."""

    head: Tensor  # (i,)
    row: Tensor  # (i,)
    blocks: Tensor  # (i, w), -1 where a row has no more


def items(mask: BlockMask, heads: int) -> Iterator[Items]:
    """All block rows of all heads that see a block; w is the next power of two."""
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_indices is not None
    partial = _listed(mask.kv_num_blocks[0], mask.kv_indices[0])
    listed = partial | _listed(mask.full_kv_num_blocks[0], mask.full_kv_indices[0])
    listed = listed.expand(heads, -1, -1)
    count = listed.sum(-1)
    width = 1
    while width < 2 * listed.shape[-1]:
        head, row = torch.nonzero((count > width // 2) & (count <= width), as_tuple=True)
        if len(head):
            order = listed[head, row].int().argsort(descending=True, stable=True)[:, :width]
            past = torch.arange(order.shape[1], device=order.device) >= count[head, row][:, None]
            yield Items(head, row, order.masked_fill(past, -1))
        width *= 2


def _listed(number: Tensor, columns: Tensor) -> Tensor:
    """Which blocks (heads, rows, columns) are among the first `number` of the ordered columns."""
    order = torch.arange(columns.shape[-1], device=columns.device)
    first = order < number[..., None]
    return torch.zeros_like(first).scatter(-1, columns.long(), first)


class Scores(NamedTuple):
    """How scores are made of products."""

    scale: float
    softcap: float = 0.0  # 0 is none
    slopes: Tensor | None = None  # (heads,) of ALiBi
    ahead: int = 0  # positions from the first key to the first query
    key_length: Tensor | None = None  # (b,)


class Gathered(NamedTuple):
    """The tensors of some items, and their scores."""

    q: Tensor  # (b, i, bq, d)
    k: Tensor  # (b, i, w bk, d)
    v: Tensor  # (b, i, w bk, e)
    scores: Tensor  # (b, i, bq, w bk), -inf where a key is not seen
    slope: Tensor | float  # of the softcap


def gathered(
    x: tuple[Tensor, Tensor, Tensor],
    mask: BlockMask,
    of: Items,
    how: Scores,
    lengths: tuple[int, int],
) -> Gathered:
    """From q (b, h, rows, bq, d) and k, v (b, g, columns, bk, ..), which hold whole blocks."""
    q, k, v = x
    group = q.shape[1] // k.shape[1]
    (bq, bk), (i, w) = mask.BLOCK_SIZE, of.blocks.shape
    near = (of.head // group)[:, None], of.blocks.clamp(min=0)
    queries = q[:, of.head, of.row]
    keys, values = (x[:, near[0], near[1]].flatten(2, 3) for x in (k, v))
    scores, slope = (how.scale * queries) @ keys.mT, 1.0
    if how.softcap:
        inner = torch.tanh(scores / how.softcap)
        scores, slope = how.softcap * inner, 1 - inner**2  # type: ignore[assignment]
    head = of.head[:, None, None]
    at_q = (of.row[:, None] * bq + torch.arange(bq, device=q.device))[..., None]
    at_k = (of.blocks[..., None] * bk + torch.arange(bk, device=q.device)).view(i, 1, w * bk)
    if how.slopes is not None:
        distance = (at_q + how.ahead - at_k).abs()
        scores = scores - (how.slopes[head] * distance).to(scores.dtype)
    seen = mask.mask_mod(torch.zeros_like(head), head, at_q, at_k)
    if seen.dtype != torch.bool:  # how often each key counts
        scores = scores + seen.to(scores.dtype).log()
        seen = seen > 0
    seen = seen & (at_k >= 0) & (at_k < lengths[1]) & (at_q < lengths[0])
    if how.key_length is not None:
        seen = seen & (at_k < how.key_length[:, None, None, None])
    return Gathered(queries, keys, values, scores.masked_fill(~seen, -math.inf), slope)


def gathered_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask,
    how: Scores,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attention over the blocks of `mask`: out (b, h, m, e) and log-sum-exp (b, h, m).

    `dropout` is the probability with which a weight is 0, as in training.
    """
    (b, h, m, _), n, e = q.shape, k.shape[2], v.shape[-1]
    bq, bk = mask.BLOCK_SIZE
    x = whole(q, bq), whole(k, bk), whole(v, bk)
    rows = x[0].shape[2]
    out = v.new_zeros(b, h, rows, bq, e)
    lse = q.new_full((b, h, rows, bq), -math.inf)
    if sinks is not None:
        lse = lse.maximum(sinks.to(q.dtype)[:, None, None])
    for of in items(mask, h):
        near = gathered(x, mask, of, how, (m, n))
        scores = near.scores
        if sinks is not None:
            sink = sinks.to(q.dtype)[of.head][:, None, None].expand(b, -1, bq, 1)
            scores = torch.cat([scores, sink], -1)
        total = scores.logsumexp(-1, keepdim=True)
        weights = scores.softmax(-1).masked_fill(total == -math.inf, 0.0)[..., : near.v.shape[2]]
        if dropout:
            weights = torch.nn.functional.dropout(weights, dropout)
        out[:, of.head, of.row] = weights @ near.v
        lse[:, of.head, of.row] = total[..., 0]
    return out.flatten(2, 3)[:, :, :m], lse.flatten(2, 3)[:, :, :m]


def whole(x: Tensor, size: int) -> Tensor:
    """(b, h, n, d) as blocks (b, h, blocks, size, d), filled up with zeros."""
    missing = -x.shape[2] % size
    padded = torch.nn.functional.pad(x, (0, 0, 0, missing)) if missing else x
    return padded.reshape(*x.shape[:2], padded.shape[2] // size, size, x.shape[3])
