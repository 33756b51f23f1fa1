"""Which tiles of a pattern are alike, told without evaluating them.

On one tile, intervals settle most parts of a pattern: far from the start of the sequence
`k < 4` is simply false. Tiles are grouped by what is settled; what stays open is asked, by
`Drift`, whether it repeats along the diagonal, down a column or along a row. Tiles of one group
with the same place modulo the period are the same tile, so a layout evaluates one of each kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np

from sparse_ref._arrays import Ints
from sparse_ref.patterns import And, Full, Not, Or, Pattern
from sparse_ref.patterns.drift import Drift
from sparse_ref.patterns.spans import Span

MOVING, STILL = Drift(Fraction(1)), Drift(Fraction(0))
ALL: Pattern = Full()
NOTHING: Pattern = Not(ALL)


def kinds(pattern: Pattern, q: Ints, k: Ints, block: tuple[int, int]) -> Ints:
    """A number for each tile with its first positions at (q, k); equal numbers, equal tiles."""
    group, place = np.zeros(len(q), dtype=np.int64), np.zeros((2, len(q)), dtype=np.int64)
    for number, (at, rest) in enumerate(residues(pattern, q, k, block)):
        group[at] = number
        place[:, at] = _place(rest, q[at], k[at], at)
    return _numbered([group, *place])


def residues(
    pattern: Pattern, q: Ints, k: Ints, block: tuple[int, int]
) -> Iterator[tuple[Ints, list[Pattern]]]:
    """Groups of tiles, and what intervals leave open of the pattern's parts on those of a group."""
    if not len(q):
        return
    leaves = list(dict.fromkeys(leaf for part in pattern.parts for leaf in _leaves(part)))
    spans = Span(q, q + block[0] - 1), Span(k, k + block[1] - 1)
    settled = [_settled(leaf, *spans) for leaf in leaves]
    group = _numbered(settled)
    for number in range(int(group.max(initial=-1)) + 1):
        at = np.flatnonzero(group == number)
        known = {leaf: int(state[at[0]]) for leaf, state in zip(leaves, settled, strict=True)}
        yield at, [_simplified(part, known) for part in pattern.parts]


def _numbered(columns: Iterable[Ints]) -> Ints:
    """Equal numbers where all columns are equal."""
    number, *others = (np.unique(x, return_inverse=True)[1] for x in columns)
    for other in others:
        paired = number * (int(other.max(initial=0)) + 1) + other
        number = np.unique(paired, return_inverse=True)[1]
    return number


def _leaves(pattern: Pattern) -> list[Pattern]:
    """The parts of an expression of & | ~ that are none themselves."""
    if isinstance(pattern, (And, Or)):
        return [leaf for child in pattern.patterns for leaf in _leaves(child)]
    return _leaves(pattern.pattern) if isinstance(pattern, Not) else [pattern]


def _settled(leaf: Pattern, q: Span, k: Span) -> Ints:
    """1 where a leaf holds on the whole tile, 0 nowhere on it, -1 where that stays open."""
    if leaf.explicit:  # a list of pairs settles nothing, and counting in it costs
        return np.full(q.lo.shape, -1)
    verdict = leaf(q, k)
    must, may = (np.broadcast_to(x, q.lo.shape) for x in (verdict.must, verdict.may))
    return np.where(must, 1, np.where(may, -1, 0))


def _simplified(pattern: Pattern, known: dict[Pattern, int]) -> Pattern:
    """The expression with its settled leaves replaced by all or nothing, and folded."""
    if isinstance(pattern, Not):
        return ~_simplified(pattern.pattern, known)
    if isinstance(pattern, (And, Or)):
        neutral, decides = (ALL, NOTHING) if isinstance(pattern, And) else (NOTHING, ALL)
        members = [_simplified(child, known) for child in pattern.patterns]
        if decides in members:
            return decides
        open_ = tuple(member for member in members if member != neutral)
        return type(pattern)(open_) if open_ else neutral
    return {1: ALL, 0: NOTHING}.get(known[pattern], pattern)


def _place(rest: list[Pattern], q: Ints, k: Ints, number: Ints) -> Ints:
    """Where tiles stand in the period of what is open: equal columns, equal tiles."""
    moves = (
        (MOVING, MOVING, q - k, q),  # along the diagonal q - k stays
        (MOVING, STILL, k, q),  # down a column k stays
        (STILL, MOVING, q, k),  # along a row q stays
    )
    for dq, dk, stays, moved in moves:
        every = int(np.lcm.reduce([part(dq, dk).every for part in rest]))
        if every:
            return np.stack([stays, moved % every])
    return np.stack([number, number])
