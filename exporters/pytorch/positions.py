"""What position does to scores: rotary embeddings, and the slopes of ALiBi."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Rotary(nn.Module):
    """Queries and keys turned by angles that grow with position (Su et al., arXiv:2104.09864).

    The pairs that turn together are halves of the vector, as in GPT-NeoX and Llama. Angles are
    taken in float32. Any callable of the same arguments may stand in its place.

    Parameters
    ----------
    head_dim : int
        Even.
    base : float
        The slowest pair turns once in about 2 pi `base` tokens.

    Examples
    --------
    >>> turn = Rotary(4)
    >>> x = torch.ones(1, 1, 2, 4)
    >>> (turn(x, torch.tensor([[0, 5]])) * turn(x, torch.tensor([[3, 8]]))).sum(-1)
    tensor([[[0.0191, 0.0191]]])
    """

    frequencies: Tensor

    def __init__(self, head_dim: int, base: float = 10_000.0):
        super().__init__()
        if head_dim < 2 or head_dim % 2:
            raise ValueError(f"head_dim must be even and >= 2, got {head_dim}")
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.register_buffer("frequencies", base**-exponents, persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """(b, h, n, head_dim) and int64 positions (b or 1, n) -> (b, h, n, head_dim)."""
        angles = positions[:, None, :, None] * self.frequencies.float()
        cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cosine - b * sine, b * cosine + a * sine], dim=-1)


def alibi_slopes(heads: int) -> Tensor:
    """The slope of every head, (heads,) float32 (Press et al., arXiv:2108.12409).

    Powers of 2 ** (-8 / heads); where heads is no power of two, those of the power below it, then
    every other one of the power above.

    >>> alibi_slopes(4)
    tensor([0.2500, 0.0625, 0.0156, 0.0039])
    """
    if heads < 1:
        raise ValueError(f"heads must be >= 1, got {heads}")
    below = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (i + 1) / below) for i in range(below)]
    slopes += [2.0 ** (-4 * (2 * i + 1) / below) for i in range(heads - below)]
    return torch.tensor(slopes)
