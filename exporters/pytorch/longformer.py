"""Longformer (Beltagy et al. 2020, arXiv:2004.05150), with its global tokens as an input.

Its attention is two, over queries of two kinds. A local query sees a window and the global tokens,
through one set of projections; a global query sees everything, through another set. As the kinds
exclude each other, each attention answers 0 where it has no say, and their sum is the whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import sparse_ref as sr

from .encoder import Encoder
from .encoder import heads as of_heads
from .op import sparse_attention

GLOBAL = sr.Runtime("tokens")


class LongformerAttention(nn.Module):
    """Self-attention to a window and to global tokens, with projections of their own.

    Parameters
    ----------
    dim, heads : int
    window : int
        Even: half of it on each side, besides the token itself.

    The weights have the names and shapes of `LongformerSelfAttention` in transformers.

    Examples
    --------
    >>> attention = LongformerAttention(8, 2, window=4)
    >>> attention(torch.zeros(3, 7, 8), torch.arange(7).expand(3, 7) == 0).shape
    torch.Size([3, 7, 8])
    """

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__()
        if heads < 1 or dim < 1 or dim % heads:
            raise ValueError(f"dim must be a positive multiple of heads = {heads}, got {dim}")
        self.heads = heads
        near = sr.recipes.longformer(window)
        self.local = (near | sr.Keys(GLOBAL)) - sr.Rows(GLOBAL)
        for name in ("query", "key", "value"):
            self.add_module(name, nn.Linear(dim, dim))
            self.add_module(f"{name}_global", nn.Linear(dim, dim))

    def forward(
        self, x: Tensor, tokens: Tensor | None = None, length: Tensor | None = None
    ) -> Tensor:
        """(b, n, dim) -> (b, n, dim).

        Parameters
        ----------
        x : (b, n, dim) tensor
        tokens : (b, n) bool tensor, optional
            Which are global; default none.
        length : (b,) int64 tensor, optional
            How many tokens there are in each row, default n; those behind answer 0.
        """
        b, n = x.shape[:2]
        if tokens is None:
            tokens = torch.zeros(b, n, dtype=torch.bool, device=x.device)
        if length is None:
            length = torch.full((b,), n, device=x.device)
        if tokens.shape != (b, n) or length.shape != (b,):
            got = f"{tuple(tokens.shape)} and {tuple(length.shape)}"
            raise ValueError(f"tokens and length must have shapes ({b}, {n}), ({b},), got {got}")

        def attended(kind: str, pattern: sr.Pattern) -> Tensor:
            q, k, v = (
                of_heads(getattr(self, name + kind)(x), self.heads)
                for name in ("query", "key", "value")
            )
            return sparse_attention(q, k, v, pattern, key_length=length, tokens=tokens)

        out = attended("", self.local) + attended("_global", sr.Rows(GLOBAL))
        there = torch.arange(x.shape[1], device=x.device) < length[:, None]
        return out.transpose(1, 2).flatten(2) * there[..., None]  # padded queries answer 0


class Longformer(Encoder):
    """The encoder `LongformerModel` of transformers, without its pooler, on our operator.

    Parameters
    ----------
    config : LongformerConfig
        Dropout is not applied.

    Takes int64 tokens (b, n), a mask (b, n) that is 1 up to the end of each row's text and 0 behind
    it, and a mask (b, n) that is 1 at global tokens; returns (b, n, dim). Any n will do. Exported
    by `exporters.to_onnx` with all lengths free it is one file for any of them.

    Examples
    --------
    >>> from transformers import LongformerConfig, LongformerModel
    >>> config = LongformerConfig(
    ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_attention_heads=2,
    ...     num_hidden_layers=1, attention_window=[4], max_position_embeddings=20, pad_token_id=1,
    ... )
    >>> model = Longformer.of(LongformerModel(config))
    >>> there, chosen = torch.ones(1, 7), torch.eye(7)[:1]
    >>> model(torch.zeros(1, 7, dtype=torch.int64), there, chosen).shape
    torch.Size([1, 7, 8])
    """

    def __init__(self, config: Any):
        windows = config.attention_window
        if isinstance(windows, int):
            windows = [windows] * config.num_hidden_layers
        dim, number = config.hidden_size, config.num_attention_heads
        super().__init__(
            config, lambda i: LongformerAttention(dim, number, windows[i]), config.pad_token_id
        )

    @classmethod
    def of(cls, model: Any) -> Longformer:
        """With the configuration and the weights of a `LongformerModel`."""
        made = cls(model.config).to(model.dtype)
        made.load(model)
        return made.eval()

    def forward(
        self, tokens: Tensor, attention_mask: Tensor, global_attention_mask: Tensor
    ) -> Tensor:
        """(b, n) int64 and two masks (b, n) -> (b, n, dim)."""
        there = attention_mask != 0
        chosen = (global_attention_mask != 0) & there
        return self.encoded(tokens, tokens=chosen, length=there.sum(1))
