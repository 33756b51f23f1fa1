"""Patterns on lattices: NATTEN's shifted windows, row-major grids, hypercubes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sparse_ref._arrays import integer

from .pattern import Pattern, assign, patterns_field
from .tables import IntegerSet


@dataclass(frozen=True)
class Neighborhood(Pattern):
    """NATTEN's window of `kernel` keys on an axis of `length` positions: it shifts at the borders.

    Neighborhood attention (arXiv:2204.07143), dilated (2209.15001), strided (GNA, 2504.16922), as
    `natten.functional.na1d` computes it: inside a dilation class every query sees exactly `kernel`
    keys; an even kernel reaches one further to the left. Causal windows are cut, not shifted.
    With a `stride` the queries of a group share the window of their leader.

    >>> from sparse_ref import draw
    >>> print(draw(Neighborhood(5, 3), 5))
    # # # . .
    # # # . .
    . # # # .
    . . # # #
    . . # # #
    """

    length: int
    kernel: int
    dilation: int = 1
    stride: int = 1
    causal: bool = False

    def __post_init__(self) -> None:
        length = integer("length", self.length, 1)
        dilation = integer("dilation", self.dilation, 1)
        kernel = integer("kernel", self.kernel, 1)
        if kernel * dilation > length:
            raise ValueError(
                f"kernel * dilation must be <= length = {length}, got {kernel} * {dilation}"
            )
        stride = integer("stride", self.stride, 1, kernel)
        if not isinstance(self.causal, bool):
            raise TypeError(f"causal must be True or False, got {self.causal!r}")
        assign(self, length=length, kernel=kernel, dilation=dilation, stride=stride)

    def __call__(self, q: Any, k: Any) -> Any:
        # y, t: positions within a dilation class, `size` its length; a class never mixes with
        # another. Every min and max of the definition is written as two comparisons.
        allowed = (q % self.dilation == k % self.dilation) & (k >= 0) & (k < self.length)
        size = (self.length - q % self.dilation + self.dilation - 1) // self.dilation
        y, t = q // self.dilation, k // self.dilation
        for half in self._shifted:
            leader = y // self.stride * self.stride + self.stride // 2
            reaches_left = (t >= leader - half) | (t >= size - 1 - half) | (t >= size - self.kernel)
            before = t - self.kernel  # one key past the right end, if the window started here
            reaches_right = (before < leader - half) & (before < size - 1 - half)
            reaches_right = reaches_right & (before < size - self.kernel)
            allowed = allowed & reaches_left & ((t < self.kernel) | reaches_right)
        for last in self._cut:
            leader = y // self.stride * self.stride + last
            allowed = allowed & (t <= y) & ((t > leader - self.kernel) | (t >= size - self.kernel))
        return allowed

    @property
    def _shifted(self) -> tuple[int, ...]:
        return () if self.causal else (self.kernel // 2,)

    @property
    def _cut(self) -> tuple[int, ...]:
        return (self.stride - 1,) if self.causal else ()

    @property
    def covers(self) -> int | None:
        return self.length


@dataclass(frozen=True)
class Grid(Pattern):
    """A row-major grid with one pattern an axis, ANDed on the coordinates.

    Axial attention (arXiv:1912.12180), Swin windows (2103.14030), 2-D and 3-D neighborhoods.
    `shape` has one extent an axis; the sequence has their product of positions.

    >>> from sparse_ref import Full, SlidingWindow, draw
    >>> print(draw(Grid((2, 3), (Full(), SlidingWindow(0, 0))), 6))
    # . . # . .
    . # . . # .
    . . # . . #
    # . . # . .
    . # . . # .
    . . # . . #
    """

    shape: Any
    patterns: Any

    def __post_init__(self) -> None:
        patterns_field(self)
        try:
            shape = tuple(self.shape)
        except TypeError:
            raise TypeError(f"shape must be a sequence of integers, got {self.shape!r}") from None
        shape = tuple(integer(f"shape[{i}]", extent, 1) for i, extent in enumerate(shape))
        if len(shape) != len(self.patterns):
            raise ValueError(
                f"patterns must be one for each of the {len(shape)} axes, got {len(self.patterns)}"
            )
        for axis, (extent, pattern) in enumerate(zip(shape, self.patterns, strict=True)):
            if pattern.multiset:
                raise ValueError(f"patterns[{axis}] must be a set, got the multiset {pattern!r}")
            if pattern.covers is not None and pattern.covers < extent:
                raise ValueError(
                    f"patterns[{axis}] must cover {extent} positions, got {pattern.covers}"
                )
        integer("the product of shape", math.prod(shape), 1)
        assign(self, shape=shape)

    def __call__(self, q: Any, k: Any) -> Any:
        allowed: Any = (k >= 0) & (k < self.covers)
        inner = 1
        for extent, pattern in zip(reversed(self.shape), reversed(self.patterns), strict=True):
            allowed = allowed & pattern(q // inner % extent, k // inner % extent)
            inner = inner * extent
        return allowed

    @property
    def covers(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Xor(Pattern):
    """Keys whose position differs from the query's in given bits, `q ^ k in distances`.

    Butterfly and hypercube patterns (Pixelated Butterfly, arXiv:2112.00029). Written as one
    equation per binary digit, so that intervals can judge it.

    >>> from sparse_ref import draw
    >>> print(draw(Xor([0, 2]), 4))
    # . # .
    . # . #
    # . # .
    . # . #
    """

    distances: Any

    def __post_init__(self) -> None:
        assign(self, distances=IntegerSet("distances", self.distances))

    def __call__(self, q: Any, k: Any) -> Any:
        found: Any = False
        for top, digits in self._equations:
            same = q // top == k // top
            for place, flip in digits:
                ours, theirs = q // place % 2, k // place % 2
                same = same & (ours == theirs * (1 - 2 * flip) + flip)
            found = found | same
        return found

    @property
    def _equations(self) -> tuple[tuple[int, tuple[tuple[int, int], ...]], ...]:
        def digits(distance: int) -> tuple[tuple[int, int], ...]:
            places = range(distance.bit_length())
            return tuple((1 << place, distance >> place & 1) for place in places)

        return tuple((1 << d.bit_length(), digits(d)) for d in self.distances)
