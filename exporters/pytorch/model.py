"""The Sparse Transformer of Child et al. 2019 (arXiv:1904.10509), as a classifier of sequences.

H_0 = value + row + column                    embeddings
a   = attention(norm(H))                      block r uses pattern r mod p, equation (6)
b   = W2 f(W1 norm(H + a)),  f(x) = x sigmoid(1.702 x)
H   = H + a + b                               pre-activation residual block
logits = norm(H_N) averaged over tokens, times W_out
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

import sparse_ref as sr

from .attention import SparseAttention

# Weights start with standard deviation factor / sqrt(n_in). The paper prints 0.125 for the factor;
# in the authors' later code (openai/distribution_augmentation) 0.125 is that of the variance.
INITS = {"code": math.sqrt(0.125), "paper": 0.125}


class ResidualBlock(nn.Module):
    """a(H) + b(H), added to H: attention, and a feed-forward net that has already seen it."""

    def __init__(self, dim: int, heads: int, pattern: sr.Pattern):
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SparseAttention(dim, heads, pattern)
        self.feed_norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 4 * dim)
        self.contract = nn.Linear(4 * dim, dim)

    def forward(self, h: Tensor) -> Tensor:
        """(b, n, dim) -> (b, n, dim)."""
        h = h + self.attention(self.attention_norm(h))
        wide = self.expand(self.feed_norm(h))
        narrow: Tensor = self.contract(wide * torch.sigmoid(1.702 * wide))
        return h + narrow


class SparseTransformer(nn.Module):
    """A Sparse Transformer that reads a grid of symbols in raster order and names its class.

    Parameters
    ----------
    vocabulary, classes : int
    shape : (rows, columns)
        The grid; sequences have rows * columns tokens, each with a row and a column embedding.
    patterns : sequence of Pattern
        Block r uses `patterns[r % len(patterns)]` in all its heads ("interleaved").
    blocks, dim, heads : int
    init : "code" or "paper"
        Which reading of the paper's initialisation; the paper's own learns more slowly here.

    Takes int64 tokens (b, rows * columns), returns logits (b, classes).

    Examples
    --------
    >>> local, strided = sr.Causal() & sr.SlidingWindow(2, 0), sr.Causal() & sr.Strided(3)
    >>> model = SparseTransformer(5, 7, (2, 3), [local, strided], blocks=2, dim=8, heads=2)
    >>> model(torch.zeros(4, 6, dtype=torch.int64)).shape
    torch.Size([4, 7])
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        shape: tuple[int, int],
        patterns: Sequence[sr.Pattern],
        *,
        blocks: int,
        dim: int,
        heads: int,
        init: Literal["code", "paper"] = "code",
    ):
        super().__init__()
        if init not in INITS:
            raise ValueError(f"init must be 'code' or 'paper', got {init!r}")
        self.heads = heads
        rows, columns = shape
        self.value = nn.Embedding(vocabulary, dim)
        self.row = nn.Embedding(rows, dim)
        self.column = nn.Embedding(columns, dim)
        self.blocks = nn.ModuleList(
            ResidualBlock(dim, heads, patterns[r % len(patterns)]) for r in range(blocks)
        )
        self.norm = nn.LayerNorm(dim)
        self.classify = nn.Linear(dim, classes)
        self.initialise(INITS[init])

    @property
    def patterns(self) -> list[sr.Pattern]:
        """The pattern of every block."""
        return [module.pattern for module in self.modules() if isinstance(module, SparseAttention)]

    def initialise(self, factor: float) -> None:
        """Section 6 of the paper: what ends a residual is scaled by 1 / sqrt(2 N), logits are 0."""
        dim = self.value.embedding_dim
        nn.init.normal_(self.value.weight, 0.0, factor / math.sqrt(dim))
        for positions in (self.row, self.column):
            nn.init.normal_(positions.weight, 0.0, factor / math.sqrt(2 * dim))
        for name, linear in self.named_modules():
            if isinstance(linear, nn.Linear):
                ends = name.endswith(("project", "contract"))
                scale = 1 / math.sqrt(2 * len(self.blocks)) if ends else 1.0
                nn.init.normal_(linear.weight, 0.0, factor * scale / math.sqrt(linear.in_features))
                nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.classify.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, rows * columns) int64 -> (b, classes)."""
        grid = self.row.weight[:, None] + self.column.weight
        h = self.value(tokens) + grid.flatten(0, 1)
        for block in self.blocks:
            h = block(h)
        logits: Tensor = self.classify(self.norm(h).mean(1))
        return logits
