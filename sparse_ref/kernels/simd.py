"""The vector instructions of the tile kernel, written as LLVM IR for the host's vector width.

Everything works on panels: rows of `width` numbers, one lane for each query. The intrinsics take
flat arrays with offsets, and read the element type from them. `plain` has the same functions as
loops; what both must do is tested in one place.

A register tile of ROWS x VECTORS sums, fed by one broadcast a row, fills the registers of the
machine: 6 x 2 of 16 with AVX2, 8 x 2 of 32 with AVX-512.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import math
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from ._jit import kernel
from .lanes import BYTES, LONG, VECTORS, Lanes, Loop, pointer

ROWS = 8 if BYTES == 64 else 6
DEPTH = 2  # steps of a register tile between two jumps
UNROLL = 2  # rows of a panel that `softmax` takes together
I = types.intp  # noqa: E741 - in signatures, as short as it is frequent


def register_tile(rows: int, *, add: bool) -> Any:
    """`rows` rows of C = A B, or of C = shrink * C + A^T B, held in registers.

    C and B are panels. Number i of row r of A is a[ao + r * step + i], transposed
    a[ao + r + i * step]; `shrink` has a number for each lane.
    """

    @intrinsic
    def tile(
        typing: Any, c: Any, co: Any, a: Any, ao: Any, step: Any, b: Any, bo: Any, k: Any,
        shrink: Any, so: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            lanes = Lanes(builder, c.dtype)
            kinds = signature.args
            to, left, right, factor = (
                pointer(context, builder, kinds[i], args[i], args[i + 1]) for i in (0, 2, 5, 8)
            )
            apart, count = args[4], args[7]
            columns = [n * lanes.count for n in range(VECTORS)]
            cells = [(r, n) for r in range(rows) for n in columns]
            sums = [lanes.all(0.0)] * len(cells)
            if add:
                shrinks = {n: lanes.load(factor, n) for n in columns}
                sums = [
                    builder.fmul(lanes.load(to, r * lanes.row + n), shrinks[n]) for r, n in cells
                ]
            whole = builder.and_(count, LONG(-DEPTH))
            for start, stop, depth in ((LONG(0), whole, DEPTH), (whole, count, 1)):
                loop = Loop(builder, start, stop, depth, sums)
                here = builder.gep(left, [builder.mul(loop.i, apart) if add else loop.i])
                there = builder.gep(right, [builder.mul(loop.i, LONG(lanes.row))])
                sums = list(loop.carried)
                for i in range(depth):
                    vectors = {n: lanes.load(there, i * lanes.row + n) for n in columns}
                    along, across = (
                        (builder.mul(apart, LONG(i)), LONG(1)) if add else (LONG(i), apart)
                    )
                    place = builder.gep(here, [along])
                    for r in range(rows):
                        offset = builder.mul(LONG(r), across)
                        one = lanes.splat(builder.load(builder.gep(place, [offset])))
                        for n in range(VECTORS):
                            cell = r * VECTORS + n
                            vector = vectors[columns[n]]
                            sums[cell] = lanes.call("fma", one, vector, sums[cell])
                sums = loop.end(sums)
            for (r, n), total in zip(cells, sums, strict=True):
                lanes.store(total, to, r * lanes.row + n)
            return context.get_dummy_value()

        return types.void(c, I, a, I, I, b, I, I, shrink, I), codegen

    return tile


@intrinsic
def softmax(typing: Any, s: Any, so: Any, rows: Any, m: Any, l: Any, r: Any, at: Any) -> Any:  # noqa: E741
    """One step of an online softmax: s <- exp2(s - new maximum), a panel of rows > 0, even.

    m, l, r have a number for each lane: the running maximum and sum, and the factor by which what
    was summed before has to shrink. -inf is a key not seen; NaN and +inf make the sum NaN.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = Lanes(builder, s.dtype)
        panel = pointer(context, builder, signature.args[0], args[0], args[1])
        maxima, sums, shrinks = (
            pointer(context, builder, signature.args[i], args[i], args[6]) for i in (3, 4, 5)
        )
        columns = [n * lanes.count for n in range(VECTORS)]
        cells = [(u, n) for u in range(UNROLL) for n in columns]

        before = [lanes.load(maxima, n) for n in columns]
        loop = Loop(builder, LONG(0), args[2], UNROLL, before)
        here = builder.gep(panel, [builder.mul(loop.i, LONG(lanes.row))])
        peak = dict(zip(columns, loop.carried, strict=True))
        for u, n in cells:
            peak[n] = lanes.larger(lanes.load(here, u * lanes.row + n), peak[n])
        peak = dict(zip(columns, loop.end([peak[n] for n in columns]), strict=True))

        shift, start = {}, []
        for n, old in zip(columns, before, strict=True):
            nothing = builder.fcmp_ordered("==", peak[n], lanes.all(-math.inf))
            shift[n] = builder.select(nothing, lanes.all(0.0), peak[n])
            shrink = lanes.exp2(builder.fsub(old, shift[n]))
            lanes.store(shrink, shrinks, n)
            lanes.store(peak[n], maxima, n)
            start.append(builder.fmul(lanes.load(sums, n), shrink))
        start += [lanes.all(0.0)] * (len(cells) - len(columns))
        loop = Loop(builder, LONG(0), args[2], UNROLL, start)
        here = builder.gep(panel, [builder.mul(loop.i, LONG(lanes.row))])
        totals = []
        for (u, n), total in zip(cells, loop.carried, strict=True):
            at_ = u * lanes.row + n
            weight = lanes.exp2(builder.fsub(lanes.load(here, at_), shift[n]))
            lanes.store(weight, here, at_)
            totals.append(builder.fadd(total, weight))
        totals = loop.end(totals)
        for i, n in enumerate(columns):
            total = totals[i]
            for more in totals[i + VECTORS :: VECTORS]:
                total = builder.fadd(total, more)
            lanes.store(total, sums, n)
        return context.get_dummy_value()

    return types.void(s, I, I, m, l, r, I), codegen


@intrinsic
def softcap(typing: Any, s: Any, so: Any, rows: Any, cap: Any) -> Any:
    """Replace s by cap * tanh(s / (2 log2(e))) on a panel of rows > 0.

    tanh is (1 - t) / (1 + t) with t = exp2(-|s|), and the sign of s.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = Lanes(builder, s.dtype)
        panel = pointer(context, builder, signature.args[0], args[0], args[1])
        height = lanes.splat(args[3])
        loop = Loop(builder, LONG(0), args[2], 1, [])
        here = builder.gep(panel, [builder.mul(loop.i, LONG(lanes.row))])
        for n in range(0, lanes.row, lanes.count):
            x = lanes.load(here, n)
            t = lanes.exp2(builder.fsub(lanes.all(-0.0), lanes.call("fabs", x)))
            one = lanes.all(1.0)
            size = builder.fdiv(builder.fsub(one, t), builder.fadd(one, t))
            lanes.store(lanes.call("copysign", builder.fmul(size, height), x), here, n)
        loop.end([])
        return context.get_dummy_value()

    return types.void(s, I, I, s.dtype), codegen


@intrinsic
def select(typing: Any, s: Any, so: Any, rows: Any, allowed: Any, at: Any) -> Any:
    """-inf where `allowed`, a panel of bytes, is 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = Lanes(builder, s.dtype)
        panel = pointer(context, builder, signature.args[0], args[0], args[1])
        flags = pointer(context, builder, signature.args[3], args[3], args[4])
        some = ir.VectorType(ir.IntType(8), lanes.count)
        loop = Loop(builder, LONG(0), args[2], 1, [])
        row = builder.mul(loop.i, LONG(lanes.row))
        here, there = builder.gep(panel, [row]), builder.gep(flags, [row])
        for n in range(0, lanes.row, lanes.count):
            address = builder.bitcast(builder.gep(there, [LONG(n)]), some.as_pointer())
            times = builder.load(address, align=1)
            seen = builder.icmp_unsigned("!=", times, ir.Constant(some, [0] * lanes.count))
            score = builder.select(seen, lanes.load(here, n), lanes.all(-math.inf))
            lanes.store(score, here, n)
        loop.end([])
        return context.get_dummy_value()

    return types.void(s, I, I, allowed, I), codegen


@intrinsic
def width(typing: Any, array: Any) -> Any:
    """The number of lanes of a panel with the array's element type."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return LONG(lanes_of(array.dtype.bitwidth))

    return I(array), codegen


def lanes_of(bits: int) -> int:
    """The number of lanes of a panel of numbers with so many bits."""
    return VECTORS * 8 * BYTES // bits


@intrinsic
def claim(typing: Any, counters: Any, worker: Any) -> Any:
    """The next task that no worker has: an atomic counter."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first = pointer(context, builder, signature.args[0], args[0], LONG(0))
        return builder.atomic_rmw("add", first, LONG(1), "monotonic")

    return I(counters, I), codegen


set_rows, set_4, set_2, set_1 = (register_tile(rows, add=False) for rows in (ROWS, 4, 2, 1))
add_rows, add_4, add_2, add_1 = (register_tile(rows, add=True) for rows in (ROWS, 4, 2, 1))


@kernel
def product(c, a, at, row, rows, b, bo, k):
    """C = A B: A has `rows` rows of k > 0 numbers, `row` apart from a[at] on; C and B panels."""
    w, r = width(c), 0  # type: ignore[call-arg,var-annotated]
    while rows - r >= ROWS:
        set_rows(c, r * w, a, at + r * row, row, b, bo, k, c, 0)
        r += ROWS
    if rows - r >= 4:
        set_4(c, r * w, a, at + r * row, row, b, bo, k, c, 0)
        r += 4
    if rows - r >= 2:
        set_2(c, r * w, a, at + r * row, row, b, bo, k, c, 0)
        r += 2
    if rows - r >= 1:
        set_1(c, r * w, a, at + r * row, row, b, bo, k, c, 0)


@kernel
def add_product(c, co, a, at, row, columns, b, k, shrink, so):
    """C = shrink * C + A^T B: A has k rows of `columns` numbers; `shrink` one for each lane."""
    w, r = width(c), 0  # type: ignore[call-arg,var-annotated]
    while columns - r >= ROWS:
        add_rows(c, co + r * w, a, at + r, row, b, 0, k, shrink, so)
        r += ROWS
    if columns - r >= 4:
        add_4(c, co + r * w, a, at + r, row, b, 0, k, shrink, so)
        r += 4
    if columns - r >= 2:
        add_2(c, co + r * w, a, at + r, row, b, 0, k, shrink, so)
        r += 2
    if columns - r >= 1:
        add_1(c, co + r * w, a, at + r, row, b, 0, k, shrink, so)
