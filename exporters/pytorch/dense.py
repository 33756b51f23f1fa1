"""The probabilities of an attention as one dense tensor: small sizes, other devices, gradients."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import sparse_ref as sr


class Options(NamedTuple):
    """What the operator is called with beside q, k and v."""

    pattern: sr.Pattern
    scale: float
    softcap: float  # 0 is none
    sinks: Tensor | None
    q_start: Tensor | None
    key_start: Tensor | None
    key_length: Tensor | None

    def positions(self, q: Tensor, k: Tensor) -> dict[str, Any]:
        """`q_start` (b,) and `kv_positions` (b, n) as `sr.attention` takes them, where given."""
        found: dict[str, Any] = {}
        b, m, n = q.shape[0], q.shape[2], k.shape[2]
        if self.key_start is not None or self.key_length is not None:
            slots = torch.arange(n).expand(b, n)
            first = 0 if self.key_start is None else self.key_start.cpu()[:, None]
            length = n if self.key_length is None else self.key_length.cpu()[:, None]
            found["kv_positions"] = torch.where(slots < length, slots + first, -1).numpy()
        if self.q_start is not None:
            found["q_start"] = self.q_start.cpu().numpy()
        elif "kv_positions" in found:
            start = np.full(b, n - m)
            found["q_start"] = (
                start if self.key_start is None else start + self.key_start.cpu().numpy()
            )
        return found


def bound(pattern: sr.Pattern, tokens: Tensor | None) -> sr.Pattern:
    """The pattern with tokens (b, positions) in place of its `Runtime`s."""
    if tokens is None:
        return pattern
    return sr.PerBatch([_with_table(pattern, row) for row in tokens.cpu().numpy()])


def _with_table(x: Any, table: Any) -> Any:
    if isinstance(x, sr.Runtime):
        return table
    if isinstance(x, tuple):
        return tuple(_with_table(one, table) for one in x)
    if not isinstance(x, sr.Pattern):
        return x
    fields = {one.name: getattr(x, one.name) for one in dataclasses.fields(x)}  # type: ignore[arg-type]
    return type(x)(**{name: _with_table(value, table) for name, value in fields.items()})


class Probabilities(NamedTuple):
    """What the softmax gives to keys and sink, and the slope of the softcap."""

    weights: Tensor  # (b, h, m, n); 0 throughout where a query sees no key
    of_sinks: Tensor  # (b, h, m, 1)
    slope: Tensor | float


def probabilities(q: Tensor, k: Tensor, given: Options) -> Probabilities:
    """From q (b, h, m, d) and k (b, g, n, d)."""
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores, slope = (given.scale * q) @ keys.mT, 1.0
    if given.softcap:
        inner = torch.tanh(scores / given.softcap)
        scores, slope = given.softcap * inner, 1 - inner**2  # type: ignore[assignment]
    seen, bias = _seen(q, k, given)
    scores = scores.masked_fill(~seen, -torch.inf)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    sinks = scores.new_full((1,), -torch.inf) if given.sinks is None else given.sinks
    sinks = sinks.to(scores.dtype).view(1, -1, 1, 1)
    peak = torch.maximum(scores.amax(-1, keepdim=True), sinks) if k.shape[2] else sinks
    peak = peak.masked_fill(peak == -torch.inf, 0.0)
    weights, of_sinks = (scores - peak).exp_(), (sinks - peak).exp()
    total = weights.sum(-1, keepdim=True) + of_sinks
    total = total.masked_fill(total == 0, 1.0)
    return Probabilities(weights.div_(total), of_sinks / total, slope)


def _seen(q: Tensor, k: Tensor, given: Options) -> tuple[Tensor, Tensor | None]:
    """Bool (b or 1, h or 1, m, n), and the log of how often keys count if some count often."""
    pattern, positions = given.pattern, given.positions(q, k)
    shape = q.shape[2], k.shape[2], 1 if pattern.heads == 1 else q.shape[1]
    if not positions and pattern.batches is None:
        counts = _counts(pattern, *shape)[None]
    else:
        none = [None] * q.shape[0]
        slots, starts = (positions.get(name, none) for name in ("kv_positions", "q_start"))
        rows = [
            _counts_at(pattern, *shape, *at, batch)
            for batch, at in enumerate(zip(starts, slots, strict=True))
        ]
        counts = torch.stack(rows)
    counts = counts.to(q.device)
    return counts > 0, counts.to(q.dtype).log() if pattern.multiset else None


def _counts_at(
    pattern: sr.Pattern, q_len: int, kv_len: int, heads: int, start: Any, slots: Any, batch: int
) -> Tensor:
    """(heads, q_len, kv_len): how often each key counts, or whether."""
    table = pattern.counts if pattern.multiset else pattern.mask
    start = None if start is None else int(start)
    at = {"heads": heads, "q_start": start, "kv_positions": slots, "batch": batch}
    return torch.from_numpy(table(q_len, kv_len, **at))


@lru_cache(maxsize=128)
def _counts(pattern: sr.Pattern, q_len: int, kv_len: int, heads: int) -> Tensor:
    return _counts_at(pattern, q_len, kv_len, heads, None, None, 0)
