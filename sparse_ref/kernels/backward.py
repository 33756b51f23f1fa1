"""Gradients by the kernels: the same arguments and meaning as the oracle, float32 inside."""

from __future__ import annotations

import math
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Floats, Ints
from sparse_ref.heads import Problem, Selectable
from sparse_ref.patterns import Pattern
from sparse_ref.problem import cotangent, problem
from sparse_ref.results import Attention, Gradients

from . import bias_gradient, row_gradients, tile_gradients
from .adjoint import Adjoint, means
from .arguments import converted, flat, scores, tensors
from .forward import Launch, into, launches
from .halves import rounded
from .plans import Part, Plan, working
from .room import Room, room_of
from .rows import TASK
from .threads import run


def attention_vjp(
    q: Any,
    k: Any,
    v: Any,
    pattern: Pattern | Selectable,
    dout: Any,
    *,
    scale: Any = None,
    softcap: Any = None,
    bias: Any = None,
    alibi_slopes: Any = None,
    sink_logits: Any = None,
    kv_lengths: Any = None,
    kv_positions: Any = None,
    q_start: Any = None,
    dlse: Any = None,
    plan: Plan | None = None,
    max_bytes: int | None = None,
    forward: Attention | None = None,
) -> Gradients:
    """`sparse_ref.attention_vjp`, fast: same arguments, same meaning, the types of q, k and v out.

    Computes in float32, in float64 if an input is float64. The result has the same bits for any
    number of threads; dq, dk and dv also for any split of the batch.

    Parameters
    ----------
    q, k, v, pattern, dout, scale, ..., dlse : as `sparse_ref.attention_vjp` takes them
    plan : Plan, optional
        From `sparse_ref.kernels.plan`, for this pattern and these shapes; else one is made, and
        kept for the next call.
    max_bytes : int, optional
        The most memory that layouts, results, sums and converted inputs may take together.
    forward : Attention, optional
        What `sparse_ref.kernels.attention` returned for the same arguments, which then is not
        computed again. The same gradients, to the bit, where `out` was not rounded to float16 or
        bfloat16, there are no few queries of a long cache (`decode`), and the pattern is no
        selection; else within the same `error_bound_vjp`, whose D = dout . out may be that of a
        rounded out. That `forward` is of these arguments is taken on trust, but for shapes and
        types.

    Returns
    -------
    Gradients(dq, dk, dv, dbias, dsink_logits): dq, dk, dv in the types of q, k, v; dbias in the
    bias's own shape (a RelativeBias: its table's) and dsink_logits (h,) in float32, or float64 if
    an input is float64.

    Raises
    ------
    TypeError, ValueError
        As `sparse_ref.attention_vjp`; also if `plan` or `forward` is not for these arguments, or
        `max_bytes` too small: then before anything is allocated that does not fit, layouts
        included.

    >>> from sparse_ref import Causal
    >>> one = np.ones((1, 2, 1), dtype=np.float32)
    >>> attention_vjp(one, one, one, Causal(), one).dv[..., 0].round(5)
    array([[1.5, 0.5]], dtype=float32)
    """
    given = problem(
        q, k, v, pattern, scale=scale, softcap=softcap, bias=bias, alibi_slopes=alibi_slopes,
        sink_logits=sink_logits, kv_lengths=kv_lengths, kv_positions=kv_positions, q_start=q_start,
    )  # fmt: skip
    (b, h, m, _), e = given.q.shape, given.v.shape[-1]
    above = cotangent("dout", dout, given, (h, m, e))
    above_lse = None if dlse is None else cotangent("dlse", dlse, given, (h, m))
    inputs = [x for x in (given.q, given.k, given.v, above, above_lse) if x is not None]
    kind = working(*(x.dtype for x in inputs))
    known = None if forward is None else _checked(forward, given, kind)
    room = room_of(max_bytes)
    fixed = _bytes(given, kind, inputs, known)
    room.take(fixed)
    made = list(launches(given, kind, plan, few=False, room=room))
    room.need(sum(one.part.nbytes for one in made))  # by keys they take as much again
    passes = [Passes(one, both(one.part, given)) for one in made]
    if room.bounded:
        Room(room.limit, fixed).need(_layouts(passes), at_least=False)
    if above_lse is None:
        above_lse = np.zeros((b, h, m), dtype=kind)
    above_lse = above_lse.astype(kind, copy=False)
    dq, dk, dv, dbias, dsink = gradients(given, passes, above, above_lse, known)
    pairs = ((dq, given.q), (dk, given.k), (dv, given.v))
    dq, dk, dv = (given.shaped(rounded(x, like.dtype)) for x, like in pairs)
    return Gradients(dq, dk, dv, dbias, dsink)


class Transposed(NamedTuple):
    """A part's layout by keys, and the key/value heads it is for."""

    layout: Any
    groups: Ints


class Passes(NamedTuple):
    """A launch, and what the pass over keys needs."""

    launch: Launch
    by_key: Transposed


_transposed: WeakKeyDictionary[Part, Transposed] = WeakKeyDictionary()


def both(part: Part, given: Problem) -> Transposed:
    """The layout of a part by keys, which lives as long as the part."""
    found = _transposed.get(part)
    if found is None:
        (g, n), h = given.k.shape[1:3], given.q.shape[1]
        module = tile_gradients if part.kernel == "tiles" else row_gradients
        groups = np.unique(np.array(part.heads, dtype=np.int64) // (h // g))
        found = _transposed[part] = Transposed(module.transposed(part.layout, n), groups)
    return found


def gradients(
    given: Problem,
    passes: list[Passes],
    above: NDArray[Any],
    above_lse: NDArray[Any],
    known: Attention | None,
) -> tuple[Any, ...]:
    """Everything in the type of above_lse, the batch as one axis."""
    kind, m = above_lse.dtype, given.q.shape[2]
    out, lse = known or _forward(given, passes, kind)
    x, how = tensors(given, out, lse), scores(given)
    dout, strides = flat(above, kind)
    dq, dk, dv = (np.zeros(like.shape, dtype=kind) for like in (given.q, given.k, given.v))
    dbias = np.zeros(bias_gradient.shape_of_sums(given), dtype=kind)
    y = Adjoint(
        dout, strides, np.empty_like(lse), np.empty_like(lse), given.scale, dq, dk, dv,
        dbias.reshape(-1), bias_gradient.strides(dbias),
    )  # fmt: skip
    run(means, x, dout, strides, above_lse, y.lse, y.mean, work=out.size)
    for launch, by_key in passes:
        part, slots = launch.part, launch.slots
        module: Any = tile_gradients if part.kernel == "tiles" else row_gradients
        blocks = part.layout.indptr.shape[1] - 1 if part.kernel == "tiles" else -(-m // TASK)
        box = bias_gradient.box(given, slots, len(part.heads), blocks)
        work = part.pairs * len(slots.batch) * (given.q.shape[-1] + given.v.shape[-1])
        run(module.queries, x, y, part.layout, how, slots, box, work=2 * work)
        run(module.keys, x, y, by_key.layout, how, slots, by_key.groups, work=2 * work)
    dsink = _sink_gradient(given, y, lse, above_lse)
    return dq, dk, dv, bias_gradient.gathered_up(given, dbias), dsink


def _forward(given: Problem, passes: list[Passes], kind: np.dtype[Any]) -> Attention:
    shape = given.q.shape[:3]
    out, lse = np.empty((*shape, given.v.shape[-1]), kind), np.empty(shape, kind)
    into(out, lse, given, [one.launch for one in passes])
    return Attention(out, lse)


def _checked(forward: Attention, given: Problem, kind: np.dtype[Any]) -> Attention:
    """The caller's forward pass as the kernels read it: (b, h, m, e) and (b, h, m)."""
    if not isinstance(forward, Attention):
        raise TypeError(f"forward must be an Attention(out, lse), got {type(forward).__name__}")
    shape, shaped = (*given.q.shape[:3], given.v.shape[-1]), []
    for name, got, dtype in (("out", forward.out, given.q.dtype), ("lse", forward.lse, kind)):
        x, size = np.asarray(got), shape[: 4 if name == "out" else 3]
        wanted = (*given.leading_shape, *size[1:])
        if x.shape != wanted or x.dtype != dtype:
            raise ValueError(
                f"forward.{name} must be {dtype} of shape {wanted}, as attention returns it for "
                f"these arguments, got {x.dtype} of shape {x.shape}"
            )
        shaped.append(np.require(converted(x.reshape(size), kind), requirements=["C", "A", "W"]))
    return Attention(*shaped)


def _sink_gradient(
    given: Problem, y: Adjoint, lse: NDArray[Any], above_lse: NDArray[Any]
) -> Floats | None:
    """A sink has no value: its gradient is P_sink (dlse - D), summed over batch and queries."""
    if given.sink_logits is None:
        return None
    # where D is NaN, so is dq; but for rows that see no key: their D is 0
    blind = np.isnan(y.mean) & (y.dq[..., 0] == 0)
    rest = np.where(blind, above_lse, -y.mean).astype(np.float64)
    sinks = given.sink_logits[:, None]
    with np.errstate(invalid="ignore"):
        share = np.where(np.isfinite(sinks), np.exp(sinks - lse), 0)
        each = np.where(np.isfinite(sinks), share * rest, 0).sum(axis=2)
    return np.asarray(each.sum(axis=0).astype(lse.dtype))


def _bytes(
    given: Problem, kind: np.dtype[Any], inputs: list[NDArray[Any]], known: Attention | None
) -> int:
    """Results and sums, and inputs that have to be converted."""
    (b, h, m, _), e = given.q.shape, given.v.shape[-1]
    out = e + 1 if known is None else e * (given.q.dtype != kind)
    sums = b * h * m * (out + 3) + math.prod(bias_gradient.shape_of_sums(given))
    each = [given.q, given.k, given.v]
    sums += sum(x.size for x in each) + sum(x.size for x in inputs if x.dtype != kind)
    return int(sums * kind.itemsize + sum(x.nbytes for x in each if x.dtype != kind))


def _layouts(passes: list[Passes]) -> int:
    """Layouts by queries and by keys."""
    layouts = {id(one.launch.part): one.launch.part.nbytes for one in passes}
    layouts |= {id(one.by_key): _nbytes(one.by_key.layout) for one in passes}
    return sum(layouts.values())


def _nbytes(layout: Any) -> int:
    return sum(x.nbytes for x in layout if isinstance(x, np.ndarray))
