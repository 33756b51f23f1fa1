"""A pattern read elsewhere: on block indices, in another order, within documents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from sparse_ref._arrays import Ints, integer

from .explicit import spread
from .pattern import Pattern, assign, pattern_field
from .relation import KeyRows
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
        assign(self, block_size=integer("block_size", self.block_size, 1))

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
            assign(self, order=Table(self.order, fill=-1, name="order"))
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
        tokens = KeyRows.of(picked.row_of, self._token[picked.indices], stop - start, ordered=False)
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
        assign(self, ids=Document(self.ids).ids)
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
