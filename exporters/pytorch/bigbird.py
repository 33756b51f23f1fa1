"""BigBird (Zaheer et al. 2020, arXiv:2007.14062) in blocks, with either of its random plans.

In training transformers draws random blocks for every head and layer. In evaluation it draws none,
but its lists then hold block 0 in their place, which therefore counts again, once for each random
block: a multiset, that published checkpoints are evaluated with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sparse_ref as sr

from .encoder import Encoder, heads
from .op import sparse_attention

LAST = sr.Runtime("tokens")  # the tokens of the last block, wherever a run ends


def evaluation_pattern(block_size: int, random: int) -> sr.Pattern:
    """Neighbours, first and last block; block 0 counts `random` more times, if not for these two.

    >>> pattern = evaluation_pattern(64, 3)
    >>> pattern.multiset, len(pattern.patterns)
    (True, 4)
    """
    near = sr.Blocked(sr.SlidingWindow(1, 1) | sr.Global([0]), block_size) | sr.Global(LAST)
    again = sr.Keys(range(block_size)) - sr.Rows(range(block_size)) - sr.Rows(LAST)
    return sr.Multi([near, *[again] * random]) if random else near


def drawn_pattern(block_size: int, plan: Any) -> sr.Pattern:
    """The pattern of random blocks that were drawn: plan (h, blocks - 2, random), as transformers'.

    Row i of a head is of block i + 1; the first and the last block are global and draw none.
    """
    plan = np.asarray(plan)
    blocks = plan.shape[1] + 2
    chosen = np.zeros((len(plan), blocks, blocks), dtype=bool)
    np.put_along_axis(chosen[:, 1:-1], plan.astype(np.int64), values=True, axis=2)
    near = sr.SlidingWindow(1, 1) | sr.Global([0, blocks - 1])
    return sr.PerHead(
        [sr.Blocked(near | sr.BlockPattern(one, (1, 1)), block_size) for one in chosen]
    )


class BigBirdAttention(nn.Module):
    """Self-attention of one layer; the parameters are `BigBirdBlockSparseAttention`'s."""

    def __init__(self, config: Any, plan: Any | None):
        super().__init__()
        self.number, self.block_size = config.num_attention_heads, config.block_size
        dim, self.random = config.hidden_size, config.num_random_blocks
        self.blocks = None if plan is None else np.shape(plan)[1] + 2
        self.pattern = (
            evaluation_pattern(self.block_size, self.random)
            if plan is None
            else drawn_pattern(self.block_size, plan)
        )
        for name in ("query", "key", "value"):
            self.add_module(name, nn.Linear(dim, dim, bias=config.use_bias))

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        """(b, n, dim), how many tokens are there (b,) -> (b, n, dim)."""
        n, size = x.shape[1], self.block_size
        places = torch.arange(n, device=x.device)
        q, k, v = (heads(getattr(self, name)(x), self.number) for name in ("query", "key", "value"))
        if n <= (5 + 2 * self.random) * size:  # so does transformers
            out = sparse_attention(q, k, v, sr.Full(), key_length=length)
            return out.transpose(1, 2).flatten(2)
        if self.blocks is None:
            last = (places // size == (n - 1) // size).expand(x.shape[0], n)
            out = sparse_attention(q, k, v, self.pattern, key_length=length, tokens=last)
        else:
            if -(-n // size) != self.blocks:
                raise ValueError(f"tokens must fill {self.blocks} blocks of {size}, got {n}")
            out = sparse_attention(q, k, v, self.pattern, key_length=length)
        there = places < length[:, None]
        return out.transpose(1, 2).flatten(2) * there[..., None]  # padded queries answer 0


class BigBird(Encoder):
    """The encoder `BigBirdModel` of transformers, block-sparse, without its pooler.

    Parameters
    ----------
    config : BigBirdConfig
        Dropout is not applied.
    plans : sequence of int arrays (heads, blocks - 2, random), optional
        The random blocks of every layer; the model then takes that many blocks only. By default
        what transformers does in evaluation.

    Takes int64 tokens (b, n) and a mask (b, n) that is 1 up to the end of each row's text; returns
    (b, n, dim). Up to (5 + 2 * num_random_blocks) * block_size tokens attend to all. Exported with
    a longer example and lengths free, it is a file for all lengths above that.

    Examples
    --------
    >>> from transformers import BigBirdConfig, BigBirdModel
    >>> config = BigBirdConfig(
    ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_attention_heads=2, block_size=2,
    ...     num_hidden_layers=1, num_random_blocks=1, max_position_embeddings=40,
    ... )
    >>> model = BigBird.of(BigBirdModel(config))
    >>> model(torch.zeros(1, 19, dtype=torch.int64), torch.ones(1, 19)).shape
    torch.Size([1, 19, 8])
    """

    def __init__(self, config: Any, plans: Sequence[Any] | None = None):
        if plans is not None and len(plans) != config.num_hidden_layers:
            layers = config.num_hidden_layers
            raise ValueError(f"plans must be one for each of {layers} layers, got {len(plans)}")
        super().__init__(
            config,
            lambda i: BigBirdAttention(config, None if plans is None else plans[i]),
            None,
        )

    @classmethod
    def of(cls, model: Any, plans: Sequence[Any] | None = None) -> BigBird:
        """With the configuration and the weights of a `BigBirdModel`."""
        made = cls(model.config, plans).to(model.dtype)
        made.load(model)
        return made.eval()

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """(b, n) int64 and a mask (b, n) -> (b, n, dim)."""
        return self.encoded(tokens, length=(attention_mask != 0).sum(1))
