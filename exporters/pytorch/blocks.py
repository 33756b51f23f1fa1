"""The residual block of the Sparse Transformer (Child et al. 2019, arXiv:1904.10509)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import sparse_ref as sr

from .attention import KeyValues, SparseAttention


def gelu(x: Tensor) -> Tensor:
    """The paper's x * sigmoid(1.702 x), of which backward needs one tensor, not two.

    >>> import torch
    >>> gelu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.1542,  0.0000,  0.8458])
    """
    return nn.functional.silu(1.702 * x) / 1.702


class SparseTransformerBlock(nn.Module):
    """a(H) + b(H), added to H: attention, and a feed-forward net that has already seen it.

    a(H) = dropout(attention(norm(H))), b(H) = dropout(W2 gelu(W1 norm(H + a(H)))). With a
    `memory_pattern` attention to a memory stands between the two, as in an encoder-decoder.

    Parameters
    ----------
    dim, heads : int
    pattern : Pattern
    feed_dim : int, default 4 * dim
    dropout : float
        At the end of each addition, and nowhere else.
    memory_pattern : Pattern, optional
        Which tokens of the memory each token sees.
    attention
        Passed on to `SparseAttention`: kv_heads, head_dim, sinks, alibi, rotary.

    Examples
    --------
    >>> import torch
    >>> block = SparseTransformerBlock(8, 2, sr.Causal() & sr.Strided(3))
    >>> block(torch.zeros(1, 5, 8)).shape
    torch.Size([1, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        pattern: sr.Pattern,
        *,
        feed_dim: int | None = None,
        dropout: float = 0.0,
        memory_pattern: sr.Pattern | None = None,
        **attention: Any,
    ):
        super().__init__()
        feed_dim = 4 * dim if feed_dim is None else feed_dim
        if feed_dim < 1:
            raise ValueError(f"feed_dim must be >= 1, got {feed_dim}")
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SparseAttention(dim, heads, pattern, dropout=dropout, **attention)
        if memory_pattern is not None:
            near = {name: x for name, x in attention.items() if name not in {"alibi", "rotary"}}
            self.memory_norm = nn.LayerNorm(dim)
            self.memory = SparseAttention(dim, heads, memory_pattern, dropout=dropout, **near)
        self.feed_norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, feed_dim)
        self.contract = nn.Linear(feed_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        h: Tensor,
        memory: Tensor | KeyValues | None = None,
        memory_length: Tensor | None = None,
        **seen: Any,
    ) -> Tensor:
        """(b, n, dim) -> (b, n, dim); `seen` goes to the attention of h to itself."""
        h = h + self.attention(self.attention_norm(h), **seen)
        if memory is not None:
            h = h + self.memory(self.memory_norm(h), memory, key_length=memory_length)
        narrow: Tensor = self.dropout(self.contract(gelu(self.expand(self.feed_norm(h)))))
        return h + narrow
