"""Which blocks of a grid a pattern may touch, and which of their tiles are alike, in a graph."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

import sparse_ref as sr
from sparse_ref.patterns.drift import Drift
from sparse_ref.patterns.spans import Span, Tri

from .graph import Graph, Symbol
from .predicates import bound, parted

MOVING, STILL = Drift(Fraction(1)), Drift(Fraction(0))
LEAVES = 12  # 3**LEAVES states of them, times rows of places, stay below 2**63
LONGEST = 2**14  # a period above it is none
NO, YES = np.bool_(False), np.bool_(True)


class Grid(NamedTuple):
    """All blocks of a run: query blocks hang on the first query, key blocks on key 0."""

    size: int
    rows: Symbol  # batch rows with a layout of their own
    start: Symbol  # [rows, 1, 1, 1]: absolute position of the first query
    nq: Symbol
    nk: Symbol
    i: Symbol  # [1, 1, nq, 1]
    j: Symbol  # [1, 1, 1, nk]

    @classmethod
    def of(cls, g: Graph, size: int, q_len: Symbol, kv_len: Symbol, start: Symbol) -> Grid:
        """Lengths of one element each, start [rows]."""
        nq = (q_len + (size - 1)) // size
        nk = ((kv_len + (size - 1)) // size).op("Max", 1)  # a block of padding where no keys are
        return cls(
            size,
            start.size(0),
            start.reshape(-1, 1, 1, 1),
            nq,
            nk,
            g.range(nq).reshape(1, 1, -1, 1),
            g.range(nk).reshape(1, 1, 1, -1),
        )

    def shape(self, layouts: int) -> Symbol:
        """Of so many layouts for each batch row."""
        return self.start.graph.vector(self.rows, layouts, self.nq, self.nk)

    @property
    def q(self) -> Symbol:
        """First query position of every row of blocks."""
        return self.i * self.size + self.start

    @property
    def k(self) -> Symbol:
        """First key position of every column of blocks."""
        return self.j * self.size


class Judged(NamedTuple):
    """What intervals say of every block, broadcasting to [rows, 1, nq, nk]."""

    may: Any
    key: Symbol  # -1: full; else equal keys, equal tiles


def judged(g: Graph, grid: Grid, pattern: sr.Pattern, number: int, of: int) -> Judged:
    """The blocks of one pattern, the `number`-th `of` several, whose keys all differ."""
    judge = _Judge(g, grid, pattern)
    row = g.range(grid.rows).reshape(-1, 1, 1, 1)
    place, places = judge.place()
    state, states = judge.state()
    key = (row * states + state) * places + place
    key = key * of + number if of > 1 else key
    return Judged(judge.may, g.lift(judge.full).where(-1, key))


class _Judge:
    """One pattern on one grid: the verdicts on its leaves, and what follows from them."""

    def __init__(self, g: Graph, grid: Grid, pattern: sr.Pattern):
        self.g, self.grid = g, grid
        self.parts = [parted(part) for part in pattern.parts]
        self.leaves = _leaves(self.parts)
        self.spans = [Span(x, x + (grid.size - 1)) for x in (grid.q, grid.k)]
        self.verdicts: dict[Any, Tri] = {leaf: bound(leaf)(*self.spans) for leaf in self.leaves}
        self.open: dict[sr.Pattern, Any] = dict.fromkeys(self.leaves, NO)
        for part in self.parts:
            self._open(part, YES)

    @functools.cached_property
    def may(self) -> Any:
        """Whether some pair is allowed, as far as intervals can tell."""
        return _any(self.verdict(part).may for part in self.parts)

    @property
    def full(self) -> Any:
        """Whether all pairs are allowed, and count once."""
        found = [self.verdict(part) for part in self.parts]
        if len(found) == 1:
            return found[0].must
        must, may = (
            functools.reduce(operator.add, (self.g.lift(one).int64 for one in ones))
            for ones in ([v.must for v in found], [v.may for v in found])
        )
        return (must == 1) & (may == 1)

    def verdict(self, pattern: Any) -> Tri:
        """Of an expression, from the verdicts on its leaves."""
        if pattern in self.verdicts:
            return self.verdicts[pattern]
        if isinstance(pattern, sr.Not):
            return ~self.verdict(pattern.pattern)
        several = [self.verdict(one) for one in pattern.patterns]
        both = operator.and_ if isinstance(pattern, sr.And) else operator.or_
        return functools.reduce(both, several)

    def _open(self, pattern: Any, matters: Any) -> None:
        """Note where a leaf is not settled although the expression depends on it."""
        if pattern in self.verdicts:
            found = self.verdicts[pattern]
            self.open[pattern] = self.open[pattern] | (matters & found.may & ~found.must)
        elif isinstance(pattern, sr.Not):
            self._open(pattern.pattern, matters)
        else:
            for one in pattern.patterns:
                others = [self.verdict(other) for other in pattern.patterns if other is not one]
                decided = [
                    other.may if isinstance(pattern, sr.And) else ~other.must for other in others
                ]
                self._open(one, functools.reduce(operator.and_, decided, matters))

    def state(self) -> tuple[Any, int]:
        """Which leaves are settled, and how, as a number, and how many there are."""
        number: Any = 0
        if len(self.leaves) > LEAVES:  # too many to tell apart: see `place`
            return number, 1
        for leaf in self.leaves:
            found = self.verdicts[leaf]
            number = number * 3 + (self.g.lift(found.must).int64 + self.g.lift(found.may).int64)
        return number, 3 ** len(self.leaves)

    def place(self) -> tuple[Symbol, Any]:
        """Where a tile stands in the period of what is open, and how many places there are.

        The first of these moves that leaves all open leaves alone tells: along the diagonal and
        along a row both, along the diagonal, down a column, along a row; else none does, and every
        tile has its own place.
        """
        grid, (q, k) = self.grid, self.spans
        i, j, nq, nk = grid.i, grid.j, grid.nq, grid.nk
        diagonal, column, row = (
            {leaf: leaf(dq, dk).every for leaf in self.leaves}
            for dq, dk in ((MOVING, MOVING), (MOVING, STILL), (STILL, MOVING))
        )
        lattice = _period(row)
        options: list[tuple[Any, ...]] = [
            ((diagonal, row), (q.lo - k.lo) % lattice, lattice, diagonal, q.lo),
            ((diagonal,), i - j + nk, nq + nk, diagonal, q.lo),
            ((column,), j, nk, column, q.lo),
            ((row,), i, nq, row, k.lo),
        ]
        found: list[tuple[Any, Symbol]] = []
        places: Any = 0
        for moves, stays, many, every, moved in options if len(self.leaves) <= LEAVES else ():
            tied = [leaf for leaf in self.leaves if any(_is_tied(move, leaf) for move in moves)]
            period, place = _period(every), stays
            if period > 1:
                turns = _any(self.open[leaf] for leaf in self.leaves if every[leaf] != 1)
                place = place * period + moved % period * self.g.lift(turns).int64
            found.append((_any(self.open[leaf] for leaf in tied), place + places))
            places = many * period + places
        place = i * nk + j + places
        for tied, option in reversed(found):
            place = option if tied is NO else self.g.lift(tied).where(place, option)
        if len(self.parts) > 1:  # a multiset may be partial with all leaves settled
            open_ = self.g.lift(_any(self.open.values()))
            place = open_.where(place, 0)
        return place, nq * nk + places


def _period(every: dict[sr.Pattern, int]) -> int:
    """The common period of all leaves that have one in a move; 1 where it is too long."""
    period = math.lcm(*filter(None, every.values()))
    return period if period <= LONGEST else 1


def _is_tied(every: dict[sr.Pattern, int], leaf: sr.Pattern) -> bool:
    """Whether a leaf does not repeat with `_period`."""
    return not every[leaf] or _period(every) % every[leaf] != 0


def _any(truths: Iterable[Any]) -> Any:
    return functools.reduce(operator.or_, truths, NO)


def _leaves(patterns: list[sr.Pattern]) -> list[sr.Pattern]:
    """The parts of some expressions of & | ~: as small as they are, but at most `LEAVES`."""
    leaves, at = list(dict.fromkeys(patterns)), 0
    while at < len(leaves):
        inner = leaves[at].children if isinstance(leaves[at], (sr.And, sr.Or, sr.Not)) else ()
        split = list(dict.fromkeys([*leaves[:at], *inner, *leaves[at + 1 :]]))
        if inner and len(split) <= LEAVES:
            leaves = split
        else:
            at += 1
    return leaves
