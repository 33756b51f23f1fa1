"""The Boolean algebra of patterns: and, or, not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_ref._arrays import Ints

from .pattern import Pattern, pattern_field, patterns_field
from .relation import KeyRows


@dataclass(frozen=True, repr=False)
class And(Pattern):
    """Pairs that every one of `patterns` allows; the first may be a multiset, whose parts are cut.

    >>> from sparse_ref import Causal, SlidingWindow, draw
    >>> print(draw(Causal() & SlidingWindow(left=1, right=1), 3))
    # . .
    # # .
    . # #
    """

    patterns: tuple[Pattern, ...]

    def __post_init__(self) -> None:
        patterns_field(self)
        flat: list[Pattern] = []
        for member in self.patterns:
            flat += member.patterns if isinstance(member, And) else [member]
        for member in flat[1:]:
            if member.multiset:
                raise ValueError(f"a multiset must stand on the left of & and -, got {member!r}")
        object.__setattr__(self, "patterns", tuple(flat))

    def __call__(self, q: Any, k: Any) -> Any:
        allowed: Any = True
        for pattern in self.patterns:
            allowed = allowed & pattern(q, k)
        return allowed

    def __repr__(self) -> str:
        return " & ".join(_bracketed(p) for p in self.patterns)

    @property
    def explicit(self) -> bool:
        return any(p.explicit for p in self.patterns)

    @property
    def parts(self) -> tuple[Pattern, ...]:
        return tuple(And((part, *self.patterns[1:])) for part in self.patterns[0].parts)

    def rows(self, start: int, stop: int, keys: int | Ints | None = None) -> KeyRows:
        if not self.explicit:
            return super().rows(start, stop, keys)
        listed = next(p for p in self.patterns if p.explicit)
        found = listed.rows(start, stop, keys)
        slots = found.indices if keys is None or isinstance(keys, int) else keys[found.indices]
        return found.keep(self(start + found.row_of, slots))


@dataclass(frozen=True, repr=False)
class Or(Pattern):
    """Pairs that at least one of `patterns` allows.

    >>> from sparse_ref import Causal, PrefixLM, Sink
    >>> bool(((Causal() | Sink(3)).mask(5, 5) == PrefixLM(3).mask(5, 5)).all())
    True
    """

    patterns: tuple[Pattern, ...]

    def __post_init__(self) -> None:
        patterns_field(self)
        flat: list[Pattern] = []
        for member in self.patterns:
            flat += member.patterns if isinstance(member, Or) else [member]
        for member in flat:
            if member.multiset:
                raise ValueError(f"| must join sets, got the multiset {member!r}; use Multi")
        object.__setattr__(self, "patterns", tuple(flat))

    def __call__(self, q: Any, k: Any) -> Any:
        allowed: Any = False
        for pattern in self.patterns:
            allowed = allowed | pattern(q, k)
        return allowed

    def __repr__(self) -> str:
        return " | ".join(_bracketed(p) for p in self.patterns)

    @property
    def explicit(self) -> bool:
        return all(p.explicit for p in self.patterns)

    def rows(self, start: int, stop: int, keys: int | Ints | None = None) -> KeyRows:
        if not any(p.explicit for p in self.patterns):
            return super().rows(start, stop, keys)
        return union([p.rows(start, stop, keys) for p in self.patterns])


@dataclass(frozen=True, repr=False)
class Not(Pattern):
    """Pairs that `pattern` does not allow.

    >>> from sparse_ref import Causal
    >>> (~Causal())(2, 3), ~~Causal() == Causal()
    (True, True)
    """

    pattern: Pattern

    def __post_init__(self) -> None:
        pattern_field(self, "pattern", sets_only=True)

    def __call__(self, q: Any, k: Any) -> Any:
        return ~self.pattern(q, k)

    def __invert__(self) -> Pattern:
        return self.pattern

    def _with(self, change: Callable[[Pattern], Pattern]) -> Pattern:
        return ~change(self.pattern)

    def __repr__(self) -> str:
        return "~" + _bracketed(self.pattern)


def union(several: list[KeyRows]) -> KeyRows:
    """The rows that hold every key of any of `several`."""
    row = np.concatenate([rows.row_of for rows in several])
    key = np.concatenate([rows.indices for rows in several])
    return KeyRows.of(row, key, len(several[0].indptr) - 1, ordered=False)


def _bracketed(pattern: Pattern) -> str:
    return f"({pattern!r})" if isinstance(pattern, (And, Or)) else repr(pattern)
