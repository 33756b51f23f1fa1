"""Drift: a predicate called on rates of change tells the period of its pattern.

`Drift(rate, every)` stands for a value that moves by `rate * step` when query and key both move by
`step`, any multiple of `every`. A truth value must not move at all: its rate is 0, and `every` is
the period after which tiles along a diagonal repeat; 0 says that no common step leaves it alone.

>>> q = k = Drift()
>>> ((q - k) % 64 == 0).every, (q // 48 == k // 48).every, (k < 4).every
(1, 48, 0)

So a layout evaluates one tile of each kind instead of every partial tile.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

STILL = Fraction(0)


class Drift:
    """How a value moves when query and key positions move together."""

    __slots__ = ("every", "rate")
    __hash__ = None  # type: ignore[assignment]
    __array_ufunc__ = None

    def __init__(self, rate: Fraction = Fraction(1), every: int = 1) -> None:
        self.rate, self.every = rate, every

    def __repr__(self) -> str:
        return f"Drift(rate={self.rate}, every={self.every})"

    def lookup(self, table: object) -> Drift:
        """The entries of a table have no period, unless the index stands still."""
        return Drift(STILL, 0 if self.rate else self.every)

    def relate(self, relation: object, keys: object) -> Drift:
        """An explicit list of pairs has no period."""
        return Drift(STILL, 0)

    def constant(self, value: bool) -> Drift:
        """A predicate's literal True or False never moves."""
        return Drift(STILL)

    def _with(self, other: Any, rate: Fraction) -> Drift:
        return Drift(rate, math.lcm(self.every, _drift(other).every))

    def __add__(self, other: Any) -> Drift:
        return self._with(other, self.rate + _drift(other).rate)

    def __sub__(self, other: Any) -> Drift:
        return self._with(other, self.rate - _drift(other).rate)

    def __rsub__(self, other: Any) -> Drift:
        return _drift(other) - self

    def __neg__(self) -> Drift:
        return self * -1

    def __mul__(self, factor: int) -> Drift:
        return Drift(self.rate * factor, self.every)

    __radd__, __rmul__ = __add__, __mul__

    def __floordiv__(self, divisor: int) -> Drift:
        if not self.rate:
            return Drift(STILL, self.every)
        whole = abs(divisor / self.rate).numerator  # steps after which the quotient moves evenly
        return Drift(self.rate / divisor, math.lcm(self.every, whole))

    def __mod__(self, divisor: int) -> Drift:
        return Drift(STILL, (self // divisor).every)

    def __abs__(self) -> Drift:
        return Drift(STILL, 0 if self.rate else self.every)

    def _compare(self, other: Any) -> Drift:
        alike = self.rate == _drift(other).rate
        return self._with(other, STILL) if alike else Drift(STILL, 0)

    __le__ = __lt__ = __ge__ = __gt__ = _compare
    __eq__ = __ne__ = _compare  # type: ignore[assignment]

    def __and__(self, other: Any) -> Drift:
        return self._with(other, STILL)

    __or__ = __rand__ = __ror__ = __and__

    def __invert__(self) -> Drift:
        return self


def _drift(value: Any) -> Drift:
    return value if isinstance(value, Drift) else Drift(STILL)
