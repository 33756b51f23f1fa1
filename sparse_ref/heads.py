"""One attention problem head by head: its arrays, and the allowed pairs in CSR order.

The oracle, its gradients and the error bound read their arguments through this; what they compute
stands in their own modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ._arrays import Floats, Ints
from .layouts.csr import frame_csr
from .patterns import Frame, Pattern
from .relative_bias import RelativeBias
from .selection import Selection

Csr = sparse.csr_array
CHUNK = 2**18  # allowed pairs looked at together: memory is this many rows of q and k


class Selectable(Protocol):
    """Anything that names the keys of each batch row and head (a content-based selection)."""

    def row_csr(self, frame: Frame, batch: int, head: int) -> Csr[Any]: ...


class Pairs(NamedTuple):
    """Some allowed pairs of one head: complete rows, in CSR order."""

    rows: slice
    indptr: Ints
    row: Ints  # of every pair, counted from rows.start
    key: Ints
    times: Floats  # how often the pair counts


@dataclass(frozen=True, eq=False)
class Head:
    """One query head of one batch row."""

    problem: Problem
    batch: int
    head: int
    frame: Frame
    csr: Csr[Any]

    @cached_property
    def q(self) -> Floats:
        """Queries (m, d), in float64."""
        return np.asarray(self.problem.q[self.batch, self.head], dtype=np.float64)

    @cached_property
    def k(self) -> Floats:
        """Keys (n, d) of this head's group, in float64."""
        return np.asarray(self.problem.k[self.batch, self.group], dtype=np.float64)

    @cached_property
    def v(self) -> Floats:
        """Values (n, e) of this head's group, in float64."""
        return np.asarray(self.problem.v[self.batch, self.group], dtype=np.float64)

    @property
    def group(self) -> int:
        """The key/value head it reads: query heads share them in contiguous groups."""
        return int(self.head // (self.problem.q.shape[1] // self.problem.k.shape[1]))

    @property
    def sink(self) -> float:
        """The sink logit; -inf is none."""
        sinks = self.problem.sink_logits
        return -np.inf if sinks is None else float(sinks[self.head])

    def pairs(self) -> Iterator[Pairs]:
        """The allowed pairs, whole rows at a time and about `CHUNK` pairs together."""
        indptr = self.csr.indptr.astype(np.int64)
        start, m = 0, len(indptr) - 1
        while start < m:
            stop = int(np.searchsorted(indptr, indptr[start] + CHUNK, side="right")) - 1
            stop = min(max(stop, start + 1), m)
            cut = slice(indptr[start], indptr[stop])
            local = indptr[start : stop + 1] - indptr[start]
            yield Pairs(
                slice(start, stop),
                local,
                np.repeat(np.arange(stop - start), np.diff(local)),
                self.csr.indices[cut].astype(np.int64),
                self.csr.data[cut].astype(np.float64),
            )
            start = stop

    def bias_index(self, pairs: Pairs) -> Ints:
        """Flat index into the bias's own array of the entry of every pair."""
        bias, row = self.problem.bias, pairs.row + pairs.rows.start
        if isinstance(bias, RelativeBias):
            return bias.index(self.frame.k[pairs.key] - self.frame.q[row], self.head)
        assert bias is not None
        at = (*self.problem.leading(self.batch), self.head, row, pairs.key)[-bias.ndim :]
        size = bias.shape
        index = [
            np.broadcast_to(i if s > 1 else 0, len(pairs.key))
            for s, i in zip(size, at, strict=True)
        ]
        return np.ravel_multi_index(tuple(index), size)

    def added(self, pairs: Pairs) -> Floats:
        """Everything added to the score after the softcap: bias and ALiBi."""
        bias, total = self.problem.bias, np.zeros(len(pairs.key))
        if bias is not None:
            table = bias.table if isinstance(bias, RelativeBias) else bias
            total = total + table.ravel()[self.bias_index(pairs)]
        if self.problem.alibi_slopes is not None:
            distance = self.frame.q[pairs.row + pairs.rows.start] - self.frame.k[pairs.key]
            total = total - self.problem.alibi_slopes[self.head] * np.abs(distance)
        return total


@dataclass(frozen=True, eq=False)
class Problem:
    """Checked arguments: q (b, h, m, d), k (b, g, n, d), v (b, g, n, e), in the caller's types."""

    q: NDArray[Any]
    k: NDArray[Any]
    v: NDArray[Any]
    pattern: Pattern | Selectable
    leading_shape: tuple[int, ...]
    scale: float
    softcap: float | None
    bias: Floats | RelativeBias | None
    alibi_slopes: Floats | None
    sink_logits: Floats | None
    frames: list[Frame]
    _csr: dict[object, Csr[Any]] = field(default_factory=dict)

    def heads(self) -> Iterator[Head]:
        """All query heads of all batch rows."""
        for batch in range(self.q.shape[0]):
            for head in range(self.q.shape[1]):
                yield self.head(batch, head)

    def head(self, batch: int, head: int) -> Head:
        """One query head; heads and rows that see the same keys share their CSR array."""
        frame, pattern = self.frames[batch], self.pattern
        if isinstance(pattern, Selection):
            one = pattern.pattern(head, batch=batch, q_start=int(frame.q[0]) if len(frame.q) else 0)
        elif isinstance(pattern, Pattern):
            one = pattern.for_batch(batch).at(head)
        else:
            return Head(self, batch, head, frame, pattern.row_csr(frame, batch, head))
        key = one, frame.q.tobytes()[:8], frame.k.tobytes()
        if key not in self._csr:
            self._csr[key] = frame_csr(one, frame)
        return Head(self, batch, head, frame, self._csr[key])

    def leading(self, batch: int) -> tuple[int, ...]:
        """The batch row as an index of the caller's leading axes."""
        return tuple(int(i) for i in np.unravel_index(batch, self.leading_shape))

    def shaped(self, x: Floats) -> Floats:
        """(b, ...) as the caller's leading axes have it."""
        return x.reshape(*self.leading_shape, *x.shape[1:])
