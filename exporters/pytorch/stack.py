"""Embeddings, residual blocks and a norm: a Sparse Transformer without its last layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sparse_ref as sr

from .attention import KeyValues
from .blocks import SparseTransformerBlock
from .cache import KeyValueCache
from .factorised import Sharing, factorised
from .initialisation import Init, init_factor, init_linears
from .seen import places

AXES = "row", "column", "channel"


class SparseStack(nn.Module):
    """Tokens embedded, with an embedding for each axis of their grid, and read by blocks.

    Parameters
    ----------
    vocabulary : int
    shape : () to (rows, columns, channels)
        The grid whose raster order the tokens are in; a position's embedding is the sum of those of
        its row, column and channel. For text, (rows, stride). () is no embedding of positions.
    patterns : sequence of Pattern
    sharing : "interleaved", "merged" or "heads"
        How blocks and heads share them: see `factorised`.
    blocks, dim, heads : int
    init : "code" or "paper"
        Which reading of the paper's initialisation; the paper's own learns more slowly here.
    dropout : float
    recompute : bool
        Keep the input of each block only, and compute it again in backward.
    feed_dim, memory_pattern, attention
        Of every block: see `SparseTransformerBlock`.

    Examples
    --------
    >>> stack = SparseStack(5, (2, 3), [sr.Causal()], blocks=1, dim=8, heads=2)
    >>> stack.states(torch.zeros(4, 6, dtype=torch.int64)).shape
    torch.Size([4, 6, 8])
    """

    def __init__(
        self,
        vocabulary: int,
        shape: Sequence[int],
        patterns: Sequence[sr.Pattern],
        *,
        blocks: int,
        dim: int,
        heads: int,
        sharing: Sharing = "interleaved",
        init: Init = "code",
        dropout: float = 0.0,
        recompute: bool = False,
        **options: Any,
    ):
        super().__init__()
        factor = init_factor(init)
        if len(shape) > len(AXES) or any(size < 1 for size in shape):
            raise ValueError(f"shape must be up to three sizes >= 1, got {tuple(shape)}")
        self.heads, self.recompute, self.shape = heads, recompute, tuple(shape)
        self.value = nn.Embedding(vocabulary, dim)
        for name, size in zip(AXES, shape, strict=False):
            self.add_module(name, nn.Embedding(size, dim))
        self.blocks = nn.ModuleList(
            SparseTransformerBlock(dim, heads, pattern, dropout=dropout, **options)
            for pattern in factorised(patterns, sharing, blocks)
        )
        self.norm = nn.LayerNorm(dim)
        init_linears(self, factor, blocks)
        nn.init.normal_(self.value.weight, 0.0, factor / math.sqrt(dim))
        for axis in self.axes:
            nn.init.normal_(axis, 0.0, factor / math.sqrt(dim * len(shape)))

    @property
    def axes(self) -> list[Tensor]:
        """The embeddings of every axis, (size, dim) each."""
        return [self.get_submodule(name).weight for name in AXES[: len(self.shape)]]  # type: ignore[misc]

    @property
    def patterns(self) -> list[sr.Pattern]:
        """The pattern of every block."""
        return [block.attention.pattern for block in self.layers]

    @property
    def layers(self) -> list[SparseTransformerBlock]:
        """The blocks."""
        return [block for block in self.blocks if isinstance(block, SparseTransformerBlock)]

    def states(
        self,
        tokens: Tensor,
        *,
        memory: Tensor | Sequence[KeyValues] | None = None,
        memory_length: Tensor | None = None,
        key_length: Tensor | None = None,
        documents: Tensor | None = None,
        caches: Sequence[KeyValueCache] | None = None,
    ) -> Tensor:
        """(b, n) int64 -> (b, n, dim), normed.

        `memory` is one tensor, or what each block's `memory` remembers of it; the rest is
        `SparseAttention`'s, with a cache for each block.
        """
        h = self.embedded(tokens, documents, caches)
        for i, block in enumerate(self.blocks):
            given: dict[str, Any] = {"key_length": key_length, "documents": documents}
            if memory is not None:
                given["memory"] = memory if isinstance(memory, Tensor) else memory[i]
                given["memory_length"] = memory_length
            if caches is not None:
                given["cache"] = caches[i]
            if self.recompute and torch.is_grad_enabled():
                h = checkpoint(block, h, use_reentrant=False, **given)
            else:
                h = block(h, **given)
        normed: Tensor = self.norm(h)
        return normed

    def embedded(
        self, tokens: Tensor, documents: Tensor | None, caches: Sequence[KeyValueCache] | None
    ) -> Tensor:
        """(b, n) int64 -> (b, n, dim): what a token is, and where it is."""
        if tokens.dim() != 2 or tokens.is_floating_point():
            got = f"{tokens.dtype} {tuple(tokens.shape)}"
            raise ValueError(f"tokens must be an int64 tensor (b, n), got {got}")
        values: Tensor = self.value(tokens)
        if not self.shape:
            return values
        grid = self.axes[0]
        for axis in self.axes[1:]:
            grid = grid[..., None, :] + axis
        grid = grid.flatten(0, -2)
        n = tokens.shape[1]
        if documents is not None:
            rows = documents.reshape(-1, documents.shape[-1])
            return values + grid[torch.stack([places(row) for row in rows])]
        last = n if caches is None else n + int(caches[0].length.max())
        if last > len(grid):
            raise ValueError(f"tokens must be at most {len(grid)}, got {last}")
        if caches is None:
            return values + grid[:n]
        return values + grid[caches[0].length[:, None] + torch.arange(n, device=tokens.device)]

    def cache(self, batch: int, capacity: int) -> list[KeyValueCache]:
        """An empty cache for every block."""
        like = self.value.weight
        return [
            KeyValueCache(
                batch, one.kv_heads, capacity, one.head_dim, one.value_dim,
                dtype=like.dtype, device=like.device,
            )
            for one in (block.attention for block in self.layers)
        ]  # fmt: skip
