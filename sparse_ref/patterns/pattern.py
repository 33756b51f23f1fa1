"""Pattern: which keys a query may attend to, as one predicate on absolute positions.

A pattern is a frozen dataclass whose `__call__(q, k)` is written with operators only: `+ - * // %
abs`, one comparison at a time, `& | ~` on the results, look-ups in a table, set or relation, and
loops over fields. The same code then runs on NumPy grids (the mask), on `Span`s (block layouts),
on `Drift`s (the period), and on the tensors and graph symbols of the exporters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, NoReturn, cast

import numpy as np

from sparse_ref._arrays import Bools, Ints

from . import descent
from .dense import dense, frame_of
from .relation import KeyRows

Predicate = Callable[[Any, Any, Any], Any]


class Pattern:
    """A set of (query, key) pairs; combine with `&`, `|`, `~` and `-` (and-not).

    `heads` is the number of distinct heads, `at(head)` the pattern of one of them.

    >>> from sparse_ref import Causal, SlidingWindow
    >>> near = Causal() & SlidingWindow(1, 1)
    >>> near(5, 4), near(5, 6), near == SlidingWindow(1, 1) & Causal()
    (True, False, False)
    """

    def __init_subclass__(cls) -> None:
        if "__call__" in vars(cls):
            cls.__call__ = _total(vars(cls)["__call__"])  # type: ignore[method-assign,assignment]

    def __call__(self, q: Any, k: Any) -> Any:
        """Whether query position `q` may attend to key position `k`, elementwise."""
        raise NotImplementedError

    def __and__(self, other: Pattern) -> Pattern:
        return _combined("And", (self, _pattern("&", other)))

    def __or__(self, other: Pattern) -> Pattern:
        return _combined("Or", (self, _pattern("|", other)))

    def __sub__(self, other: Pattern) -> Pattern:
        return self & ~_pattern("-", other)

    def __invert__(self) -> Pattern:
        return _combined("Not", self)

    def __bool__(self) -> NoReturn:
        raise TypeError("a pattern has no truth value: combine patterns with & | ~, not and/or/not")

    @property
    def children(self) -> tuple[Pattern, ...]:
        """The patterns this one is made of."""
        found: list[Pattern] = []
        for field in fields(cast(Any, self)):
            value = getattr(self, field.name)
            found += [value] if isinstance(value, Pattern) else []
            found += value if field.name == "patterns" else []
        return tuple(found)

    @property
    def heads(self) -> int:
        """The number of distinct heads: head h of a model has the pattern of h % heads."""
        return math.lcm(*(child.heads for child in self.children))

    @property
    def covers(self) -> int | None:
        """How many positions the pattern is defined for; None: all of them."""
        known = [child.covers for child in self.children]
        return min((c for c in known if c is not None), default=None)

    @property
    def multiset(self) -> bool:
        """Whether a key may count more than once (see `Multi`)."""
        return any(child.multiset for child in self.children)

    @property
    def explicit(self) -> bool:
        """Whether `rows` lists the keys from a table instead of searching for them."""
        return False

    def at(self, head: int) -> Pattern:
        """The head-free pattern of one head."""
        return self._with(lambda child: child.at(head))

    @property
    def batches(self) -> int | None:
        """The number of batch rows the pattern tells apart; None: all alike."""
        known = {child.batches for child in self.children} - {None}
        if len(known) > 1:
            raise ValueError(f"PerBatch parts must have one length, got {sorted(map(str, known))}")
        return known.pop() if known else None

    def for_batch(self, batch: int) -> Pattern:
        """The pattern of one batch row."""
        return self if self.batches is None else self._with(lambda child: child.for_batch(batch))

    @property
    def parts(self) -> tuple[Pattern, ...]:
        """The sets whose sum a multiset is; a set is its own only part."""
        return (self,)

    def _with(self, change: Callable[[Pattern], Pattern]) -> Pattern:
        """The same pattern with every child changed; itself if none of them is."""
        new: dict[str, Any] = {}
        for field in fields(cast(Any, self)):
            value = getattr(self, field.name)
            if isinstance(value, Pattern):
                changed = change(value)
                new |= {field.name: changed} if changed is not value else {}
            elif field.name == "patterns":
                several = tuple(change(child) for child in value)
                alike = all(a is b for a, b in zip(several, value, strict=True))
                new |= {} if alike else {"patterns": several}
        return replace(cast(Any, self), **new) if new else self

    def rows(self, start: int, stop: int, keys: int | Ints | None = None) -> KeyRows:
        """The key slots that the queries at positions start..stop - 1 may see, as CSR rows.

        `keys` is the number of key slots (default `stop`), or the position of each slot; a slot
        with a negative position is empty.
        """
        q = np.arange(start, stop)
        if keys is None or isinstance(keys, int):
            return descent.rows(self, q, np.arange(max(stop, 0) if keys is None else keys))
        live = np.flatnonzero(keys >= 0)
        found = descent.rows(self, q, keys[live])
        return KeyRows(found.indptr, live[found.indices])

    def mask(
        self,
        q_len: int,
        kv_len: int,
        *,
        heads: int | None = None,
        q_start: int | None = None,
        kv_positions: object = None,
        batch: int = 0,
    ) -> Bools:
        """The pattern as a dense bool array (heads, q_len, kv_len), True = attend.

        Parameters
        ----------
        q_len, kv_len : int >= 0
            Numbers of queries m and key slots n.
        heads : int, optional
            Number of heads (default `self.heads`); head h has the pattern of h % self.heads.
        q_start : int, optional
            Absolute position of the first query; default n - m, the queries are the last.
        kv_positions : int (n,), optional
            Absolute position of each key slot, default 0..n - 1; a negative one is an empty slot.
        batch : int
            The batch row, for a `PerBatch`.

        Examples
        --------
        >>> from sparse_ref import Causal
        >>> Causal().mask(2, 3).astype(int)
        array([[[1, 1, 0],
                [1, 1, 1]]])
        """
        frame = frame_of(self, q_len, kv_len, q_start, kv_positions)
        return dense(self, frame, heads, batch, support=True).astype(bool)

    def counts(
        self,
        q_len: int,
        kv_len: int,
        *,
        heads: int | None = None,
        q_start: int | None = None,
        kv_positions: object = None,
        batch: int = 0,
    ) -> Ints:
        """How often each key counts: `mask` for sets, multiplicities for a `Multi`; int64."""
        frame = frame_of(self, q_len, kv_len, q_start, kv_positions)
        return dense(self, frame, heads, batch, support=False)


def _combined(kind: str, operand: object) -> Pattern:
    """And, Or or Not: patterns themselves, so their module comes after this one."""
    from . import algebra  # noqa: PLC0415

    return cast(Pattern, getattr(algebra, kind)(operand))


def _total(predicate: Predicate) -> Predicate:
    """Plain ints become np.int64 (`~True` is -2 in Python), literal answers become arrays."""

    @functools.wraps(predicate)
    def call(self: Any, q: Any, k: Any) -> Any:
        if type(q) is int and type(k) is int:
            return bool(call(self, np.int64(q), np.int64(k)))
        q = np.int64(q) if type(q) is int else q
        k = np.int64(k) if type(k) is int else k
        answer = predicate(self, q, k)
        if answer is not True and answer is not False:
            return answer
        if (constant := getattr(q, "constant", None)) is not None:
            return constant(answer)
        return (q == q) if answer else (q != q)  # noqa: PLR0124 - the type of q's own truths

    return call


def _pattern(sign: str, other: object) -> Pattern:
    return checked(other, f"the right side of {sign}")


def checked(pattern: object, name: str = "pattern") -> Pattern:
    """`pattern` itself, or an error that says what it is instead."""
    if not isinstance(pattern, Pattern):
        raise TypeError(f"{name} must be a pattern, got {pattern!r}")
    return pattern


def assign(owner: Pattern, **values: object) -> None:
    """Store the checked values of fields, from `__post_init__` of a frozen dataclass."""
    for name, value in values.items():
        object.__setattr__(owner, name, value)


def pattern_field(owner: Pattern, name: str, *, sets_only: bool = False) -> None:
    """Refuse a field that is not a pattern (or is a multiset where a set is needed)."""
    value = checked(getattr(owner, name), name)
    if sets_only and value.multiset:
        raise ValueError(f"{name} must be a set, got the multiset {value!r}")


def patterns_field(owner: Pattern, *, least: int = 1) -> None:
    """Turn the field `patterns` into a tuple of patterns, or refuse it."""
    given = owner.patterns  # type: ignore[attr-defined]
    if isinstance(given, Pattern):
        raise TypeError(f"patterns must be a sequence of patterns, got the one pattern {given!r}")
    try:
        members = tuple(given)
    except TypeError:
        raise TypeError(f"patterns must be a sequence of patterns, got {given!r}") from None
    if len(members) < least:
        raise ValueError(f"patterns must hold at least {least} pattern(s), got {len(members)}")
    for i, member in enumerate(members):
        if not isinstance(member, Pattern):
            raise TypeError(f"patterns[{i}] must be a pattern, got {member!r}")
    assign(owner, patterns=members)
