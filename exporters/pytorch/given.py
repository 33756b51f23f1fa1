"""What the operator is called with beside q, k and v, and positions as the kernels take them."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import sparse_ref as sr


class Options(NamedTuple):
    """A pattern without `Runtime`s, and how scores are made."""

    pattern: sr.Pattern
    scale: float
    softcap: float  # 0 is none
    sinks: Tensor | None  # (h,)
    q_start: Tensor | None  # (b,)
    key_start: Tensor | None
    key_length: Tensor | None
    slopes: Tensor | None  # (h,) of ALiBi

    @classmethod
    def of(
        cls, pattern: sr.Pattern, scale: float, softcap: float, *tensors: Tensor | None
    ) -> Options:
        """From what the operator takes: sinks, q_start, key_start, key_length, tokens, slopes."""
        sinks, q_start, key_start, key_length, tokens, slopes = tensors
        seen = bound(pattern, tokens)
        return cls(seen, scale, softcap, sinks, q_start, key_start, key_length, slopes)

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
