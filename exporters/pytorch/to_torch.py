"""Attention over a pattern as a module without weights: q, k and v in, out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import sparse_ref as sr

from .op import sparse_attention, spelled


class PatternModule(nn.Module):
    """What `to_torch` returns; `sparse_attention` as a module."""

    def __init__(self, pattern: sr.Pattern, scale: float | None, softcap: float | None):
        super().__init__()
        spelled(pattern)  # refuse at once what the operator cannot take
        self.pattern, self.scale, self.softcap = pattern, scale, softcap

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """(b, h, m, d), (b, g, n, d), (b, g, n, e) -> (b, h, m, e); options of sparse_attention."""
        return sparse_attention(
            q, k, v, self.pattern, scale=self.scale, softcap=self.softcap, **options
        )

    def extra_repr(self) -> str:
        return f"pattern={self.pattern!r}, scale={self.scale}, softcap={self.softcap}"


def to_torch(
    pattern: sr.Pattern, *, scale: float | None = None, softcap: float | None = None
) -> nn.Module:
    """A module of one attention over a pattern.

    Parameters
    ----------
    pattern : Pattern
        The same for every batch row.
    scale : float, default head_dim ** -0.5
    softcap : float > 0, optional

    Returns
    -------
    nn.Module that takes q (b, h, m, d), k (b, g, n, d), v (b, g, n, e) and, by name, what
    `sparse_attention` takes: sink_logits, key_length, ... It trains, compiles and exports.

    Examples
    --------
    >>> import torch
    >>> module = to_torch(sr.Causal())
    >>> q = torch.zeros(1, 2, 3, 4)
    >>> module(q, q, torch.zeros(1, 2, 3, 5)).shape
    torch.Size([1, 2, 3, 5])
    """
    return PatternModule(pattern, scale, softcap)
