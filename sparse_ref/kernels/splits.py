"""A pattern as disjoint parts that want to be computed in different ways.

The Sparse Transformer's strided pattern is a window, best in the order of the sequence, and every
64th key, best dealt by residues. `a | b` is the disjoint sum of a and b & ~a; under an `&` it is
distributed first.
"""

from __future__ import annotations

from collections.abc import Iterator

from sparse_ref._arrays import Ints
from sparse_ref.patterns import And, Global, Keys, Or, Pattern, Rows

from .orders import scattered, used
from .progressions import periods

MOST = 16  # members of a union: past it, a pattern is not taken apart
Want = tuple[bool, bool, bool, tuple[int, ...]]


def disjoint(pattern: Pattern, q: Ints, k: Ints) -> list[Pattern]:
    """Sets whose disjoint sum is the pattern, one for each way its members want.

    >>> import numpy as np, sparse_ref as sr
    >>> x = np.arange(512)
    >>> disjoint(sr.Causal() & (sr.SlidingWindow(63, 0) | sr.Strided(64) | sr.Sink(4)), x, x)[0]
    (Causal() & SlidingWindow(left=63, right=0, dilation=1)) | (Causal() & Sink(count=4))
    """
    members = list(_members(pattern))
    if len(members) == 1 or len(members) > MOST:
        return [pattern]
    groups: dict[Want, list[Pattern]] = {}
    for member in members:
        groups.setdefault(_want(member, q, k), []).append(member)
    if len(groups) == 1:
        return [pattern]
    parts: list[Pattern] = []
    unions: list[Pattern] = []
    for want in sorted(groups):  # what wants nothing first: it has a place for every query
        some = groups[want]
        whole = part = some[0] if len(some) == 1 else Or(tuple(some))
        for before in unions:
            part = part & ~before
        parts.append(part)
        unions.append(whole)
    return parts


def _members(pattern: Pattern) -> Iterator[Pattern]:
    """The members of a union, an `&` with one distributed over it."""
    if isinstance(pattern, Or):
        for child in pattern.patterns:
            yield from _members(child)
    elif isinstance(pattern, Global):
        yield from (Rows(pattern.tokens), Keys(pattern.tokens))
    elif isinstance(pattern, And):
        for i, child in enumerate(pattern.patterns):
            if isinstance(child, (Or, Global)):
                before, after = pattern.patterns[:i], pattern.patterns[i + 1 :]
                for one in _members(child):
                    yield from _members(And((*before, one, *after)))
                return
        yield pattern
    else:
        yield pattern


def _want(member: Pattern, q: Ints, k: Ints) -> Want:
    """How a member wants to be computed: from a list, gathered, or dealt by a period."""
    if member.explicit:
        return True, False, False, ()
    queries, keys = used(member, q, k)
    return False, scattered(queries), scattered(keys), tuple(periods(member))
