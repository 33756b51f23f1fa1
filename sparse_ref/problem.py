"""One attention problem, checked: arrays in float64 and, for every head, the keys it sees.

What the oracle, its gradients and the error bound share is the reading of their arguments, here;
what they compute stands in their own modules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy import sparse

from ._arrays import Floats, Ints, array, floats, integer, integers
from .layouts.csr import frame_csr
from .patterns import Frame, Pattern
from .patterns.algebra import checked

Csr = sparse.csr_array
CHUNK = 2**18  # allowed pairs looked at together: memory is this many rows of q and k


@dataclass(frozen=True, eq=False)
class RelativeBias:
    """A bias that depends on the distance of key and query only (T5, LongT5, Swin's 1-D form).

    Parameters
    ----------
    table : float (width,) or (h, width)
        `table[..., left + t]` is added to the score of a key `t` positions after its query;
        distances past either end take the value at that end, as T5's last bucket does.
    left : int >= 0
        How many of the entries are for keys before the query.

    Source: Raffel et al. 2020 (arXiv:1910.10683).

    >>> RelativeBias(np.array([-1.0, 0.0]), left=1).at(np.array([-3, -1, 0, 5]), head=0)
    array([-1., -1.,  0.,  0.])
    """

    table: Any
    left: int

    def __post_init__(self) -> None:
        table = floats("table", self.table)
        if table.ndim not in (1, 2) or not table.shape[-1]:
            raise ValueError(f"table must have shape (width,) or (h, width), got {table.shape}")
        left = integer("left", self.left, 0, table.shape[-1] - 1)
        object.__setattr__(self, "table", table.astype(np.float64))
        object.__setattr__(self, "left", left)

    def index(self, distance: Ints, head: int) -> Ints:
        """Flat index into the table of the entry for each distance `k - p`."""
        width = self.table.shape[-1]
        column = np.clip(self.left + distance, 0, width - 1)
        return column + (head * width if self.table.ndim == 2 else 0)

    def at(self, distance: Ints, head: int) -> Floats:
        """The bias for each distance `k - p`."""
        return self.table.ravel()[self.index(distance, head)]  # type: ignore[no-any-return]


class Selectable(Protocol):
    """Anything that names the keys of each batch row and head (a content-based selection)."""

    def row_csr(self, frame: Frame, batch: int, head: int) -> Csr[Any]: ...


class Pairs(NamedTuple):
    """Some allowed pairs of one head: complete rows, in CSR order."""

    rows: slice
    indptr: Ints
    row: Ints  # of every pair, counted from rows.start
    key: Ints
    count: Floats  # multiplicity


@dataclass(frozen=True, eq=False)
class Head:
    """One query head of one batch row."""

    problem: Problem
    batch: int
    head: int
    frame: Frame
    csr: Csr[Any]

    @property
    def q(self) -> Floats:
        """Queries (m, d)."""
        return self.problem.q[self.batch, self.head]  # type: ignore[no-any-return]

    @property
    def k(self) -> Floats:
        """Keys (n, d) of this head's group."""
        return self.problem.k[self.batch, self.group]  # type: ignore[no-any-return]

    @property
    def v(self) -> Floats:
        """Values (n, e) of this head's group."""
        return self.problem.v[self.batch, self.group]  # type: ignore[no-any-return]

    @property
    def group(self) -> int:
        """The key/value head it reads: query heads share them in contiguous groups."""
        return self.head // (self.problem.q.shape[1] // self.problem.k.shape[1])

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
        return np.ravel_multi_index(  # type: ignore[no-any-return]
            tuple(np.where(s == 1, 0, i) + np.zeros_like(pairs.key) for s, i in zip(size, at)), size
        )

    def added(self, pairs: Pairs) -> Floats | float:
        """Everything added to the score after the softcap: bias and ALiBi."""
        bias, total = self.problem.bias, 0.0
        if bias is not None:
            table = bias.table if isinstance(bias, RelativeBias) else bias
            total = total + table.ravel()[self.bias_index(pairs)]
        if self.problem.alibi_slopes is not None:
            distance = self.frame.q[pairs.row + pairs.rows.start] - self.frame.k[pairs.key]
            total = total - self.problem.alibi_slopes[self.head] * np.abs(distance)
        return total


@dataclass(frozen=True, eq=False)
class Problem:
    """Checked arguments: q (b, h, m, d), k (b, g, n, d), v (b, g, n, e), all float64."""

    q: Floats
    k: Floats
    v: Floats
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
        if not isinstance(pattern, Pattern):
            return Head(self, batch, head, frame, pattern.row_csr(frame, batch, head))
        one = pattern.for_batch(batch).at(head)
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


def problem(
    q: object,
    k: object,
    v: object,
    pattern: object,
    *,
    scale: object = None,
    softcap: object = None,
    bias: object = None,
    alibi_slopes: object = None,
    sink_logits: object = None,
    kv_lengths: object = None,
    kv_positions: object = None,
    q_start: object = None,
) -> Problem:
    """Check every argument of attention once; what comes out is consistent."""
    arrays = [floats(name, x) for name, x in (("q", q), ("k", k), ("v", v))]
    shapes = [x.shape for x in arrays]
    for name, shape in zip("qkv", shapes, strict=True):
        if len(shape) < 3:
            raise ValueError(f"{name} must have at least 3 axes (heads, length, size), got {shape}")
        if shape[:-3] != shapes[0][:-3]:
            raise ValueError(f"{name} must have q's leading axes {shapes[0][:-3]}, got {shape[:-3]}")
    (h, m, d), (g, n, _), lead = shapes[0][-3:], shapes[1][-3:], shapes[0][:-3]
    if shapes[1][-1] != d or d < 1:
        raise ValueError(f"q and k must have one head size >= 1, got {d} and {shapes[1][-1]}")
    if shapes[2][-3:-1] != (g, n):
        raise ValueError(f"v must have k's heads and length {(g, n)}, got {shapes[2][-3:-1]}")
    if g < 1 or h % g:
        raise ValueError(f"k must have a number of heads that divides q's {h}, got {g}")
    b = math.prod(lead)
    if isinstance(pattern, Pattern) and pattern.batches not in (None, b):
        raise ValueError(f"pattern must be for a batch of {b}, got one for {pattern.batches}")
    if not isinstance(pattern, Pattern) and not hasattr(pattern, "row_csr"):
        checked(pattern)
    return Problem(
        *(np.asarray(x, np.float64).reshape(b, *x.shape[-3:]) for x in arrays),
        pattern=pattern,  # type: ignore[arg-type]
        leading_shape=lead,
        scale=d**-0.5 if scale is None else _number("scale", scale),
        softcap=None if softcap is None else _number("softcap", softcap, positive=True),
        bias=_bias(bias, (*lead, h, m, n)),
        alibi_slopes=_per_head("alibi_slopes", alibi_slopes, h),
        sink_logits=_per_head("sink_logits", sink_logits, h),
        frames=_frames(pattern, lead, m, n, kv_lengths, kv_positions, q_start),
    )


def _frames(
    pattern: object,
    lead: tuple[int, ...],
    m: int,
    n: int,
    kv_lengths: object,
    kv_positions: object,
    q_start: object,
) -> list[Frame]:
    """Positions of queries and key slots for every batch row."""
    if kv_lengths is not None and m < n and q_start is None:
        raise ValueError(
            "q_start is needed with kv_lengths when m < n: kv_lengths - m for a cache, "
            "n - m for right padding"
        )
    starts = _rows("q_start", n - m if q_start is None else q_start, lead)
    slots = np.broadcast_to(_positions(kv_positions, lead, n), (*lead, n))
    slots = slots.reshape(math.prod(lead), n)
    if kv_lengths is not None:
        lengths = _rows("kv_lengths", kv_lengths, lead)
        if lengths.size and (lengths.min() < 0 or lengths.max() > n):
            wrong = lengths[(lengths < 0) | (lengths > n)][0]
            raise ValueError(f"kv_lengths must be in [0, {n}], got {wrong}")
        slots = np.where(np.arange(n) < lengths[:, None], slots, -1)
    frame = pattern.frame if isinstance(pattern, Pattern) else _plain_frame
    return [frame(m, n, int(s), row) for s, row in zip(starts, slots, strict=True)]


def _plain_frame(m: int, n: int, start: int, slots: Ints) -> Frame:
    return Frame(np.arange(start, start + m), slots)


def _positions(kv_positions: object, lead: tuple[int, ...], n: int) -> Ints:
    if kv_positions is None:
        return np.arange(n)
    got = integers("kv_positions", kv_positions, ndim=tuple(range(1, len(lead) + 2)))
    return _broadcast("kv_positions", got, (*lead, n))


def _rows(name: str, value: object, lead: tuple[int, ...]) -> Ints:
    """One integer for every batch row."""
    got = integers(name, value, ndim=tuple(range(len(lead) + 1)))
    return _broadcast(name, got, lead).reshape(-1)


def _broadcast(name: str, got: Ints, shape: tuple[int, ...]) -> Ints:
    try:
        return np.broadcast_to(got, shape)
    except ValueError:
        raise ValueError(f"{name} must broadcast to {shape}, got {got.shape}") from None


def _number(name: str, value: object, *, positive: bool = False) -> float:
    got = array(name, value)
    if got.ndim or got.dtype.kind not in "fiu" or not np.isfinite(got):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    if positive and got <= 0:
        raise ValueError(f"{name} must be > 0 or None, got {value!r}")
    return float(got)


def _per_head(name: str, value: object, h: int) -> Floats | None:
    if value is None:
        return None
    got = floats(name, value)
    if got.shape != (h,):
        raise ValueError(f"{name} must have one entry for each of {h} heads, got {got.shape}")
    return got.astype(np.float64)


def _bias(value: object, shape: tuple[int, ...]) -> Floats | RelativeBias | None:
    if value is None:
        return None
    if isinstance(value, RelativeBias):
        if value.table.ndim == 2 and value.table.shape[0] != shape[-3]:
            raise ValueError(f"bias must have {shape[-3]} heads, got {value.table.shape[0]}")
        return value
    got = floats("bias", value)
    fits = got.ndim <= len(shape) and all(
        have in (1, want) for have, want in zip(got.shape[::-1], shape[::-1], strict=False)
    )
    if not fits or not got.ndim:
        raise ValueError(f"bias must broadcast to {shape}, got {got.shape}")
    return got.astype(np.float64)
