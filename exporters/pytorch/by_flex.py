"""The operator by FlexAttention, compiled once for every pattern: what runs on a GPU.

It is no custom operator there but FlexAttention itself: torch.compile sees through it and fuses
it, and it brings its own backward.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

import sparse_ref as sr

from .by_blocks import kept
from .given import Options


def forward(q: Tensor, k: Tensor, v: Tensor, given: Options) -> Tensor:
    """Out (b, h, m, e); the options hold no positions."""
    pattern, m, n = given.pattern, q.shape[2], k.shape[2]
    if not m or not n:
        return v.new_zeros((*q.shape[:-1], v.shape[-1]), dtype=q.dtype)
    mask = kept(pattern, m, n, q.shape[1], n - m, None, q.device)
    counts = mask.mask_mod if pattern.multiset else None
    if given.key_length is not None or pattern.multiset:
        mask = within(mask, given.key_length)
    attend = _attend if torch.compiler.is_compiling() else compiled(pattern)
    score = score_mod(given, n - m, counts)
    if given.sinks is None:
        out: Tensor = attend(q, k, v, score, mask, given.scale)
        return out
    aux = AuxRequest(lse=True)  # asked for where it is needed: compiled for CPUs there is none
    out, found = attend(q, k, v, score, mask, given.scale, aux)
    share = torch.sigmoid(found.lse - given.sinks.to(found.lse.dtype)[:, None])
    return out * share[..., None].to(out.dtype)


@lru_cache(maxsize=64)
def compiled(pattern: sr.Pattern) -> Callable[..., Any]:
    """FlexAttention for one pattern, with code of its own.

    torch.compile keeps eight versions of a function and then runs it eager, with all scores in
    memory; what is counted is its code object.
    """
    code = _attend.__code__.replace(co_name=f"attend_{abs(hash(pattern))}")
    own = types.FunctionType(code, globals(), argdefs=_attend.__defaults__)
    return torch.compile(own)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, score: Any, mask: BlockMask, scale: float, aux: Any = None
) -> Any:
    return flex_attention(
        q, k, v, score_mod=score, block_mask=mask, scale=scale,
        enable_gqa=q.shape[1] != k.shape[1], return_aux=aux,
    )  # fmt: skip


def within(mask: BlockMask, length: Tensor | None) -> BlockMask:
    """Only keys below length (b,): no block is known to be full then."""
    mod, partial = mask.mask_mod, (mask.kv_num_blocks, mask.kv_indices)
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_indices is not None
    rest = mask.full_kv_num_blocks, mask.full_kv_indices
    order = torch.arange(partial[1].shape[-1], device=partial[1].device)
    either = torch.zeros(partial[1].shape, dtype=torch.bool, device=order.device)
    for number, columns in (partial, rest):
        either = either | torch.zeros_like(either).scatter(
            -1, columns.long(), order < number[..., None]
        )
    columns = either.int().argsort(dim=-1, descending=True, stable=True).int()

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = mod(b, h, q, k) > 0
        return seen if length is None else seen & (k < length[b])

    return BlockMask.from_kv_blocks(
        either.sum(-1).int(), columns, BLOCK_SIZE=mask.BLOCK_SIZE, mask_mod=mask_mod,
        seq_lengths=mask.seq_lengths,
    )  # fmt: skip


def score_mod(given: Options, ahead: int, counts: Any) -> Any:
    """Softcap, ALiBi and how often a key counts; None where there is none of them."""
    softcap, slopes = given.softcap, given.slopes
    if not softcap and slopes is None and counts is None:
        return None

    def changed(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if softcap:
            score = softcap * torch.tanh(score / softcap)
        if slopes is not None:
            score = score - slopes[h] * (q + ahead - k).abs()
        if counts is not None:
            score = score + counts(b, h, q, k).log()
        return score

    return changed
