"""Queries and keys in another order: dealt by residues, gathered from where they are scattered.

Rows of a strided pattern that share a residue share their keys. Dealt into classes, one residue
each and padded to whole blocks, they fill dense tiles. The tiles that hold a pair are found by
descent: all pairs of classes at once, then halves, quarters, ... of a class; on blocks that are
arithmetic progressions congruences are settled, and parts that ask the query or the key alone are
tabulated. So the cost follows the number of tiles that are not empty, whatever the order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from sparse_ref._arrays import Bools, Ints
from sparse_ref.layouts.kinds import MOVING, STILL
from sparse_ref.patterns import And, Not, Or, Pattern
from sparse_ref.patterns.spans import Tri

from .progressions import Progression

BLOCK = 64


class Order(NamedTuple):
    """Classes of slots, each a whole number of blocks; a class's empty slots are its last."""

    holds: Ints  # (classes, length): the query or key in every slot, -1 none
    place: Ints  # alike: where a pattern is asked; an empty slot repeats its neighbour

    @property
    def blocks(self) -> int:
        """The number of blocks of all classes."""
        return self.holds.size // BLOCK

    @property
    def filled(self) -> Ints:
        """How many slots of every block are not empty."""
        return np.asarray((self.holds >= 0).reshape(-1, BLOCK).sum(axis=1))


class Found(NamedTuple):
    """Tiles that may hold a pair, sorted by row, then column; `full`: all their pairs do."""

    row: Ints
    column: Ints
    full: Bools


def deal(index: Ints, place: Ints, period: int = 1) -> Order:
    """One class for every residue of the places, ascending within it."""
    residue = place % period
    order = np.lexsort((place, residue))
    _, start, count = np.unique(residue[order], return_index=True, return_counts=True)
    length = -(-int(count.max(initial=1)) // BLOCK) * BLOCK
    slot = np.arange(length)
    taken = order[start[:, None] + np.minimum(slot, count[:, None] - 1)]
    return Order(np.where(slot < count[:, None], index[taken], -1), place[taken])


def scattered(used: Bools) -> bool:
    """Whether what is used would fill clearly fewer blocks if it were gathered."""
    needed = -(-int(used.sum()) // BLOCK)
    touched = np.logical_or.reduceat(used, np.arange(0, len(used), BLOCK)) if len(used) else used
    return 2 * int(touched.sum()) > 3 * needed


def used(pattern: Pattern, q: Ints, k: Ints) -> tuple[Bools, Bools]:
    """The queries that may see a key at all, and the keys that may be seen."""
    whole = [Progression(x[0], x[-1], 1 if len(x) > 1 else 0) for x in (q, k)]
    sides = (
        (Progression(q, q, 0), whole[1]),
        (whole[0], Progression(k, k, 0)),
    )
    found = [judged(pattern, lambda leaf, s=side: leaf(*s)).may for side in sides]  # type: ignore[misc]
    return np.broadcast_to(found[0], q.shape), np.broadcast_to(found[1], k.shape)


def judged(pattern: Pattern, ask: Callable[[Pattern], Tri]) -> Tri:
    """An expression of & | ~ from the verdicts on its leaves."""
    if isinstance(pattern, Not):
        return ~judged(pattern.pattern, ask)
    if not isinstance(pattern, (And, Or)):
        return ask(pattern)
    first, *others = (judged(child, ask) for child in pattern.patterns)
    for other in others:
        first = first & other if isinstance(pattern, And) else first | other
    return first


class Pyramid:
    """The blocks of an order, pairs of them, pairs of pairs, ... up to whole classes."""

    def __init__(self, order: Order) -> None:
        self.order = order
        place = order.place.reshape(len(order.place), -1, BLOCK)
        step = np.gcd.reduce(np.diff(place, axis=2), axis=2)
        self.spans = [Progression(place[:, :, 0], place[:, :, -1], step)]
        while self.spans[-1].lo.shape[1] > 1:
            below = self.spans[-1]
            lo, hi, step = (_pairs(x) for x in (below.lo, below.hi, below.step))
            apart = np.gcd(np.gcd(step[0], step[1]), lo[1] - lo[0])
            self.spans.append(Progression(lo[0], hi[1], apart))
        self.told: dict[Pattern, list[Tri]] = {}

    def tell(self, leaf: Pattern, truth: Bools) -> None:
        """Note the truth, slot by slot, of a leaf that asks this side alone."""
        truth = truth.reshape(len(self.order.place), -1, BLOCK)
        levels = [Tri(truth.all(axis=2), truth.any(axis=2))]
        for _ in self.spans[1:]:
            must, may = _pairs(levels[-1].must), _pairs(levels[-1].may)
            levels.append(Tri(must[0] & must[1], may[0] | may[1]))
        self.told[leaf] = levels


def _pairs(x: Ints) -> tuple[Ints, Ints]:
    """The first and second of every two columns; the last one alone is its own second."""
    first, second = x[:, ::2], x[:, 1::2]
    return first, np.concatenate([second, first[:, second.shape[1] :]], axis=1)


def find(pattern: Pattern, queries: Order, keys: Order, most: float) -> Found | None:
    """The tiles a pattern may touch; None if there are more than `most`."""
    sides = Pyramid(queries), Pyramid(keys)
    for at, block, full, _ in _descent(pattern, sides):  # noqa: B007 - the last ones stay
        if len(full) > most:
            return None
    row, column = (
        a * side.spans[0].lo.shape[1] + b for a, b, side in zip(at, block, sides, strict=True)
    )
    order = np.lexsort((column, row))
    return Found(row[order], column[order], full[order])


def count(pattern: Pattern, queries: Order, keys: Order, most: float) -> float:
    """How many tiles `find` would find, settled regions not listed; about, if past `most`."""
    sides, total = (Pyramid(queries), Pyramid(keys)), 0.0
    for _, block, full, level in _descent(pattern, sides, keep_full=False):
        each = np.ones(len(full))
        for side, b in zip(sides, block, strict=True):
            each *= np.minimum(side.spans[0].lo.shape[1] - (b << level), 1 << level)
        settled = full if level else np.ones_like(full)
        total += float(each[settled].sum())
        if total > most or len(full) > most:
            return total + len(full)
    return total


Level = tuple[list[Ints], list[Ints], Bools, int]


def _descent(
    pattern: Pattern, sides: tuple[Pyramid, Pyramid], *, keep_full: bool = True
) -> Iterator[Level]:
    """Of every level, whole classes first: classes and numbers of the nodes left, which are full.

    Full ones are divided as the others are, or left behind.
    """
    for leaf in set(leaves(pattern)):
        queries, keys = (side.order.place for side in sides)
        if leaf(STILL, MOVING).every == 1:
            sides[0].tell(leaf, leaf(queries, np.full_like(queries, keys[0, 0])))
        elif leaf(MOVING, STILL).every == 1:
            sides[1].tell(leaf, leaf(np.full_like(keys, queries[0, 0]), keys))
    classes = [len(side.order.holds) for side in sides]
    at = [np.indices(classes)[i].ravel() for i in range(2)]  # class of every node
    block = [np.zeros_like(at[0]) for _ in sides]  # its number within the class, on this level
    full = np.zeros(len(at[0]), dtype=bool)
    height = max(len(side.spans) for side in sides)
    for level in reversed(range(height)):
        levels = [min(level, len(side.spans) - 1) for side in sides]
        if level < height - 1:
            if not keep_full:
                at, block, full = [a[~full] for a in at], [b[~full] for b in block], full[~full]
            child = np.arange(4)
            block = [
                (2 * b[:, None] + c).ravel()
                for b, c in zip(block, (child // 2, child % 2), strict=True)
            ]
            at, full = [np.repeat(a, 4) for a in at], np.repeat(full, 4)
            inside = np.ones(len(full), dtype=bool)
            for side, b, on in zip(sides, block, levels, strict=True):
                inside &= b < side.spans[on].lo.shape[1]
            at, block, full = [a[inside] for a in at], [b[inside] for b in block], full[inside]
        open_ = np.flatnonzero(~full)
        nodes = [a[open_] for a in at], [b[open_] for b in block]
        verdict = _verdict(pattern, sides, levels, *nodes)
        must, may = (np.broadcast_to(x, open_.shape) for x in (verdict.must, verdict.may))
        full[open_] = must & may
        keep = np.ones(len(full), dtype=bool)
        keep[open_] = may
        at, block, full = [a[keep] for a in at], [b[keep] for b in block], full[keep]
        yield at, block, full, level


def _verdict(
    pattern: Pattern,
    sides: tuple[Pyramid, Pyramid],
    levels: list[int],
    at: list[Ints],
    block: list[Ints],
) -> Tri:
    """What is known of a pattern on nodes (at, block) of the two pyramids."""
    spans = []
    for side, level, a, b in zip(sides, levels, at, block, strict=True):
        span = side.spans[level]
        spans.append(Progression(span.lo[a, b], span.hi[a, b], span.step[a, b]))

    def ask(leaf: Pattern) -> Tri:
        for side, level, a, b in zip(sides, levels, at, block, strict=True):
            if leaf in side.told:
                known = side.told[leaf][level]
                return Tri(known.must[a, b], known.may[a, b])
        verdict: Tri = leaf(*spans)
        return verdict

    return judged(pattern, ask)


def leaves(pattern: Pattern) -> list[Pattern]:
    """The parts of an expression of & | ~ that are none themselves."""
    if isinstance(pattern, (And, Or)):
        return [leaf for child in pattern.patterns for leaf in leaves(child)]
    return leaves(pattern.pattern) if isinstance(pattern, Not) else [pattern]
