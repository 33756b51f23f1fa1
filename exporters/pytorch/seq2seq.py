"""An encoder-decoder of sparse attention: translation, summarisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import sparse_ref as sr

from .attention import KeyValues
from .model import SparseTransformer
from .stack import SparseStack


class SparseEncoderDecoder(nn.Module):
    """One stack reads a source, another writes a target and attends to what the first has read.

    Parameters
    ----------
    vocabularies : (source, target)
    shapes : (source, target)
        The grids of tokens: see `SparseStack`.
    patterns : (source, target)
        A sequence of patterns each. The target's should be causal.
    memory_pattern : Pattern, default Full()
        What a target's token sees of the source; positions of both count from 0.
    options
        Of both stacks: blocks, dim, heads and the rest.

    Examples
    --------
    >>> local = sr.SlidingWindow(2, 2)
    >>> model = SparseEncoderDecoder(
    ...     (11, 13), ((), ()), ([local], [sr.Causal()]), blocks=1, dim=8, heads=2
    ... )
    >>> source, target = torch.zeros(3, 7, dtype=torch.int64), torch.zeros(3, 5, dtype=torch.int64)
    >>> model(source, target).shape
    torch.Size([3, 5, 13])
    """

    def __init__(
        self,
        vocabularies: tuple[int, int],
        shapes: tuple[Sequence[int], Sequence[int]],
        patterns: tuple[Sequence[sr.Pattern], Sequence[sr.Pattern]],
        *,
        memory_pattern: sr.Pattern | None = None,
        **options: Any,
    ):
        super().__init__()
        source, target = zip(vocabularies, shapes, patterns, strict=True)
        self.encoder = SparseStack(*source, **options)
        vocabulary, shape, seen = target
        self.decoder = SparseTransformer(
            vocabulary, None, shape, seen, **options,
            memory_pattern=sr.Full() if memory_pattern is None else memory_pattern,
        )  # fmt: skip

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        source_length: Tensor | None = None,
        target_length: Tensor | None = None,
    ) -> Tensor:
        """(b, n) and (b, m) int64 -> logits (b, m, vocabulary) of what follows each target token.

        Rows end at `source_length` and `target_length` (b,), by default at n and m.
        """
        memory = self.encoder.states(source, key_length=source_length)
        logits: Tensor = self.decoder(
            target, target_length, memory=memory, memory_length=source_length
        )
        return logits

    @torch.no_grad()
    def generate(
        self,
        source: Tensor,
        start: Tensor,
        count: int,
        *,
        source_length: Tensor | None = None,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """So many target tokens behind `start` (b, m), as (b, count): see `SparseTransformer`."""
        memory = self.encoder.states(source, key_length=source_length)
        remembered: list[KeyValues] = [
            block.memory.remember(memory) for block in self.decoder.layers
        ]
        return self.decoder.generate(
            start, count, temperature=temperature, generator=generator, memory=remembered,
            memory_length=source_length,
        )  # fmt: skip
