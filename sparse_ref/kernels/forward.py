"""Attention by the kernels: the same arguments and meaning as the oracle, float32 inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Ints
from sparse_ref.heads import Problem, Selectable
from sparse_ref.patterns import Frame, Pattern
from sparse_ref.problem import problem
from sparse_ref.results import Attention

from . import amx, copies, decode, rows, select_layouts, tiles
from .arguments import LOG2E, Scores, Slots, Tensors, scores, tensors
from .halves import rounded
from .plans import Part, Plan, cached, decode_part, working
from .room import PAIR_BYTES, Room, room_of
from .rows import row_layout
from .threads import run
from .validation import validate


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

    Computes in float32, in float64 if an input is float64. On a CPU with AMX tiles bfloat16 and
    float16 are multiplied on them, with weights rounded to that type (`error_bound` knows it as
    arithmetic "bfloat16" and "float16"); SPARSE_REF_AMX=0 turns that off. The
    result has the same bits for any number of threads and any split of the batch.

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
        small: then before anything is allocated that does not fit, layouts included.

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
    room = room_of(max_bytes)
    fixed = _results_and_inputs(given, kind)
    room.take(fixed)
    parts = list(launches(given, kind, plan, room=room))
    half = amx.kind_of(given.q.dtype, given.k.dtype, given.v.dtype)
    if room.bounded:
        Room(room.limit, fixed).need(_layouts_and_copies(given, kind, parts, half), at_least=False)
    out = np.empty((b, h, m, given.v.shape[-1]), dtype=kind)
    lse = np.empty((b, h, m), dtype=kind)
    into(out, lse, given, parts, half)
    return Attention(given.shaped(rounded(out, given.q.dtype)), given.shaped(lse))


class Launch(NamedTuple):
    """One part of a plan for some batch rows."""

    part: Part
    slots: Slots
    begins: bool  # nothing has been computed for its heads before


def into(
    out: NDArray[Any], lse: NDArray[Any], given: Problem, parts: list[Launch], half: Any = None
) -> None:
    """Write every element of out (b, h, m, e) and lse (b, h, m); `half` is what `amx` says."""
    x, how = tensors(given, out, lse), scores(given)
    (b, g), sizes = given.k.shape[:2], given.q.shape[-1] + given.v.shape[-1]
    for launch in parts:
        part, slots, begins = launch
        work = part.pairs * len(slots.batch) * sizes
        writes = begins and part.covers_rows
        if begins and not writes:
            reset(x, how, part.heads, slots)
        if part.kernel == "decode":
            decode.attend(x, part.layout, how, slots, work=work)
        elif _on_amx(part, half):
            amx.attend(half, given, x, part.layout, how, slots, writes, work=work)
        elif part.kernel == "tiles":
            layout, room = part.layout, _room(launch, g)
            finite = np.zeros((b, g, layout.indices.max(initial=-1) + 1), dtype=np.uint8)
            near = copies.Copies(*(np.empty(room * s, out.dtype) for s in x.sizes[4:].tolist()))
            if room:
                run(copies.collect, x, layout, slots, near, work=room * sizes)
            run(tiles.attend, x, layout, how, slots, finite, near, writes, work=work)
        elif part.kernel in select_layouts.KERNELS:
            run(select_layouts.KERNELS[part.kernel], x, part.layout, how, slots, work=work)
        else:
            run(rows.attend, x, part.layout, how, slots, writes, work=work)


def reset(x: Tensors, how: Scores, heads: tuple[int, ...], slots: Slots) -> None:
    """What a query has before it sees a key: nothing, or its head's sink."""
    for batch in slots.batch:
        x.out[batch, heads] = 0
        x.lse[batch, heads] = (how.sinks[[*heads]] / LOG2E)[:, None]


def launches(
    given: Problem,
    kind: np.dtype[Any],
    plan: Plan | None,
    *,
    few: bool = True,
    room: Room | None = None,
) -> Iterator[Launch]:
    """What is to be run: batch rows with one pattern and start share a plan.

    Key slots with positions other than 0, 1, 2, ... are listed row by row. Where queries are `few`
    all heads go to the decode kernel, which knows no gradients.
    """
    (_, h, m, d), (g, n), room = given.q.shape, given.k.shape[1:3], room or Room()
    if few and plan is None and given.frames and decode.suits(m, n):
        room.need(decode.nbytes(len(given.q), h, m, n, given.v.shape[-1], kind.itemsize))
        lists, slots = decode.of_problem(given)
        yield Launch(decode_part(lists, m), slots, begins=True)
        return
    together: dict[tuple[Pattern, int], list[tuple[int, int, int]]] = {}
    for batch, frame in enumerate(given.frames):
        found, start = _run(frame), int(frame.q[0]) if m else n
        if found is not None and select_layouts.listable(given, batch):
            slots = _slots([(batch, *found)], np.arange(n), start)
            for part in select_layouts.parts(given, batch, found[1], kind, room, together=few):
                yield Launch(part, slots, begins=True)
            continue
        if found is None or not isinstance(given.pattern, Pattern):
            if isinstance(given.pattern, Pattern):
                one = given.pattern.for_batch(batch)
                for head in range(one.heads if room.bounded else 0):
                    room.need_pairs(one.at(head), frame)
            heads = [given.head(batch, head).csr for head in range(h)]
            distinct = list({id(csr): csr for csr in heads}.values())
            layout_of = [next(i for i, x in enumerate(distinct) if x is csr) for csr in heads]
            room.take(PAIR_BYTES * sum(csr.nnz for csr in distinct))
            layout = row_layout(distinct, tuple(range(h)), layout_of)
            part = Part("rows", tuple(range(h)), "positions", layout, sum(x.nnz for x in heads))
            yield Launch(part, _slots([(batch, 0, n)], frame.k, start), begins=True)
        else:
            same = together.setdefault((given.pattern.for_batch(batch), start), [])
            same.append((batch, *found))
    for (one, start), rows_ in together.items():
        shape = (m, n, h, g, d, kind, start)
        mine = None if plan is None else _checked(plan, one, shape)
        if mine is None or (not few and mine.parts[0].kernel == "decode"):
            mine = cached(one, *shape, room=room)
        slots, begun = _slots(rows_, np.arange(n), start), set[int]()
        for part in mine.parts:
            yield Launch(part, slots, begins=part.heads[0] not in begun)
            begun.update(part.heads)


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
    validate(plan)
    return plan


def _on_amx(part: Part, half: Any) -> bool:
    return half is not None and part.kernel == "tiles" and amx.suits(part.layout)


def _results_and_inputs(given: Problem, kind: np.dtype[Any]) -> int:
    """Results, and inputs that have to be converted."""
    (b, h, m, _), e = given.q.shape, given.v.shape[-1]
    rounded_too = given.q.itemsize * (given.q.dtype != kind)
    results = b * h * m * (e * (kind.itemsize + rounded_too) + kind.itemsize)
    return int(
        results
        + kind.itemsize * sum(x.size for x in (given.q, given.k, given.v) if x.dtype != kind)
    )


def _layouts_and_copies(given: Problem, kind: np.dtype[Any], parts: list[Launch], half: Any) -> int:
    """Layouts, and keys that are copied."""
    (b, h, m, d), (_, g, n, e) = given.q.shape, given.v.shape
    near = max((_room(p, g) for p in parts), default=0) * (d + e) * kind.itemsize
    tiles = [amx.nbytes(given, p.part.layout, p.slots) for p in parts if _on_amx(p.part, half)]
    near = max([near, *tiles])
    if any(p.part.kernel == "decode" for p in parts):
        near = decode.nbytes(b, h, m, n, e, kind.itemsize)
    return int(near + sum({id(p.part): p.part.nbytes for p in parts}.values()))


def _room(launch: Launch, kv_heads: int) -> int:
    """How many keys a part copies before it runs."""
    if launch.part.kernel != "tiles":
        return 0
    return len(launch.slots.batch) * kv_heads * copies.room(launch.part.layout)
