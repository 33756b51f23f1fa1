"""Span and Tri: a predicate called on intervals of positions classifies whole blocks at once.

`Span(lo, hi)` stands for every position in the closed interval [lo, hi]; lo and hi are arrays, so
one call judges many blocks. A comparison answers `Tri(must, may)`: must = true for every pair of
the block, may = true for some pair as far as intervals can tell. The answer is sound: `must` never
claims too much, `~may` neither.

>>> import numpy as np
>>> q = Span(np.array([0, 64]), np.array([63, 127]))        # two blocks of queries
>>> k = Span(np.array([64, 0]), np.array([127, 63]))        # against two blocks of keys
>>> causal = k <= q
>>> causal.must.tolist(), causal.may.tolist()               # the first is empty, the second full
([False, True], [False, True])

lo and hi may be anything that answers the operators and, for `where`, a method `pick`: the symbols
of an ONNX graph do, which puts a block layout inside the graph.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class Ranged(Protocol):
    """A table that tells the range of its values over the positions lo..hi."""

    def extent(self, lo: Any, hi: Any) -> tuple[Any, Any]: ...


class Counted(Protocol):
    """A relation that counts its pairs in the rectangle q_lo..q_hi by k_lo..k_hi."""

    def count(self, q_lo: Any, q_hi: Any, k_lo: Any, k_hi: Any) -> Any: ...


def where(condition: Any, yes: Any, no: Any) -> Any:
    """`np.where` for arrays, a Where node for symbols."""
    pick = getattr(condition, "pick", None)
    return np.where(condition, yes, no) if pick is None else pick(yes, no)


class Span:
    """All positions of the closed intervals [lo, hi]."""

    __slots__ = ("hi", "lo")
    __array_ufunc__ = None  # a NumPy scalar on the left leaves the operator to us
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, lo: Any, hi: Any) -> None:
        self.lo, self.hi = lo, hi

    def __repr__(self) -> str:
        return f"Span({self.lo!r}, {self.hi!r})"

    def lookup(self, table: Ranged) -> Span:
        """The range of a table's values over the interval."""
        return Span(*table.extent(self.lo, self.hi))

    def relate(self, relation: Counted, keys: Span) -> Tri:
        """Whether a relation holds for all, or for some, pairs of the block."""
        found = relation.count(self.lo, self.hi, keys.lo, keys.hi)
        area = (self.hi - self.lo + 1) * (keys.hi - keys.lo + 1)
        return Tri(found == area, found > 0)

    def constant(self, value: bool) -> Tri:
        """A predicate's literal True or False, as a verdict."""
        return Tri(np.bool_(value), np.bool_(value))

    def __add__(self, other: Any) -> Span:
        b = _span(other)
        return Span(self.lo + b.lo, self.hi + b.hi)

    def __neg__(self) -> Span:
        return Span(-self.hi, -self.lo)

    def __sub__(self, other: Any) -> Span:
        b = _span(other)
        return Span(self.lo - b.hi, self.hi - b.lo)

    def __rsub__(self, other: Any) -> Span:
        return _span(other) - self

    def __mul__(self, factor: int) -> Span:
        ends = self.lo * factor, self.hi * factor
        return Span(*ends) if factor >= 0 else Span(*ends[::-1])

    __radd__, __rmul__ = __add__, __mul__

    def __floordiv__(self, divisor: int) -> Span:
        return Span(self.lo // divisor, self.hi // divisor)

    def __mod__(self, divisor: int) -> Span:
        together = self.lo // divisor == self.hi // divisor  # else the remainder wraps around
        lo, hi = self.lo % divisor, self.hi % divisor
        return Span(where(together, lo, 0), where(together, hi, divisor - 1))

    def __abs__(self) -> Span:
        below, above = -self.hi, self.lo  # distance of the interval to 0, if it is on one side
        nearest = where(above >= below, above, below)
        far = where(self.hi >= -self.lo, self.hi, -self.lo)
        return Span(where(nearest >= 0, nearest, 0), far)

    def __le__(self, other: Any) -> Tri:
        b = _span(other)
        return Tri(self.hi <= b.lo, self.lo <= b.hi)

    def __lt__(self, other: Any) -> Tri:
        b = _span(other)
        return Tri(self.hi < b.lo, self.lo < b.hi)

    def __ge__(self, other: Any) -> Tri:
        return _span(other) <= self

    def __gt__(self, other: Any) -> Tri:
        return _span(other) < self

    def __eq__(self, other: object) -> Tri:  # type: ignore[override]
        b = _span(other)
        must = (self.lo == b.hi) & (self.hi == b.lo)
        return Tri(must, (self.lo <= b.hi) & (self.hi >= b.lo))

    def __ne__(self, other: object) -> Tri:  # type: ignore[override]
        return ~(self == other)


class Tri:
    """What intervals can say about a predicate on a block: true everywhere, true somewhere."""

    __slots__ = ("may", "must")
    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, must: Any, may: Any) -> None:
        self.must, self.may = must, may

    def __repr__(self) -> str:
        return f"Tri(must={self.must!r}, may={self.may!r})"

    def __bool__(self) -> bool:
        raise TypeError("a verdict has no truth value: use & | ~ and one comparison at a time")

    def __and__(self, other: Any) -> Tri:
        b = _tri(other)
        return Tri(self.must & b.must, self.may & b.may)

    def __or__(self, other: Any) -> Tri:
        b = _tri(other)
        return Tri(self.must | b.must, self.may | b.may)

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> Tri:
        return Tri(~self.may, ~self.must)


def _span(value: Any) -> Span:
    return value if isinstance(value, Span) else Span(value, value)


def _tri(value: Any) -> Tri:
    if isinstance(value, Tri):
        return value
    lifted = np.bool_(value) if isinstance(value, bool) else value
    return Tri(lifted, lifted)
