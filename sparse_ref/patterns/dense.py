"""The dense reading of a pattern: its predicate on grids of absolute positions."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sparse_ref._arrays import Ints, integer, integers

if TYPE_CHECKING:
    from .pattern import Pattern


class Frame(NamedTuple):
    """The absolute positions of the queries (m,) and of the key slots (n,) of one batch row."""

    q: Ints
    k: Ints

    @property
    def keys(self) -> int | Ints:
        """The key slots as `Pattern.rows` takes them: a number where slot j has position j."""
        plain = np.array_equal(self.k, np.arange(len(self.k)))
        return len(self.k) if plain else self.k


def frame_of(
    pattern: Pattern,
    q_len: int,
    kv_len: int,
    q_start: int | None = None,
    kv_positions: object = None,
) -> Frame:
    """Checked positions of the queries and the key slots."""
    m, n = integer("q_len", q_len), integer("kv_len", kv_len)
    start = n - m if q_start is None else integer("q_start", q_start, None)
    k = np.arange(n) if kv_positions is None else integers("kv_positions", kv_positions)
    if len(k) != n:
        raise ValueError(f"kv_positions must have kv_len = {n} entries, got {len(k)}")
    end = min(start + m, int(k.max(initial=-1)) + 1)
    if pattern.covers is not None and m and end > pattern.covers:
        raise ValueError(
            f"q_len, kv_len must stay within the {pattern.covers} positions that {pattern!r} "
            f"covers, got a query at position {end - 1}"
        )
    return Frame(np.arange(start, start + m), k)


def dense(pattern: Pattern, frame: Frame, heads: int | None, batch: int, *, support: bool) -> Ints:
    """Multiplicities (heads, m, n) of every pair, or of its support only 1."""
    heads = pattern.heads if heads is None else integer("heads", heads, 1)
    row = one_row(pattern, batch)
    q, k = frame.q[:, None], frame.k[None, :]
    shape, filled = (len(frame.q), len(frame.k)), k >= 0
    distinct = []
    for head in range(min(heads, row.heads)):
        one = row.at(head)
        parts = (one,) if support else one.parts
        total = functools.reduce(operator.add, (np.int64(1) * part(q, k) for part in parts))
        distinct.append(np.broadcast_to(total * filled, shape))
    return np.stack([distinct[head % row.heads] for head in range(heads)])


def one_row(pattern: Pattern, batch: int) -> Pattern:
    """The pattern of one batch row."""
    if pattern.batches is None:
        return pattern
    return pattern.for_batch(integer("batch", batch, 0, pattern.batches - 1))
