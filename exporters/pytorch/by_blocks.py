"""The operator in plain torch, on any device: over the lists of a BlockMask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

import sparse_ref as sr

from .flex import blocked
from .gather import Scores, gathered_attention
from .gather_gradients import gathered_gradients
from .given import Options

SIDE = 64  # of a block in plain torch


def forward(
    q: Tensor, k: Tensor, v: Tensor, given: Options, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Out (b, h, m, e) in q's type, and lse (b, h, m); autograd sees through it."""
    x, y, z = wide(q, k, v)
    parts = [
        gathered_attention(x[rows], y[rows], z[rows], mask, how, given.sinks, dropout)
        for rows, mask, how in runs(q, k, given)
    ]
    out, lse = (torch.cat(side) for side in zip(*parts, strict=True))
    return out.to(q.dtype), lse


def backward(
    dout: Tensor,
    dlse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    given: Options,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and sinks."""
    x, y, z, above, before = wide(q, k, v, dout, out)
    parts = [
        gathered_gradients(
            above[rows], None if dlse is None else dlse[rows], before[rows], lse[rows],
            x[rows], y[rows], z[rows], mask, how, given.sinks,
        )
        for rows, mask, how in runs(q, k, given)
    ]  # fmt: skip
    dq, dk, dv = (torch.cat(side) for side in list(zip(*parts, strict=True))[:3])
    dsinks = torch.stack([part[3] for part in parts]).sum(0)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dsinks


def wide(*tensors: Tensor) -> list[Tensor]:
    """In the one type that is computed in: float64 if one of them is, else float32."""
    dtypes = [x.dtype for x in tensors]
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    return [x.to(dtype) for x in tensors]


def runs(q: Tensor, k: Tensor, given: Options) -> Iterator[tuple[slice, BlockMask, Scores]]:
    """Batch rows with one layout: all of them, or, where patterns or positions differ, one each."""
    b, h, m, n = q.shape[0], q.shape[1], q.shape[2], k.shape[2]
    alike = given.pattern.batches is None and given.q_start is None and given.key_start is None
    for i in range(1 if alike else b):
        rows = slice(None) if alike else slice(i, i + 1)
        first = 0 if given.key_start is None else int(given.key_start[i])
        ahead = n - m if given.q_start is None else int(given.q_start[i]) - first
        one = given.pattern if given.pattern.batches is None else given.pattern.for_batch(i)
        mask = kept(Moved(one, first) if first else one, m, n, h, ahead, SIDE, q.device)
        length = None if given.key_length is None else given.key_length[rows]
        yield rows, mask, Scores(given.scale, given.softcap, given.slopes, ahead, length)


@lru_cache(maxsize=64)
def kept(pattern: sr.Pattern, *sizes: Any) -> BlockMask:
    """`blocked`, remembered."""
    return blocked(pattern, *sizes)


@dataclass(frozen=True)
class Moved(sr.Pattern):
    """A pattern on positions counted from `by`; what comes before position 0 is nothing."""

    pattern: sr.Pattern
    by: int

    def __call__(self, q: Any, k: Any) -> Any:
        return self.pattern(q + self.by, k + self.by) & (k >= -self.by)

    @property
    def covers(self) -> int | None:
        inner = self.pattern.covers
        return None if inner is None else inner - self.by

    @property
    def parts(self) -> tuple[sr.Pattern, ...]:
        return tuple(Moved(part, self.by) for part in self.pattern.parts)
