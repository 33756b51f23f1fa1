"""The Sparse Transformer of Child et al. 2019 (arXiv:1904.10509): classifier and language model.

H_0 = value + row + column                    embeddings
a   = attention(norm(H))                      block r uses pattern r mod p, equation (6)
b   = W2 f(W1 norm(H + a)),  f(x) = x sigmoid(1.702 x)
H   = H + a + b                               pre-activation residual block
logits = norm(H_N) W_out                      of every token, or of their mean
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import sparse_ref as sr

from .cache import KeyValueCache
from .stack import SparseStack


class SparseTransformer(SparseStack):
    """A Sparse Transformer that names the class of a sequence, or says how each token goes on.

    Parameters
    ----------
    vocabulary : int
    classes : int or None
        None is a language model.
    shape, patterns
        The grid of the tokens, and what the blocks see of it: see `SparseStack`.
    options
        Of `SparseStack`: blocks, dim, heads and the rest.

    Takes int64 tokens (b, n); returns logits (b, classes), from the mean over the tokens that are
    there, or (b, n, vocabulary), of the token that follows each. `W_out` starts at 0.

    Examples
    --------
    >>> local, strided = sr.Causal() & sr.SlidingWindow(2, 0), sr.Causal() & sr.Strided(3)
    >>> model = SparseTransformer(5, 7, (2, 3), [local, strided], blocks=2, dim=8, heads=2)
    >>> model(torch.zeros(4, 6, dtype=torch.int64)).shape
    torch.Size([4, 7])
    >>> model = SparseTransformer(5, None, (2, 3), [local, strided], blocks=2, dim=8, heads=2)
    >>> model(torch.zeros(4, 6, dtype=torch.int64)).shape
    torch.Size([4, 6, 5])
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int | None,
        shape: Sequence[int],
        patterns: Sequence[sr.Pattern],
        **options: Any,
    ):
        super().__init__(vocabulary, shape, patterns, **options)
        self.classes = classes
        self.classify = nn.Linear(options["dim"], vocabulary if classes is None else classes)
        nn.init.zeros_(self.classify.weight)
        nn.init.zeros_(self.classify.bias)

    def forward(self, tokens: Tensor, key_length: Tensor | None = None, **options: Any) -> Tensor:
        """(b, n) int64 -> logits; `key_length` (b,) is where each row ends, by default at n.

        `options` are those of `states`.
        """
        h = self.states(tokens, key_length=key_length, **options)
        if self.classes is not None:
            h = h.mean(1) if key_length is None else _mean(h, key_length)
        logits: Tensor = self.classify(h)
        return logits

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        count: int,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Tensor:
        """So many tokens that go on from a prompt (b, n), as (b, count); a language model's.

        Each is the likeliest, or at a `temperature` > 0 one drawn from softmax(logits /
        temperature). Every token is read once: keys and values are kept.
        """
        if self.classes is not None:
            raise ValueError(f"classes must be None to generate, got {self.classes}")
        if prompt.dim() != 2 or prompt.shape[1] < 1:
            got = tuple(prompt.shape)
            raise ValueError(f"prompt must have shape (b, n) with at least one token, got {got}")
        if count < 0 or temperature < 0:
            raise ValueError(f"count and temperature must be >= 0, got {count} and {temperature}")
        caches: list[KeyValueCache] = self.cache(len(prompt), prompt.shape[1] + count)
        said = [prompt]
        for _ in range(count):
            logits = self(said[-1], caches=caches, **options)[:, -1].float()
            if temperature > 0:
                chances = (logits / temperature).softmax(-1)
                said.append(torch.multinomial(chances, 1, generator=generator))
            else:
                said.append(logits.argmax(-1, keepdim=True))
        return torch.cat([prompt[:, :0], *said[1:]], dim=1)


def _mean(h: Tensor, length: Tensor) -> Tensor:
    """Over the first `length` tokens of each row; 0 where there are none."""
    there = torch.arange(h.shape[1], device=h.device) < length[:, None]
    return (h * there[..., None]).sum(1) / length.clamp(min=1)[:, None]
