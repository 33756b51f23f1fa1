"""Arithmetic progressions of positions: spans that know their step, and the steps worth a try.

A predicate asked on positions dealt by residues, lo, lo + 64, lo + 128, ..., is settled by
congruences where intervals see nothing: (q - k) % 64 == 0 holds everywhere or nowhere. This is the
strided-interval domain of Reps, Balakrishnan and Lim (2006), as a subclass of `Span`.

>>> import numpy as np
>>> q, k = Progression(5, 325, 64), Progression(np.array([5, 6]), np.array([325, 326]), 64)
>>> ((q - k) % 64 == 0).must.tolist(), ((q - k) % 64 == 0).may.tolist()
([True, False], [True, False])
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparse_ref.patterns import Pattern
from sparse_ref.patterns.spans import Span, Tri


class Progression(Span):
    """The positions lo, lo + step, ..., hi; with step 0 the one position lo."""

    __slots__ = ("step",)
    __hash__ = None

    def __init__(self, lo: Any, hi: Any, step: Any) -> None:
        super().__init__(lo, hi)
        self.step = step

    def __repr__(self) -> str:
        return f"Progression({self.lo!r}, {self.hi!r}, {self.step!r})"

    def __add__(self, other: Any) -> Progression:
        b = _progression(other)
        return Progression(self.lo + b.lo, self.hi + b.hi, np.gcd(self.step, b.step))

    def __neg__(self) -> Progression:
        return Progression(-self.hi, -self.lo, self.step)

    def __sub__(self, other: Any) -> Progression:
        return self + -_progression(other)

    def __rsub__(self, other: Any) -> Progression:
        return _progression(other) + -self

    def __mul__(self, factor: int) -> Progression:
        ends = super().__mul__(factor)
        return Progression(ends.lo, ends.hi, self.step * abs(factor))

    __radd__, __rmul__ = __add__, __mul__

    def __floordiv__(self, divisor: int) -> Progression:
        even = self.step % divisor == 0
        step = np.where(even, self.step // divisor, 1)
        return Progression(self.lo // divisor, self.hi // divisor, step)

    def __mod__(self, divisor: int) -> Progression:
        together = self.lo // divisor == self.hi // divisor  # else remainders wrap around, but
        step = np.gcd(self.step, divisor)  # they keep their remainder by what divides both
        lo = np.where(together, self.lo % divisor, self.lo % step)
        hi = np.where(together, self.hi % divisor, divisor - step + self.lo % step)
        return Progression(lo, hi, np.where(together, self.step, step % divisor))

    def __abs__(self) -> Progression:
        ends = super().__abs__()
        one_side = (self.lo >= 0) | (self.hi <= 0)
        return Progression(ends.lo, ends.hi, np.where(one_side, self.step, 1))

    def __ge__(self, other: Any) -> Tri:
        return _progression(other) <= self

    def __gt__(self, other: Any) -> Tri:
        return _progression(other) < self

    def __eq__(self, other: object) -> Tri:  # type: ignore[override]
        b = _progression(other)
        verdict = super().__eq__(b)
        common = np.gcd(self.step, b.step)
        alike = (self.lo - b.lo) % np.where(common == 0, 1, common) == 0
        return Tri(verdict.must, verdict.may & alike)

    def __ne__(self, other: object) -> Tri:  # type: ignore[override]
        return ~(self == other)


def _progression(value: Any) -> Progression:
    if isinstance(value, Progression):
        return value
    if isinstance(value, Span):
        return Progression(value.lo, value.hi, 1)
    return Progression(value, value, 0)


def periods(pattern: Pattern) -> dict[int, int]:
    """The periods that a head-free pattern takes remainders by, and how often.

    >>> from sparse_ref import Causal, SlidingWindow, Strided, Xor
    >>> periods(Causal() & (SlidingWindow(9, 9, dilation=3) | Strided(64))), periods(Xor([5]))
    ({3: 1, 64: 1}, {2: 2, 4: 2, 8: 2})
    """
    seen: dict[int, int] = {}
    pattern(_Asked(seen), _Asked(seen))
    return seen


class _Asked:
    """A value that notes by what it is divided; `unit` is what it has been divided by already."""

    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, seen: dict[int, int], unit: int = 1) -> None:
        self.seen, self.unit = seen, unit

    def _with(self, other: Any) -> _Asked:
        unit = other.unit if isinstance(other, _Asked) else 1
        return _Asked(self.seen, math.lcm(self.unit, unit))

    def _alone(self, *_: Any) -> _Asked:
        return self

    def __floordiv__(self, divisor: int) -> _Asked:
        return _Asked(self.seen, self.unit * divisor)

    def __mod__(self, divisor: int) -> _Asked:
        if divisor > 1:
            period = self.unit * divisor
            self.seen[period] = self.seen.get(period, 0) + 1
        return _Asked(self.seen)

    __add__ = __radd__ = __sub__ = __rsub__ = __and__ = __rand__ = __or__ = __ror__ = _with
    __le__ = __lt__ = __ge__ = __gt__ = _with
    __eq__ = __ne__ = _with  # type: ignore[assignment]
    __mul__ = __rmul__ = __neg__ = __abs__ = __invert__ = lookup = relate = constant = _alone
