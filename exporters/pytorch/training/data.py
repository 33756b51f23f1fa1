"""Which examples a step learns from.

A step's batch depends on the seed and the step alone, so that a run can be taken up anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def mixed(seed: int, number: int) -> int:
    """A seed for each number, by splitmix64; 32 bits, as torch's generator of a CPU reads no more.

    >>> mixed(0, 1), mixed(1, 0)
    (1853398634, 1175010553)
    """
    x = (seed * 2**32 + number + 1) * 0x9E3779B97F4A7C15 % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ x >> shift) * factor % 2**64
    return (x ^ x >> 31) >> 32


class Shuffled:
    """Whole batches of `count` examples, in a new order each time around.

    Parameters
    ----------
    count, batch, seed : int
        Where there are fewer examples than a batch takes, all of them are one.

    Examples
    --------
    >>> order = Shuffled(7, 3, seed=0)
    >>> sorted(torch.cat([order(0), order(1)]).unique().tolist()) == sorted(order.epoch(0)[:6])
    True
    """

    def __init__(self, count: int, batch: int, seed: int):
        if count < 1 or batch < 1:
            raise ValueError(f"count and batch must be >= 1, got {count} and {batch}")
        self.count, self.batch, self.seed = count, min(batch, count), seed

    def __call__(self, step: int) -> Tensor:
        """The indices (batch,) of a step, counted from 0."""
        around, at = divmod(step, self.count // self.batch)
        return torch.tensor(self.epoch(around)[at * self.batch : (at + 1) * self.batch])

    def epoch(self, number: int) -> list[int]:
        """All indices in the order of a time around."""
        generator = torch.Generator().manual_seed(mixed(self.seed, number))
        order: list[int] = torch.randperm(self.count, generator=generator).tolist()
        return order


class Windows:
    """Pieces of one long text, to learn what follows each token.

    Parameters
    ----------
    text : int64 tensor (count,)
    length : int
        Of a piece.
    batch : int
        Pieces in a step, from anywhere.

    Examples
    --------
    >>> windows = Windows(torch.arange(10), 4, batch=2)
    >>> read, follows = windows(0)
    >>> read.shape, bool((follows == read + 1).all())
    (torch.Size([2, 4]), True)
    """

    def __init__(self, text: Tensor, length: int, batch: int):
        if len(text) <= length:
            raise ValueError(f"text must be longer than length = {length}, got {len(text)}")
        self.text, self.length, self.batch = text, length, batch

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Tokens (batch, length) and what follows them; drawn from torch's generator as it is."""
        starts = torch.randint(len(self.text) - self.length, (self.batch, 1))
        pieces = self.text[starts + torch.arange(self.length + 1)]
        return pieces[:, :-1], pieces[:, 1:]

    def pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The text from its start, a batch at a time, without the rest that fills no piece."""
        n = self.length
        starts = torch.arange(0, len(self.text) - n, n)
        for some in torch.split(starts, self.batch):
            pieces = self.text[some[:, None] + torch.arange(n + 1)]
            yield pieces[:, :-1], pieces[:, 1:]


def held_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to learn from and indices to be judged on; of every class about that share.

    A class of one example is learnt from only.

    >>> learnt, held = held_out(torch.tensor([0] * 10 + [1] * 5), 0.2, seed=0)
    >>> len(learnt), sorted((held >= 10).tolist())
    (12, [False, False, True])
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
    generator = torch.Generator().manual_seed(seed)
    kept, held = [], []
    for one in torch.unique(labels):
        members = (labels == one).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        held.append(members[:count])
        kept.append(members[count:])
    return torch.cat(kept).sort().values, torch.cat(held).sort().values
