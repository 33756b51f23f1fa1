"""What a predicate may look up: tables over positions, sets of integers, run-time inputs.

All three are total: any integer may be asked, outside the table the answer is its `fill`. The index
may be a NumPy array or any other reading of a position (`Span`, `Drift`, a symbol): such an index
has a method `lookup`, and the table lets it answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import LIMIT, Bools, Ints, array, integer, integers


class Table:
    """A read-only table of integers over the positions 0, 1, ...; `fill` everywhere else.

    Equality and hash go by content: a SHA-256 taken once.

    >>> ids = Table([7, 7, 8], fill=-1)
    >>> ids[np.array([-1, 0, 2, 3])]
    array([-1,  7,  8, -1])
    """

    def __init__(self, values: object, fill: int = 0, name: str = "table") -> None:
        self.values = integers(name, values)
        self.values.setflags(write=False)
        self.fill = fill

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the fill and the values, as little-endian int64."""
        content = np.append(self.values, self.fill).astype("<i8")
        return hashlib.sha256(content.tobytes()).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        if len(self) <= 12:
            return repr(self.values.tolist())
        ends = [", ".join(map(str, part)) for part in (self.values[:3], self.values[-3:])]
        return f"[{ends[0]}, ..., {ends[1]}]  # {len(self)} entries"

    def __getitem__(self, index: Any) -> Any:
        lookup = getattr(index, "lookup", None)
        if lookup is not None:
            return lookup(self)
        index = np.asarray(index)
        if not len(self):
            return np.full(index.shape, self.fill)
        inside = (index >= 0) & (index < len(self))
        return np.where(inside, self.values[np.clip(index, 0, len(self) - 1)], self.fill)

    def extent(self, lo: Any, hi: Any) -> tuple[Any, Any]:
        """The least and the greatest value over the positions lo..hi, both inclusive."""
        if (delegate := getattr(lo, "extent_of", None)) is not None:
            return delegate(self, hi)  # type: ignore[no-any-return]
        lo, hi = np.broadcast_arrays(lo, hi)
        a, b = np.clip(lo, 0, len(self)), np.clip(hi + 1, 0, len(self))
        least, most = np.full(lo.shape, self.fill), np.full(lo.shape, self.fill)
        inside, leaks = b > a, (lo < 0) | (hi >= len(self))
        widths = np.where(inside, b - a, 1)
        level = np.frexp(widths)[1] - 1  # the two windows of 2**level that cover the interval
        for size in np.unique(level[inside]):
            at = inside & (level == size)
            low, high = self._pyramid[size]
            first, last = a[at], b[at] - (1 << int(size))
            low, high = np.minimum(low[first], low[last]), np.maximum(high[first], high[last])
            fill = np.where(leaks[at], self.fill, low), np.where(leaks[at], self.fill, high)
            least[at], most[at] = np.minimum(low, fill[0]), np.maximum(high, fill[1])
        return least, most

    @cached_property
    def _pyramid(self) -> list[tuple[Ints, Ints]]:
        """Minimum and maximum over every window of 1, 2, 4, ... entries."""
        levels = [(self.values, self.values)]
        step = 1
        while 2 * step <= len(self):
            low, high = levels[-1]
            levels.append(
                (np.minimum(low[:-step], low[step:]), np.maximum(high[:-step], high[step:]))
            )
            step *= 2
        return levels


class IntegerSet:
    """A set of integers in one canonical form, whatever it was written as.

    Stored as a `range` where it is one, else as a sorted tuple of at most 64 integers, else as a
    bool table; `members[x]` asks for membership with comparisons (or one table look-up) only.

    >>> IntegerSet("tokens", [3, 1, 2]) == IntegerSet("tokens", range(1, 4))
    True
    >>> IntegerSet("tokens", np.array([True, False, True]))[np.array([-1, 0, 1, 2])]
    array([False,  True, False,  True])
    """

    FEW, WIDEST = 64, 2**27

    def __init__(self, name: str, members: object, *, signed: bool = False) -> None:
        values = _listed(name, members)
        if not signed and values.size and values[0] < 0:
            raise ValueError(f"{name} must hold integers >= 0, got {values[0]}")
        step = int(values[1] - values[0]) if values.size > 1 else 1
        self.values: range | tuple[int, ...] | Table
        if values.size == 0:
            self.values = range(0)
        elif values.size <= 2 and step > 1:
            self.values = tuple(values.tolist())
        elif (np.diff(values) == step).all():
            self.values = range(int(values[0]), int(values[-1]) + 1, step)
        elif values.size <= self.FEW:
            self.values = tuple(values.tolist())
        else:
            self.low = int(values[0])
            if (reach := int(values[-1]) - self.low) >= self.WIDEST:
                raise ValueError(
                    f"{name} must lie within 2**27 positions when it has more than {self.FEW} "
                    f"members, got a reach of {reach}"
                )
            flags = np.zeros(int(values[-1]) - self.low + 1, dtype=np.int64)
            flags[values - self.low] = 1
            self.values = Table(flags)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntegerSet) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[object, ...]:
        return (self.values, getattr(self, "low", None))

    def __repr__(self) -> str:
        return f"{self.values!r}" if not isinstance(self.values, Table) else f"{len(self)} integers"

    def __iter__(self) -> Iterator[int]:
        if isinstance(self.values, Table):
            return iter((np.flatnonzero(self.values.values) + self.low).tolist())
        return iter(self.values)

    def __len__(self) -> int:
        return int(self.values.values.sum()) if isinstance(self.values, Table) else len(self.values)

    def __getitem__(self, x: Any) -> Any:
        if isinstance(self.values, Table):
            return self.values[x - self.low] == 1
        found: Any = False
        if isinstance(self.values, range):
            steps = (self.values.step,) if self.values.step > 1 else ()
            for start, stop in self._runs:
                found = (x >= start) & (x < stop)
                for step in steps:
                    found = found & ((x - start) % step == 0)
            return found
        for start, stop in self._runs:
            found = found | ((x >= start) & (x < stop))
        return found

    @cached_property
    def _runs(self) -> tuple[tuple[int, int], ...]:
        """The set as half-open runs of consecutive integers (a range is one, whatever its step)."""
        if isinstance(self.values, range):
            return ((self.values.start, self.values.stop),) if self.values else ()
        values = np.array(tuple(self), dtype=np.int64)
        starts = np.flatnonzero(np.diff(values, prepend=values[0] - 2) > 1)
        stops = np.append(starts[1:], values.size) - 1
        ends = zip(values[starts], values[stops] + 1, strict=True)
        return tuple((int(start), int(stop)) for start, stop in ends)


class Runtime:
    """In place of a table: its values arrive when an exported graph runs, as the input `name`.

    NumPy has no values to look up, so every NumPy reading of such a pattern refuses it by name.

    >>> from sparse_ref import Document
    >>> Document(Runtime("document_ids"))
    Document(ids=Runtime('document_ids'), key_ids=None)
    """

    __array_ufunc__ = None

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"name must be an identifier, got {name!r}")
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Runtime) and self.name == other.name

    def __hash__(self) -> int:
        return hash(("Runtime", self.name))

    def __repr__(self) -> str:
        return f"Runtime({self.name!r})"

    def __getitem__(self, index: Any) -> Any:
        lookup = getattr(index, "lookup", None)
        return self._refuse() if lookup is None else lookup(self)

    def extent(self, lo: Any, hi: Any) -> tuple[Any, Any]:
        """The range of the values over lo..hi, known to graph symbols only."""
        delegate = getattr(lo, "extent_of", None)
        return self._refuse() if delegate is None else delegate(self, hi)  # type: ignore[no-any-return]

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError(
            f"{self.name} is an input of an exported graph: a NumPy reading needs its values, "
            f"so build the pattern with an array in place of Runtime({self.name!r})"
        )

    __lt__ = __le__ = __gt__ = __ge__ = _refuse


def _listed(name: str, members: object) -> Ints:
    """The distinct members in ascending order; a bool table lists its True positions."""
    if isinstance(members, range):
        for end in (members.start, members.stop):
            integer(name, abs(end), high=LIMIT)
        return np.unique(np.arange(members.start, members.stop, members.step, dtype=np.int64))
    if isinstance(members, IntegerSet):
        return np.fromiter(members, dtype=np.int64)
    if isinstance(members, (set, frozenset)):
        members = sorted(members)
    got: NDArray[Any] | Bools = array(name, members)
    if got.dtype == bool:
        if got.ndim != 1:
            raise ValueError(f"{name} must be a bool table of 1 dimension, got shape {got.shape}")
        return np.flatnonzero(got).astype(np.int64)
    return np.unique(integers(name, got))
