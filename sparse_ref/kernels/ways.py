"""A way to compute a set of pairs, and the shape it is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sparse_ref._arrays import Ints

DOUBT = 1.2  # times: what another order must gain over the sequence's own to be believed


class Shape(NamedTuple):
    """What a plan depends on besides the pattern."""

    q_len: int
    kv_len: int
    q_start: int
    heads: tuple[int, ...]
    head_dim: int
    itemsize: int
    lanes: int

    @property
    def queries(self) -> Ints:
        """Their positions."""
        return self.q_start + np.arange(self.q_len)

    @property
    def keys(self) -> Ints:
        """Their positions."""
        return np.arange(self.kv_len)


class Way(NamedTuple):
    """How to compute one set of pairs."""

    kernel: str  # "tiles" or "rows"
    order: str  # of queries and keys, in words
    seconds: float  # predicted, of one head on one thread
    pairs: float  # about so many
    blocks: float  # of queries against blocks of keys; inf by rows
    make: Callable[[], tuple[Any, int]]  # the layout, and the number of pairs
    others: tuple[tuple[str, float], ...] = ()  # what was not chosen, and how much longer it takes

    @property
    def doubted(self) -> float:
        """Its time; scattered memory costs more than the model knows."""
        return self.seconds * (1 if self.order in {"in order", "rows"} else DOUBT)


Attempt = Callable[[float], Way | None]
