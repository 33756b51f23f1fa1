"""Calls with another pattern, other positions or other lengths than were asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sparse_ref.conformance.case import Call
from sparse_ref.conformance.mistakes import Outcome, changed
from sparse_ref.patterns import And, Global, Keys, Multi, Or, Pattern, PerHead, Rows, from_mask


def starting(place: Callable[[Call], Any]) -> Callable[[Call], Outcome | None]:
    """The mistake of placing the queries elsewhere."""

    def change(call: Call) -> Call | None:
        at = place(call)
        return None if at is None else call._replace(attributes={**call.attributes, "q_start": at})

    return changed(change)


def start(call: Call) -> Any:
    """Where the queries start, an int or one for each row of the batch."""
    given = call.attributes.get("q_start")
    return call.k.shape[2] - call.q.shape[2] if given is None else given


def twice(call: Call) -> Call | None:
    """Each member of a union on its own, so that what two members see counts twice."""

    def parts(pattern: Pattern) -> list[Pattern]:
        if isinstance(pattern, Or):
            return list(pattern.patterns)
        if isinstance(pattern, Global):
            return [Keys(pattern.tokens), Rows(pattern.tokens)]
        if isinstance(pattern, And):
            for i, member in enumerate(pattern.patterns):
                if len(found := parts(member)) > 1:
                    others = [x for j, x in enumerate(pattern.patterns) if j != i]
                    return [intersection([one, *others]) for one in found]
        return [pattern]

    if call.pattern.heads > 1 or call.pattern.multiset:
        return None
    found = parts(call.pattern)
    return None if len(found) < 2 else call._replace(pattern=Multi(found))


def intersection(patterns: list[Pattern]) -> Pattern:
    """What all of them allow."""
    joined = patterns[0]
    for one in patterns[1:]:
        joined = joined & one
    return joined


def without_tail(size: int) -> Callable[[Call], Outcome | None]:
    """The mistake of forgetting the keys past the last whole block."""

    def change(call: Call) -> Call | None:
        n = call.k.shape[2]
        rest = n % size
        if not rest or call.pattern.multiset:
            return None
        return call._replace(pattern=call.pattern & Keys(range(n - rest)))

    return changed(change)


def first_head(call: Call) -> Call | None:
    """The pattern of head 0 for all."""
    return call._replace(pattern=call.pattern.at(0)) if call.pattern.heads > 1 else None


def next_head(call: Call) -> Call | None:
    """For every head the pattern of the one after it."""
    one = call.pattern
    if one.heads < 2:
        return None
    return call._replace(pattern=PerHead([one.at((h + 1) % one.heads) for h in range(one.heads)]))


def complement(call: Call) -> Call | None:
    """What is hidden, shown."""
    if call.pattern.multiset:
        return None
    turned = [~call.pattern.at(h) for h in range(call.pattern.heads)]
    return call._replace(pattern=turned[0] if len(turned) == 1 else PerHead(turned))


def transposed(call: Call) -> Call | None:
    """Queries and keys change places."""
    m, n = call.q.shape[2], call.k.shape[2]
    if m != n or call.pattern.multiset or "q_start" in call.attributes:
        return None
    masks = call.pattern.mask(m, n).swapaxes(1, 2)
    if n > 256:
        return None
    return call._replace(pattern=PerHead([from_mask(np.ascontiguousarray(x)) for x in masks]))


def lengths(by: int | None) -> Callable[[Call], Outcome | None]:
    """The mistake of other lengths of keys; None ignores them."""

    def change(call: Call) -> Call | None:
        if "kv_lengths" not in call.attributes:
            return None
        attributes = dict(call.attributes)
        if by is None:
            del attributes["kv_lengths"]
        else:
            n = call.k.shape[2]
            attributes["kv_lengths"] = np.clip(np.asarray(attributes["kv_lengths"]) + by, 0, n)
        return call._replace(attributes=attributes)

    return changed(change)


def union(pattern: Pattern) -> Pattern:
    """A multiset as a set."""
    parts = list(pattern.parts)
    joined = parts[0]
    for part in parts[1:]:
        joined = joined | part
    return joined
