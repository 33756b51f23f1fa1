"""Patterns of chosen tokens: global tokens, residues, packed documents, explicit lists."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sparse_ref._arrays import Ints, integer

from .pattern import Pattern, assign
from .relation import KeyRows, Relation, relation_of
from .tables import IntegerSet, Runtime, Table


def _tokens(owner: Pattern, name: str = "tokens") -> None:
    value = getattr(owner, name)
    if not isinstance(value, Runtime):
        assign(owner, **{name: IntegerSet(name, value)})


@dataclass(frozen=True)
class Keys(Pattern):
    """Keys at the given positions, seen by every query (prompt columns, sinks; verticals).

    `tokens`: ints, a range, a bool table over positions, or a `Runtime`.

    >>> from sparse_ref import draw
    >>> print(draw(Keys([0, 2]), 2, 4))
    # . # .
    # . # .
    """

    tokens: Any

    def __post_init__(self) -> None:
        _tokens(self)

    def __call__(self, q: Any, k: Any) -> Any:
        return self.tokens[k]


@dataclass(frozen=True)
class Rows(Pattern):
    """Queries at the given positions see every key. `tokens` as for `Keys`.

    >>> from sparse_ref import draw
    >>> print(draw(Rows([1]), 3))
    . . .
    # # #
    . . .
    """

    tokens: Any

    def __post_init__(self) -> None:
        _tokens(self)

    def __call__(self, q: Any, k: Any) -> Any:
        return self.tokens[q]


@dataclass(frozen=True)
class Global(Pattern):
    """Tokens that see all and are seen by all (Longformer, arXiv:2004.05150). As for `Keys`.

    >>> from sparse_ref import draw
    >>> print(draw(Global([0]), 3))
    # # #
    # . .
    # . .
    """

    tokens: Any

    def __post_init__(self) -> None:
        _tokens(self)

    def __call__(self, q: Any, k: Any) -> Any:
        return self.tokens[q] | self.tokens[k]


@dataclass(frozen=True)
class KeyStride(Pattern):
    """Keys with `k % period in residues`: summary columns (Sparse Transformer, arXiv:1904.10509).

    >>> from sparse_ref import draw
    >>> print(draw(KeyStride(3, [2]), 2, 6))
    . . # . . #
    . . # . . #
    """

    period: int
    residues: Any

    def __post_init__(self) -> None:
        _residues(self)

    def __call__(self, q: Any, k: Any) -> Any:
        return self.residues[k % self.period]


@dataclass(frozen=True)
class RowStride(Pattern):
    """Queries with `q % period in residues` see every key (LongNet's rows, arXiv:2307.02486).

    >>> from sparse_ref import draw
    >>> print(draw(RowStride(2, [0]), 3))
    # # #
    . . .
    # # #
    """

    period: int
    residues: Any

    def __post_init__(self) -> None:
        _residues(self)

    def __call__(self, q: Any, k: Any) -> Any:
        return self.residues[q % self.period]


def _residues(owner: Any) -> None:
    period = integer("period", owner.period, 1)
    residues = IntegerSet("residues", owner.residues)
    for residue in residues:
        if residue >= period:
            raise ValueError(f"residues must be below period = {period}, got {residue}")
    assign(owner, period=period, residues=residues)


@dataclass(frozen=True)
class Document(Pattern):
    """Queries see the keys of their own document: packed sequences, block-diagonal attention.

    `ids[p]` is the document of position p; a negative id belongs to none, not even to itself.
    `key_ids` (default `ids`) are the documents of the keys, for cross-attention.

    >>> from sparse_ref import draw
    >>> print(draw(Document([0, 0, -1, 1]), 4))
    # # . .
    # # . .
    . . . .
    . . . #
    """

    ids: Any
    key_ids: Any = None

    def __post_init__(self) -> None:
        _ids(self, "ids")
        if self.key_ids is not None:
            _ids(self, "key_ids")

    def __call__(self, q: Any, k: Any) -> Any:
        mine, theirs = self.ids[q], self._theirs[k]
        allowed = (mine == theirs) & (mine >= 0)
        for first, last in self._extents:  # keeps intervals tight around interleaved documents
            allowed = allowed & (k >= first[q]) & (k <= last[q])
        return allowed

    @property
    def covers(self) -> int | None:
        return None if isinstance(self.ids, Runtime) else len(self.ids)

    @property
    def _theirs(self) -> Any:
        return self.ids if self.key_ids is None else self.key_ids

    @cached_property
    def _extents(self) -> tuple[tuple[Table, Table], ...]:
        """The first and last key of each query's document; unknown for run-time ids."""
        if isinstance(self.ids, Runtime) or isinstance(self._theirs, Runtime):
            return ()
        named, first, last = _ends(self._theirs.values)
        at = np.searchsorted(named, self.ids.values)
        known = (np.append(named, -1)[at] == self.ids.values) & (self.ids.values >= 0)
        end = len(self._theirs)  # an empty extent that widens no interval around it
        low, high = np.append(first, end)[at], np.append(last, -1)[at]
        return ((Table(np.where(known, low, end), end), Table(np.where(known, high, -1), -1)),)


def _ends(ids: Ints) -> tuple[Ints, Ints, Ints]:
    named, first = np.unique(ids, return_index=True)
    last = len(ids) - 1 - np.unique(ids[::-1], return_index=True)[1]
    return named, first, last


def _ids(owner: Pattern, name: str) -> None:
    value = getattr(owner, name)
    if not isinstance(value, (Runtime, Table)):
        assign(owner, **{name: Table(value, fill=-1, name=name)})


@dataclass(frozen=True)
class Tokens(Pattern):
    """An explicit list of keys for every query: a SciPy CSR array or a dense bool mask (2-D).

    Stored entries are allowed whatever their value; a stored zero is refused.

    >>> from sparse_ref import draw
    >>> print(draw(Tokens(np.array([[True, False], [True, True]])), 2))
    # .
    # #
    """

    csr: Any

    def __post_init__(self) -> None:
        if not isinstance(self.csr, Relation):
            assign(self, csr=relation_of("csr", self.csr))

    def __call__(self, q: Any, k: Any) -> Any:
        return self.csr[q, k]

    @property
    def covers(self) -> int | None:
        return len(self.csr)

    @property
    def explicit(self) -> bool:
        return True

    def rows(self, start: int, stop: int, keys: int | Ints | None = None) -> KeyRows:
        return self.csr.slice(start, stop).over(max(stop, 0) if keys is None else keys)  # type: ignore[no-any-return]
