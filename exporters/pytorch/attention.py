"""Multi-head self-attention whose heads see the keys of a pattern."""

from __future__ import annotations

from torch import Tensor, nn

import sparse_ref as sr

from .op import sparse_attention, spelled


class SparseAttention(nn.Module):
    """Multi-head self-attention over the keys that a pattern allows.

    Parameters
    ----------
    dim : int
        Size of a token's vector, a multiple of `heads`.
    heads : int
    pattern : Pattern
        Which keys each query sees; head h uses `pattern.at(h)`.
    kv_heads : int, default heads
        Heads of key and value, shared by groups of query heads (arXiv:2305.13245); divides `heads`.

    `qkv` holds the three projections, query heads first; `project` is W_p of Child et al.
    (arXiv:1904.10509). Takes and returns (b, n, dim).

    Examples
    --------
    >>> import torch
    >>> layer = SparseAttention(12, 4, sr.Causal() & sr.SlidingWindow(2, 0), kv_heads=2)
    >>> layer(torch.zeros(1, 5, 12)).shape
    torch.Size([1, 5, 12])
    """

    def __init__(self, dim: int, heads: int, pattern: sr.Pattern, kv_heads: int | None = None):
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if heads < 1 or dim < 1 or dim % heads:
            raise ValueError(f"dim must be a positive multiple of heads = {heads}, got {dim}")
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"kv_heads must divide heads = {heads}, got {kv_heads}")
        spelled(pattern)  # refuse at once what the operator cannot take
        self.pattern, self.heads, self.kv_heads = pattern, heads, kv_heads
        self.head_dim = dim // heads
        self.qkv = nn.Linear(dim, (heads + 2 * kv_heads) * self.head_dim)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, dim) -> (b, n, dim)."""
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        out = sparse_attention(q, k, v, self.pattern)
        projected: Tensor = self.project(out.transpose(1, 2).flatten(2))
        return projected

    def extra_repr(self) -> str:
        return f"heads={self.heads}, kv_heads={self.kv_heads}, pattern={self.pattern!r}"
