"""Attention by the kernels: the same arguments and meaning as the oracle, float32 inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Ints, integer
from sparse_ref.heads import Problem, Selectable
from sparse_ref.patterns import Frame, Pattern
from sparse_ref.problem import problem
from sparse_ref.results import Attention

from . import rows, tiles
from .arguments import Slots, scores, tensors
from .plans import BLOCK, Part, Plan, cached, row_layout, working
from .threads import run


def attention(
    q: Any,
    k: Any,
    v: Any,
    pattern: Pattern | Selectable,
    *,
    scale: Any = None,
    softcap: Any = None,
    bias: Any = None,
    alibi_slopes: Any = None,
    sink_logits: Any = None,
    kv_lengths: Any = None,
    kv_positions: Any = None,
    q_start: Any = None,
    plan: Plan | None = None,
    max_bytes: int | None = None,
) -> Attention:
    """`sparse_ref.attention`, fast: same arguments, same meaning, q's type out.

    Computes in float32, in float64 if an input is float64. The result has the same bits for any
    number of threads and any split of the batch.

    Parameters
    ----------
    q, k, v, pattern, scale, ... : as `sparse_ref.attention` takes them
    plan : Plan, optional
        From `sparse_ref.kernels.plan`, for this pattern and these shapes; else one is made, and
        kept for the next call.
    max_bytes : int, optional
        The most memory that layouts, results and converted inputs may take together.

    Returns
    -------
    Attention(out, lse): out (..., h, m, e) in q's type; lse (..., h, m) in float32, or float64 if
    an input is float64.

    Raises
    ------
    TypeError, ValueError
        As `sparse_ref.attention`; also if `plan` is not for these arguments, or `max_bytes` too
        small: then before anything large is allocated, but the layouts.

    >>> from sparse_ref import Causal
    >>> x = np.ones((1, 2, 3), dtype=np.float32)
    >>> attention(x, x, np.eye(2, dtype=np.float32)[None], Causal()).out
    array([[[1. , 0. ],
            [0.5, 0.5]]], dtype=float32)
    """
    given = problem(
        q, k, v, pattern, scale=scale, softcap=softcap, bias=bias, alibi_slopes=alibi_slopes,
        sink_logits=sink_logits, kv_lengths=kv_lengths, kv_positions=kv_positions, q_start=q_start,
    )  # fmt: skip
    b, h, m, _ = given.q.shape
    kind = working(given.q.dtype, given.k.dtype, given.v.dtype)
    parts = list(launches(given, kind, plan))
    if max_bytes is not None:
        needed = _bytes(given, kind, parts)
        if needed > integer("max_bytes", max_bytes, high=2**63 - 1):
            raise ValueError(f"max_bytes must be at least the {needed} needed, got {max_bytes}")
    out = np.empty((b, h, m, given.v.shape[-1]), dtype=kind)
    lse = np.empty((b, h, m), dtype=kind)
    into(out, lse, given, parts)
    return Attention(given.shaped(out.astype(given.q.dtype, copy=False)), given.shaped(lse))


class Launch(NamedTuple):
    """One part of a plan for some batch rows."""

    part: Part
    slots: Slots


def into(out: NDArray[Any], lse: NDArray[Any], given: Problem, parts: list[Launch]) -> None:
    """Write every element of out (b, h, m, e) and lse (b, h, m)."""
    x, how = tensors(given, out, lse), scores(given)
    (b, g, n), sizes = given.k.shape[:3], given.q.shape[-1] + given.v.shape[-1]
    for part, slots in parts:
        work = part.pairs * len(slots.batch) * sizes
        if part.kernel == "tiles":
            finite = np.zeros((b, g, -(-n // BLOCK)), dtype=np.uint8)
            run(tiles.attend, x, part.layout, how, slots, finite, work=work)
        else:
            run(rows.attend, x, part.layout, how, slots, work=work)


def launches(given: Problem, kind: np.dtype[Any], plan: Plan | None) -> Iterator[Launch]:
    """What is to be run: batch rows with one pattern and start share a plan.

    Key slots with positions other than 0, 1, 2, ... are listed row by row.
    """
    (_, h, m, d), (g, n) = given.q.shape, given.k.shape[1:3]
    together: dict[tuple[Pattern, int], list[tuple[int, int, int]]] = {}
    for batch, frame in enumerate(given.frames):
        found, start = _run(frame), int(frame.q[0]) if m else n
        if found is None or not isinstance(given.pattern, Pattern):
            heads = [given.head(batch, head).csr for head in range(h)]
            distinct = list({id(csr): csr for csr in heads}.values())
            layout_of = [next(i for i, x in enumerate(distinct) if x is csr) for csr in heads]
            layout = row_layout(distinct, tuple(range(h)), layout_of)
            part = Part("rows", tuple(range(h)), "positions", layout, sum(x.nnz for x in heads))
            yield Launch(part, _slots([(batch, 0, n)], frame.k, start))
        else:
            same = together.setdefault((given.pattern.for_batch(batch), start), [])
            same.append((batch, *found))
    for (one, start), rows_ in together.items():
        shape = (m, n, h, g, d, kind, start)
        mine = cached(one, *shape) if plan is None else _checked(plan, one, shape)
        for part in mine.parts:
            yield Launch(part, _slots(rows_, np.arange(n), start))


def _run(frame: Frame) -> tuple[int, int] | None:
    """First slot and number of the slots in use, if these hold positions 0, 1, 2, ... in turn."""
    used = np.flatnonzero(frame.k >= 0)
    if not len(used):
        return 0, 0
    first, count = int(used[0]), len(used)
    plain = np.array_equal(frame.k[first : first + count], np.arange(count))
    return (first, count) if plain else None


def _slots(batches: list[tuple[int, int, int]], position: Ints, start: int) -> Slots:
    batch, first, count = (np.array(x, dtype=np.int64) for x in zip(*batches, strict=True))
    return Slots(batch, first, count, np.require(position, np.int64, ["C", "W"]), start)


def _checked(plan: Plan, pattern: Pattern, shape: tuple[Any, ...]) -> Plan:
    """The caller's plan, if it is for these arguments."""
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be a Plan, got {plan!r}")
    names = ("q_len", "kv_len", "heads", "kv_heads", "head_dim", "dtype", "q_start", "pattern")
    for name, want in zip(names, (*shape, pattern), strict=True):
        if (got := getattr(plan, name)) != want:
            raise ValueError(f"plan must be for {name} {want!r}, got one for {got!r}")
    return plan


def _bytes(given: Problem, kind: np.dtype[Any], parts: list[Launch]) -> int:
    """Layouts, results, and inputs that have to be converted."""
    b, h, m, _ = given.q.shape
    results = b * h * m * (given.v.shape[-1] * (kind.itemsize + given.q.itemsize) + kind.itemsize)
    inputs = sum(x.size for x in (given.q, given.k, given.v) if x.dtype != kind) * kind.itemsize
    return int(results + inputs + sum({id(p.part): p.part.nbytes for p in parts}.values()))
