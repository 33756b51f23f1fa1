"""Patterns with some of their parts taken for others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparse_ref.conformance.case import Call
from sparse_ref.conformance.mistakes import Outcome, changed
from sparse_ref.patterns import (
    And,
    Blocked,
    Full,
    Multi,
    Not,
    Or,
    Pattern,
    PerBatch,
    PerHead,
    SlidingWindow,
)

NOTHING = ~Full()
Rewrite = Callable[[Any], "Pattern | None"]


def rewritten(pattern: Pattern, leaf: Rewrite) -> Pattern | None:
    """The pattern with each leaf that `leaf` answers for replaced; None if there is none."""
    if isinstance(pattern, (And, Or, PerHead, PerBatch, Multi)):
        parts = [rewritten(part, leaf) for part in pattern.patterns]
        if all(part is None for part in parts):
            return None
        kept = [
            old if new is None else new for old, new in zip(pattern.patterns, parts, strict=True)
        ]
        if isinstance(pattern, (And, Or)):
            joined = kept[0]
            for part in kept[1:]:
                joined = joined & part if isinstance(pattern, And) else joined | part
            return joined
        return type(pattern)(kept)
    if isinstance(pattern, (Not, Blocked)):
        inner = rewritten(pattern.pattern, leaf)
        if inner is None:
            return None
        return ~inner if isinstance(pattern, Not) else Blocked(inner, pattern.block_size)
    return leaf(pattern)


def leaves(pattern: Pattern, kind: type) -> list[Any]:
    """The leaves of a kind, in order."""
    found: list[Any] = []
    rewritten(pattern, found.append)
    return [one for one in found if isinstance(one, kind)]


def instead(kind: type | tuple[type, ...], leaf: Rewrite) -> Callable[[Call], Outcome | None]:
    """The mistake of taking each leaf of a kind for another."""

    def change(call: Call) -> Call | None:
        other = rewritten(call.pattern, lambda one: leaf(one) if isinstance(one, kind) else None)
        return None if other is None else call._replace(pattern=other)

    return changed(change)


def window(
    left: Callable[[int], int] | None = None, right: Callable[[int], int] | None = None
) -> Callable[[Call], Outcome | None]:
    """The mistake of other sides of every window; a side below 0 excludes the query too."""

    def leaf(one: SlidingWindow) -> Pattern | None:
        sides: list[int | None] = []
        for side, change in ((one.left, left), (one.right, right)):
            sides.append(side if side is None or change is None else change(side))
        if sides == [one.left, one.right]:
            return None
        far, near = (None if side is None else max(side, 0) for side in sides)
        other: Pattern = SlidingWindow(far, near, dilation=one.dilation)
        return other - SlidingWindow(0, 0) if -1 in sides else other

    return instead(SlidingWindow, leaf)


def blocked(kind: type | tuple[type, ...], size: int) -> Callable[[Call], Outcome | None]:
    """The mistake of asking about blocks where tokens are meant."""

    def leaf(one: Any) -> Pattern:
        if isinstance(one, SlidingWindow):
            sides = [None if s is None else -(-s // size) for s in (one.left, one.right)]
            return Blocked(SlidingWindow(sides[0], sides[1]), size)
        return Blocked(one, size)

    return instead(kind, leaf)
