"""Keys and values of the tokens that a decoder has already read."""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """Room for the keys and values of `capacity` tokens in every batch row of one attention.

    Rows may be of different lengths: each is filled behind its own end. For inference, as what is
    stored carries no gradient.

    Parameters
    ----------
    batch, kv_heads, capacity, head_dim : int
    value_dim : int, default head_dim
    dtype, device : optional
        Of the module's keys and values.

    Examples
    --------
    >>> cache = KeyValueCache(1, 2, 5, 3)
    >>> keys, values = cache.append(torch.ones(1, 2, 4, 3), torch.ones(1, 2, 4, 3))
    >>> keys.shape, cache.length
    (torch.Size([1, 2, 4, 3]), tensor([4]))
    """

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        value_dim: int | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        value_dim = head_dim if value_dim is None else value_dim
        shape = batch, kv_heads, capacity
        self.keys = torch.zeros(*shape, head_dim, dtype=dtype, device=device)
        self.values = torch.zeros(*shape, value_dim, dtype=dtype, device=device)
        self.length = torch.zeros(batch, dtype=torch.int64, device=device)

    @torch.no_grad()
    def append(
        self, keys: Tensor, values: Tensor, count: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """All keys and values up to the longest row's end, with (b, g, m, ...) put behind each row.

        `count` (b,) says how many of the m are there in each row, by default all; what a row holds
        past its `length` is not valid.
        """
        m, capacity = keys.shape[2], self.keys.shape[2]
        for name, given, kept in ("keys", keys, self.keys), ("values", values, self.values):
            b, g, _, d = kept.shape
            if given.shape != (b, g, m, d):
                got = tuple(given.shape)
                raise ValueError(
                    f"{name} must have the cache's shape ({b}, {g}, m, {d}), got {got}"
                )
        end = int(self.length.max()) + m
        if end > capacity:
            raise ValueError(f"the cache must hold {end} tokens, got a capacity of {capacity}")
        rows = torch.arange(len(self.length), device=self.length.device)[:, None]
        slots = self.length[:, None] + torch.arange(m, device=self.length.device)
        self.keys[rows, :, slots] = keys.transpose(1, 2).to(self.keys.dtype)
        self.values[rows, :, slots] = values.transpose(1, 2).to(self.values.dtype)
        self.length += m if count is None else count
        return self.keys[:, :, :end], self.values[:, :, :end]
