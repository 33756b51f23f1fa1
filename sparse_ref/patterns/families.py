"""Several patterns in one: one a head, one a batch row, or all of them counted together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sparse_ref._arrays import Ints

from .algebra import union
from .pattern import Pattern, patterns_field
from .relation import KeyRows


class _Choice(Pattern):
    """One of several patterns, chosen by something that is not a position."""

    patterns: tuple[Pattern, ...]

    def __call__(self, q: Any, k: Any) -> Any:
        raise TypeError(f"{type(self).__name__} has no single predicate: choose one with .at(head)")


@dataclass(frozen=True)
class PerHead(_Choice):
    """Head h uses `patterns[h % len(patterns)]`; the number need not divide the heads.

    >>> from sparse_ref import Causal, SlidingWindow
    >>> pattern = Causal() & PerHead([SlidingWindow(left, 0) for left in (0, 1, 2)])
    >>> pattern.heads, pattern.at(4)
    (3, Causal() & SlidingWindow(left=1, right=0, dilation=1))
    """

    patterns: Any

    def __post_init__(self) -> None:
        patterns_field(self)

    @property
    def heads(self) -> int:
        return math.lcm(len(self.patterns), *(p.heads for p in self.patterns))

    def at(self, head: int) -> Pattern:
        return self.patterns[head % len(self.patterns)].at(head)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class PerBatch(_Choice):
    """Batch row i uses `patterns[i]`; the number must be the batch's.

    >>> from sparse_ref import Causal, PrefixLM
    >>> PerBatch([PrefixLM(2), PrefixLM(5)]).for_batch(1)
    PrefixLM(prefix=5)
    """

    patterns: Any

    def __post_init__(self) -> None:
        patterns_field(self)
        for i, member in enumerate(self.patterns):
            if member.batches is not None:
                raise ValueError(f"patterns[{i}] must hold no PerBatch itself, got {member!r}")

    @property
    def batches(self) -> int:
        return len(self.patterns)

    def for_batch(self, batch: int) -> Pattern:
        return self.patterns[batch]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Multi(Pattern):
    """A multiset: a key allowed by c of the patterns counts c times (its score gets log c).

    What merging branches by log-sum-exp computes: LongNet (arXiv:2307.02486), several Reformer
    hash rounds, BigBird's repeated blocks. Calling it, and `mask`, give the support.

    >>> from sparse_ref import Causal, Sink
    >>> Multi([Causal(), Sink(1)]).counts(3, 3)
    array([[[2, 0, 0],
            [2, 1, 0],
            [2, 1, 1]]])
    """

    patterns: Any

    def __post_init__(self) -> None:
        patterns_field(self)

    def __call__(self, q: Any, k: Any) -> Any:
        allowed: Any = False
        for pattern in self.patterns:
            allowed = allowed | pattern(q, k)
        return allowed

    @property
    def multiset(self) -> bool:
        return True

    @property
    def explicit(self) -> bool:
        return all(p.explicit for p in self.patterns)

    @property
    def parts(self) -> tuple[Pattern, ...]:
        return tuple(part for pattern in self.patterns for part in pattern.parts)

    def rows(self, start: int, stop: int, keys: int | Ints | None = None) -> KeyRows:
        return union([p.rows(start, stop, keys) for p in self.patterns])
