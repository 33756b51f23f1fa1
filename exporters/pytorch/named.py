"""The three layers of the usual tutorial: attention to what is near, to some tokens, to any."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sparse_ref as sr

from .attention import SparseAttention


class LocalAttention(SparseAttention):
    """Every token attends to itself and to `window` tokens before it, and as many behind it.

    Parameters
    ----------
    dim, heads : int
    window : int
        Tokens on each side.
    causal : bool
        Before it only.
    options
        Of `SparseAttention`.

    Examples
    --------
    >>> print(sr.draw(LocalAttention(8, 2, 1).pattern, 4))
    # # . .
    # # # .
    . # # #
    . . # #
    """

    def __init__(self, dim: int, heads: int, window: int, *, causal: bool = False, **options: Any):
        super().__init__(dim, heads, sr.SlidingWindow(window, 0 if causal else window), **options)


class GlobalAttention(SparseAttention):
    """Some tokens attend to all and are attended to by all, each of the others to itself.

    Parameters
    ----------
    dim, heads : int
    tokens : ints, range or bool table
        Which tokens are global.
    causal : bool
        None attends to what follows it.
    options
        Of `SparseAttention`.

    Examples
    --------
    >>> print(sr.draw(GlobalAttention(8, 2, [1]).pattern, 4))
    # # . .
    # # # #
    . # # .
    . # . #
    """

    def __init__(
        self, dim: int, heads: int, tokens: Iterable[int], *, causal: bool = False, **options: Any
    ):
        pattern = sr.Global(tokens) | sr.SlidingWindow(0, 0)
        super().__init__(dim, heads, pattern & sr.Causal() if causal else pattern, **options)


class RandomAttention(SparseAttention):
    """Every token attends to itself and to `count` tokens that are drawn once and stay.

    Parameters
    ----------
    dim, heads : int
    count : int
        Drawn keys of each row; each head draws its own.
    length : int
        Up to how many tokens there may be.
    seed : int
    causal : bool
        Keys are drawn from those before.
    options
        Of `SparseAttention`.

    Examples
    --------
    >>> layer = RandomAttention(8, 2, 3, length=11)
    >>> layer.pattern.mask(11, 11).sum(-1)[0].tolist()
    [4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4]
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        count: int,
        *,
        length: int,
        seed: int = 0,
        causal: bool = False,
        **options: Any,
    ):
        itself = sr.SlidingWindow(0, 0)
        drawn = [
            sr.RandomKeys(count, seed + h, length, exclude=itself, causal=causal) | itself
            for h in range(heads)
        ]
        super().__init__(dim, heads, sr.PerHead(drawn), **options)
