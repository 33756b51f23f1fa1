"""Patterns made of patterns: by blocks, in another order, within documents, by head, by batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .._arrays import Ints, integer
from .algebra import Pattern, pattern_field, patterns_field, union
from .explicit import spread
from .positional import _set
from .relation import Rows as KeyRows
from .tables import Runtime, Table
from .tokens import Document


class _Distributes(Pattern):
    """A combinator of one pattern that a multiset passes through part by part."""

    pattern: Pattern

    @property
    def parts(self) -> tuple[Pattern, ...]:
        return tuple(replace(self, pattern=part) for part in self.pattern.parts)  # type: ignore[type-var]


@dataclass(frozen=True)
class Blocked(_Distributes):
    """The pattern evaluated on block indices: every pair of allowed blocks sees each other whole.

    >>> from sparse_ref import Causal, draw
    >>> print(draw(Blocked(Causal(), 2), 4))
    # # . .
    # # . .
    # # # #
    # # # #
    """

    pattern: Pattern
    block_size: int

    def __post_init__(self) -> None:
        pattern_field(self, "pattern")
        _set(self, block_size=integer("block_size", self.block_size, 1))

    def __call__(self, q: Any, k: Any) -> Any:
        return self.pattern(q // self.block_size, k // self.block_size)

    @property
    def covers(self) -> int | None:
        inner = self.pattern.covers
        return None if inner is None else inner * self.block_size

    @property
    def explicit(self) -> bool:
        return self.pattern.explicit

    def rows(self, start: int, stop: int, keys: int | Ints | None = None) -> KeyRows:
        if not self.explicit:
            return super().rows(start, stop, keys)
        b, keys = self.block_size, max(stop, 0) if keys is None else keys
        end = keys if isinstance(keys, int) else int(keys.max(initial=-1)) + 1
        first = start // b
        found = self.pattern.rows(first, -(-stop // b), -(-end // b))
        return spread(found, b, np.arange(start, stop) // b - first).over(keys)


@dataclass(frozen=True)
class Permuted(_Distributes):
    """The pattern in another order of the tokens: `pattern(order[q], order[k])`.

    `order[i]` is the rank of token i, a permutation of 0..n - 1 (tiles, LSH sort).

    >>> from sparse_ref import SlidingWindow, draw
    >>> print(draw(Permuted(SlidingWindow(1, 1), [0, 2, 1]), 3))
    # . #
    . # #
    # # #
    """

    pattern: Pattern
    order: Any

    def __post_init__(self) -> None:
        pattern_field(self, "pattern")
        if not isinstance(self.order, Table):
            _set(self, order=Table(self.order, fill=-1, name="order"))
        if not np.array_equal(np.sort(self.order.values), np.arange(len(self.order))):
            raise ValueError(f"order must be a permutation of 0..{len(self.order) - 1}")

    def __call__(self, q: Any, k: Any) -> Any:
        mine, theirs = self.order[q], self.order[k]
        return self.pattern(mine, theirs) & (mine >= 0) & (theirs >= 0)

    @property
    def covers(self) -> int | None:
        return len(self.order)

    @property
    def explicit(self) -> bool:
        return True

    @cached_property
    def _token(self) -> Ints:
        return np.argsort(self.order.values)

    def rows(self, start: int, stop: int, keys: int | Ints | None = None) -> KeyRows:
        ranks = self.order[np.arange(start, stop)]
        inside = ranks[ranks >= 0]
        low, high = (int(inside.min()), int(inside.max()) + 1) if len(inside) else (0, 0)
        found = self.pattern.rows(low, high, len(self.order))
        none = high - low  # an empty row for tokens outside the order
        indptr = np.append(found.indptr, found.indptr[-1])
        picked = spread(KeyRows(indptr, found.indices), 1, np.where(ranks >= 0, ranks - low, none))
        tokens = KeyRows.of(
            picked.row_of, self._token[picked.indices], stop - start, ordered=False
        )
        return tokens.over(max(stop, 0) if keys is None else keys)


@dataclass(frozen=True)
class WithinDocument(_Distributes):
    """The pattern on positions within each document of a packed sequence (see `Document`).

    A document may have gaps: its positions are counted over its own tokens.

    >>> from sparse_ref import Causal, SlidingWindow, draw
    >>> print(draw(WithinDocument(SlidingWindow(1, 0), [0, 0, 0, 1, 1]), 5))
    # . . . .
    # # . . .
    . # # . .
    . . . # .
    . . . # #
    """

    pattern: Pattern
    ids: Any

    def __post_init__(self) -> None:
        pattern_field(self, "pattern")
        _set(self, ids=Document(self.ids).ids)
        if isinstance(self.ids, Runtime):
            raise TypeError(
                f"ids must be values known now, got {self.ids!r}: use pattern & Document(...) for "
                "patterns of distances, which packing does not change"
            )

    def __call__(self, q: Any, k: Any) -> Any:
        return self._document(q, k) & self.pattern(self._place[q], self._place[k])

    @property
    def covers(self) -> int | None:
        return len(self.ids)

    @cached_property
    def _document(self) -> Document:
        return Document(self.ids)

    @cached_property
    def _place(self) -> Table:
        """The position of every token within its document."""
        order = np.argsort(self.ids.values, kind="stable")
        ids = self.ids.values[order]
        starts = np.searchsorted(ids, ids)
        place = np.empty(len(ids), dtype=np.int64)
        place[order] = np.arange(len(ids)) - starts
        return Table(place)


class _Choice(Pattern):
    """One of several patterns, chosen by something that is not a position."""

    patterns: tuple[Pattern, ...]

    def __call__(self, q: Any, k: Any) -> Any:
        raise TypeError(f"{type(self).__name__} has no single predicate: choose one with .at(head)")


@dataclass(frozen=True)
class PerHead(_Choice):
    """Head h uses `patterns[h % len(patterns)]`; the number need not divide the heads.

    >>> from sparse_ref import Causal, SlidingWindow
    >>> pattern = Causal() & PerHead([SlidingWindow(0, 0), SlidingWindow(1, 0), SlidingWindow(2, 0)])
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
