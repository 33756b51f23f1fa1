"""Which kernel computes which heads, and the layouts they need: made once, used for many calls.

A plan depends on pattern, lengths, head sizes and type, never on batch, threads or clock, so that
the bits of a result do not either.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from sparse_ref._arrays import integer
from sparse_ref.patterns import Pattern
from sparse_ref.patterns.dense import frame_of
from sparse_ref.patterns.pattern import checked

from . import decode, lists
from .choices import choose
from .orders import BLOCK
from .room import Room
from .vectors import lanes_of
from .ways import Shape, Way

KEPT = 32  # plans that `cached` keeps


@dataclass(frozen=True, eq=False)
class Part:
    """Some pairs of some query heads, the kernel that computes them, and why that one.

    The parts of a head have no pair in common, and run one after another.
    """

    kernel: str  # "tiles", "rows" or "decode"
    heads: tuple[int, ...]
    reason: str
    layout: Any
    pairs: int  # allowed pairs of one batch row, all heads

    @property
    def covers_rows(self) -> bool:
        """Whether every query has a place in it, seen keys or not."""
        return not len(getattr(self.layout, "queries", ()))

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self.layout if isinstance(x, np.ndarray))


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """How `attention` computes a pattern: for each head one part or several, and their layouts.

    A part says what the cost model predicts of the ways not taken, as multiples of its own time.

    >>> from sparse_ref import Causal
    >>> plan(Causal(), 128, 128, heads=2, kv_heads=1, head_dim=64, dtype="float32")
    <Plan 128 x 128, heads 2:
      heads 0-1: tiles (in order, 3 blocks of 64 x 64, 8256 pairs; rows ...x)>
    """

    pattern: Pattern
    q_len: int
    kv_len: int
    q_start: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: np.dtype[Any]
    parts: tuple[Part, ...]

    def __repr__(self) -> str:
        lines = [f"heads {_ranges(p.heads)}: {p.kernel} ({p.reason})" for p in self.parts]
        return (
            "\n  ".join([f"<Plan {self.q_len} x {self.kv_len}, heads {self.heads}:", *lines]) + ">"
        )

    @property
    def nbytes(self) -> int:
        """Memory of the layouts."""
        return sum(part.nbytes for part in self.parts)


def plan(
    pattern: Pattern,
    q_len: int,
    kv_len: int,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: Any,
    q_start: int | None = None,
) -> Plan:
    """Choose a kernel for every head of a pattern, and lay its keys out for it.

    Parameters
    ----------
    pattern : Pattern
        Of one batch row: for a `PerBatch`, plan `pattern.for_batch(i)`.
    q_len, kv_len : int >= 0
    heads, kv_heads, head_dim : int
        The shape of q and k.
    dtype : of the computation: float64, or anything narrower for float32
    q_start : int, optional
        Absolute position of the first query; default kv_len - q_len.

    Returns
    -------
    Plan, which `attention` takes for any batch of these shapes.
    """
    if checked(pattern).batches is not None:
        raise ValueError(f"pattern must be one batch row's, as for_batch(0), got {pattern!r}")
    m, n = integer("q_len", q_len), integer("kv_len", kv_len)
    h, g = integer("heads", heads, 1), integer("kv_heads", kv_heads, 1)
    d = integer("head_dim", head_dim, 1)
    start = n - m if q_start is None else integer("q_start", q_start, None)
    shape = m, n, h, g, d, working(dtype), start
    if not decode.suits(m, n):
        return many(pattern, *shape)
    every = [[pattern.at(head) for head in range(h)]]
    layout = lists.layout(every, [frame_of(pattern, m, n, start)], g)
    return Plan(pattern, m, n, start, h, g, d, shape[5], (decode_part(layout, m),))


def many(pattern: Pattern, *shape: Any, room: Room | None = None) -> Plan:
    """The plan of (m, n, heads, kv_heads, head_dim, dtype, q_start), whatever m is."""
    room = room or Room()
    m, n, h, g, d, kind, start = shape
    same: OrderedDict[Pattern, list[int]] = OrderedDict()
    for head in range(h):
        same.setdefault(pattern.at(head), []).append(head)
    lanes = lanes_of(8 * kind.itemsize)
    parts: list[Part] = []
    for one, of in same.items():
        parts += _parts(one, Shape(m, n, start, tuple(of), d, kind.itemsize, lanes), room)
    return Plan(pattern, m, n, start, h, g, d, kind, tuple(parts))


def decode_part(layout: Any, m: int) -> Part:
    """The one part of few queries: all heads, the keys split into chunks."""
    (rows, heads), number = layout.list_of.shape, lists.pairs(layout, m)
    words = f"at most {decode.MOST} queries, at least {lists.CHUNK} keys; {number} pairs"
    return Part("decode", tuple(range(heads)), words, layout, number // rows)


def working(*dtypes: Any) -> np.dtype[Any]:
    """What the kernels compute in: float64 if any input is, else float32."""
    return np.dtype(np.float64 if any(np.dtype(x) == np.float64 for x in dtypes) else np.float32)


_plans: OrderedDict[Any, Plan] = OrderedDict()
_lock = Lock()


def cached(pattern: Pattern, *shape: Any, room: Room | None = None) -> Plan:
    """`many` for (m, n, heads, kv_heads, head_dim, dtype, q_start); the last few are kept."""
    key = pattern, *shape
    with _lock:
        if key in _plans:
            _plans.move_to_end(key)
            return _plans[key]
    new = many(pattern, *shape, room=room)
    with _lock:
        _plans[key] = new
        while len(_plans) > KEPT:
            _plans.popitem(last=False)
    return new


def _parts(one: Pattern, shape: Shape, room: Room) -> list[Part]:
    """The parts of the heads that share a head-free pattern."""
    parts: list[Part] = []
    for way in choose(one, shape, room):
        layout, pairs = way.make()
        if pairs or not parts:
            words = _reason(way, layout, pairs)
            parts.append(Part(way.kernel, shape.heads, words, layout, pairs * len(shape.heads)))
            room.take(parts[-1].nbytes)
    return parts


def _reason(way: Way, layout: Any, pairs: int) -> str:
    """What was chosen, and how long everything else would take, as predicted."""
    size = f"{pairs} pairs"
    if way.kernel == "tiles":
        size = f"{way.order}, {len(layout.indices)} blocks of {BLOCK} x {BLOCK}, {size}"
    longer = (f"{name} {_times(other)}" for name, other in way.others)
    return "; ".join([size, *longer])


def _times(longer: float) -> str:
    return f"{longer:.1f}x" if np.isfinite(longer) else "given up"


def _ranges(heads: tuple[int, ...]) -> str:
    """0, 1, 2, 5 as 0-2, 5."""
    runs: list[list[int]] = []
    for head in heads:
        if runs and runs[-1][-1] == head - 1:
            runs[-1][1:] = [head]
        else:
            runs.append([head])
    return ", ".join("-".join(map(str, run)) for run in runs)
