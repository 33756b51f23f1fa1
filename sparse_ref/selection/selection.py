"""Selection: the keys, or blocks of keys, that the content chose for every query."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sparse_ref._arrays import LIMIT, Bools, Ints, integer, integers
from sparse_ref.layouts.csr import frame_csr
from sparse_ref.patterns import Causal, Frame, Pattern, PerHead
from sparse_ref.patterns.pattern import checked
from sparse_ref.patterns.relation import KeyRows, Relation

from .chosen import Chosen


@dataclass(frozen=True, eq=False)
class Selection:
    """Which key blocks each query may attend to: a table, where a pattern is a predicate.

    A query sees a key that is visible and either in one of its listed blocks or in `always`. Goes
    wherever a pattern goes: `attention`, `to_csr`, `to_blocks`, the kernels; `& pattern` narrows
    what is visible.

    Attributes
    ----------
    indices : int32 (b, s, rows, k)
        Row r holds the key blocks of queries r * query_block .. (r + 1) * query_block - 1 (counted
        from the first query given, not from position 0), ascending and unique, then -1. Block j
        is the keys at *positions* j * key_block .. (j + 1) * key_block - 1, in whatever slots.
        Given in any order, with -1 anywhere, and sorted here. b is 1 (all batch rows alike) or the
        batch; s is 1, the key/value heads or the query heads, which read list h // (heads / s).
    heads, kv_heads : int
        Heads of the attention it was made for; default s, and `attention` takes what fits its own.
    query_block, key_block : int
        1 is token granularity.
    always : Pattern, optional
        Keys seen besides.
    counted : bool
        Whether `always` is among the indices already, and so part of their budget.
    visible : Pattern
        What a query could have seen; listed or not, no other key is.

    Examples
    --------
    >>> print(Selection([[[[0], [1], [2], [0]]]]).mask(4, 4)[0].astype(int))
    [[1 0 0 0]
     [0 1 0 0]
     [0 0 1 0]
     [1 0 0 0]]
    """

    indices: NDArray[np.int32]
    heads: Any = None
    kv_heads: Any = None
    query_block: int = 1
    key_block: int = 1
    always: Pattern | None = None
    counted: bool = False
    visible: Pattern = Causal()  # noqa: RUF009 - a value, like a number
    _lists: dict[tuple[int, int], Relation] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        table = _sorted(integers("indices", self.indices, ndim=4))
        s = table.shape[1]
        heads = s if self.heads is None else integer("heads", self.heads, 1)
        kv_heads = self.kv_heads
        if kv_heads is None:
            kv_heads = heads if s == 1 else s
        kv_heads = integer("kv_heads", kv_heads, 1)
        if heads % kv_heads:
            raise ValueError(f"kv_heads must divide the {heads} heads, got {kv_heads}")
        if s not in (1, kv_heads, heads):
            raise ValueError(
                f"indices must have 1, kv_heads ({kv_heads}) or heads ({heads}) lists, got {s}"
            )
        values = {
            "indices": table,
            "heads": heads,
            "kv_heads": kv_heads,
            "query_block": integer("query_block", self.query_block, 1),
            "key_block": integer("key_block", self.key_block, 1),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        for name in ("visible",) if self.always is None else ("visible", "always"):
            if checked(getattr(self, name), name).multiset:
                raise ValueError(f"{name} must be a set, got {getattr(self, name)!r}")
        if not isinstance(self.counted, bool):
            raise TypeError(f"counted must be True or False, got {self.counted!r}")

    @staticmethod
    def of_sorted(table: NDArray[np.int32], **fields: Any) -> Selection:
        """A Selection of indices that are sorted and unique by construction."""
        made = Selection(table[:, :, :0, :0], **fields)
        return made._changed(indices=table)

    def __repr__(self) -> str:
        b, s, rows, k = self.indices.shape
        return (
            f"<Selection of at most {k} of blocks of {self.key_block} keys for {rows} rows of "
            f"{self.query_block}: batch {b}, lists {s}, heads {self.heads}>"
        )

    @cached_property
    def counts(self) -> NDArray[np.int32]:
        """How many blocks are listed, (b, s, rows)."""
        return np.asarray(np.count_nonzero(self.indices >= 0, axis=-1), dtype=np.int32)

    def __and__(self, pattern: Pattern) -> Selection:
        return self._changed(visible=self.visible & checked(pattern, "the right side of &"))

    def fit(self, batch: int, heads: int, kv_heads: int, q_len: int) -> Selection:
        """The same for an attention of these sizes, or an error that says what does not fit."""
        b, s, rows, _ = self.indices.shape
        if b not in (1, batch):
            raise ValueError(f"selection must be for a batch of {batch}, got one for {b}")
        for pattern in (self.visible, self.always):
            if pattern is not None and pattern.batches not in (None, batch):
                raise ValueError(
                    f"selection must be for a batch of {batch}, got {pattern!r} in one for "
                    f"{pattern.batches}"
                )
        if s not in (1, kv_heads, heads):
            raise ValueError(
                f"selection must have 1, {kv_heads} or {heads} lists of keys a query, got {s}"
            )
        if rows != -(-q_len // self.query_block):
            raise ValueError(
                f"selection must have {-(-q_len // self.query_block)} rows for {q_len} queries in "
                f"blocks of {self.query_block}, got {rows}"
            )
        return self._changed(heads=heads, kv_heads=kv_heads)

    def for_batch(self, batch: int) -> Selection:
        """That of one batch row, as `Pattern.for_batch`."""
        one = min(batch, self.indices.shape[0] - 1)
        return replace(
            self,
            indices=self.indices[one : one + 1],
            visible=self.visible.for_batch(batch),
            always=None if self.always is None else self.always.for_batch(batch),
        )

    def least_keys(self, q_len: int) -> int:
        """The fewest keys that an attention of `q_len` queries over it can be meant for."""
        last = int(self.indices.max(initial=-1)) * self.key_block + 1
        return max(q_len, last, self.visible.covers or 0)

    def list_of(self, head: int) -> int:
        """Which list of keys a query head reads."""
        return int(head // (self.heads // self.indices.shape[1]))

    def pattern(self, head: int = 0, *, batch: int = 0, q_start: int = 0) -> Pattern:
        """One head of one batch row as a pattern; `q_start` is the position of its first query."""
        b = self.indices.shape[0]
        batch = integer("batch", batch, 0, LIMIT - 1 if b == 1 else b - 1)
        which = min(batch, b - 1), self.list_of(integer("head", head, 0, self.heads - 1))
        if which not in self._lists:
            self._lists[which] = _relation(self.indices[which])
        visible = self.visible.for_batch(batch).at(head)
        listed = Chosen(self._lists[which], self.query_block, self.key_block, q_start) & visible
        if self.always is None or self.counted:
            return listed
        return listed | (self.always.for_batch(batch).at(head) & visible)

    def lowered(
        self, q_len: int, kv_len: int, *, q_start: int | None, batch: int, heads: int | None
    ) -> Pattern:
        """One batch row as a pattern of all heads, for readers that know patterns only."""
        m, n = integer("q_len", q_len), integer("kv_len", kv_len)
        s, of = self.indices.shape[1], self
        if heads is not None and heads > 1:
            of = self.fit(self.indices.shape[0], heads, s if heads % s == 0 else heads, m)
        start = n - m if q_start is None else integer("q_start", q_start, None)
        every = [of.pattern(head, batch=batch, q_start=start) for head in range(of.heads)]
        return every[0] if len(every) == 1 else PerHead(every)

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
        """The dense mask (heads, q_len, kv_len) of one batch row, as `Pattern.mask`.

        >>> two = Selection([[[[0], [1]], [[0], [0]]]], heads=4)
        >>> two.mask(2, 2).astype(int).tolist()
        [[[1, 0], [0, 1]], [[1, 0], [0, 1]], [[1, 0], [1, 0]], [[1, 0], [1, 0]]]
        """
        one = self.lowered(q_len, kv_len, q_start=q_start, batch=batch, heads=heads)
        return one.mask(
            q_len, kv_len, heads=heads or self.heads, q_start=q_start, kv_positions=kv_positions
        )

    def _changed(self, **values: Any) -> Selection:
        """A copy; what was checked and sorted once is not again."""
        new = copy(self)
        for name, value in values.items():
            object.__setattr__(new, name, value)
        return new

    def row_csr(self, frame: Frame, batch: int, head: int) -> sparse.csr_array[Any]:
        """The keys of every query of one head as CSR over the key slots of `frame`."""
        start = int(frame.q[0]) if len(frame.q) else 0
        return frame_csr(self.pattern(head, batch=batch, q_start=start), frame)


def _sorted(given: Ints) -> NDArray[np.int32]:
    """The rows in ascending order, -1 last; duplicates would count a key twice."""
    if given.size and int(given.min()) < -1:
        raise ValueError(f"indices must be >= -1, got {int(given.min())}")
    table = np.where(given < 0, LIMIT - 1, given)
    table.sort(axis=-1)
    double = (table[..., 1:] == table[..., :-1]) & (table[..., 1:] < LIMIT - 1)
    if double.any():
        wrong = int(table[..., 1:][double][0])
        raise ValueError(f"indices must be unique in every row, got {wrong} twice")
    table[table == LIMIT - 1] = -1
    final = table.astype(np.int32)
    final.setflags(write=False)
    return final


def _relation(rows: NDArray[np.int32]) -> Relation:
    """One list of blocks a row, (rows, k), without the -1."""
    listed = rows >= 0
    indptr = np.append(0, np.cumsum(listed.sum(axis=-1)))
    return Relation(KeyRows(indptr, rows[listed].astype(np.int64)))
