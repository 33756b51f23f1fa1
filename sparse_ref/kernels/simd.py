"""The vector instructions of the tile kernel, written as LLVM IR for the host's vector width.

Everything works on panels: rows of `width` numbers, one lane for each query. The intrinsics take
flat arrays with offsets, and read the element type from them. `plain` has the same functions as
loops; what both must do is tested in one place.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import math
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from .lanes import BYTES, LONG, VECTORS, Lanes, Loop, pointer

UNROLL = 2  # rows of a panel that `softmax` takes together
I = types.intp  # noqa: E741 - in signatures, as short as it is frequent


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
def slopes(typing: Any, s: Any, so: Any, rows: Any, t: Any) -> Any:
    """Write the slope of `softcap` to t: 1 - tanh(s / (2 log2(e)))^2.

    It is 4 u / (1 + u)^2 with u = exp2(-|s|): nothing cancels.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = Lanes(builder, s.dtype)
        panel = pointer(context, builder, signature.args[0], args[0], args[1])
        to = pointer(context, builder, signature.args[3], args[3], LONG(0))
        loop = Loop(builder, LONG(0), args[2], 1, [])
        row = builder.mul(loop.i, LONG(lanes.row))
        here, there = builder.gep(panel, [row]), builder.gep(to, [row])
        for n in range(0, lanes.row, lanes.count):
            size = lanes.call("fabs", lanes.load(here, n))
            u = lanes.exp2(builder.fsub(lanes.all(-0.0), size))
            below = builder.fadd(lanes.all(1.0), u)
            above = builder.fmul(lanes.all(4.0), u)
            lanes.store(builder.fdiv(above, builder.fmul(below, below)), there, n)
        loop.end([])
        return context.get_dummy_value()

    return types.void(s, I, I, t), codegen


def weights(*, by_lane: bool) -> Any:
    """The step that turns scores into weights and their gradients, lse and mean by lane or row."""

    @intrinsic
    def step(
        typing: Any, s: Any, so: Any, rows: Any, g: Any, go: Any, lse: Any, mean: Any, at: Any
    ) -> Any:
        """P = s <- exp2(s - lse) and g <- P (g - mean), both 0 where s is -inf."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            lanes = Lanes(builder, s.dtype)
            kinds = signature.args
            panel, slope, logs, means = (
                pointer(context, builder, kinds[i], args[i], args[o])
                for i, o in ((0, 1), (3, 4), (5, 7), (6, 7))
            )
            columns = [n * lanes.count for n in range(VECTORS)]
            if by_lane:
                less = {n: (lanes.load(logs, n), lanes.load(means, n)) for n in columns}
            loop = Loop(builder, LONG(0), args[2], 1, [])
            row = builder.mul(loop.i, LONG(lanes.row))
            here, there = builder.gep(panel, [row]), builder.gep(slope, [row])
            if not by_lane:
                log, average = (
                    lanes.splat(builder.load(builder.gep(x, [loop.i]))) for x in (logs, means)
                )
                less = dict.fromkeys(columns, (log, average))
            for n in columns:
                score, nothing = lanes.load(here, n), lanes.all(0.0)
                seen = builder.fcmp_unordered("!=", score, lanes.all(-math.inf))
                weight = lanes.exp2(builder.fsub(score, less[n][0]))
                change = builder.fmul(weight, builder.fsub(lanes.load(there, n), less[n][1]))
                lanes.store(builder.select(seen, weight, nothing), here, n)
                lanes.store(builder.select(seen, change, nothing), there, n)
            loop.end([])
            return context.get_dummy_value()

        return types.void(s, I, I, g, I, lse, mean, I), codegen

    return step


weights_by_lane, weights_by_row = weights(by_lane=True), weights(by_lane=False)


@intrinsic
def select(typing: Any, s: Any, so: Any, rows: Any, allowed: Any, at: Any) -> Any:
    """-inf where `allowed`, a panel of bytes, is 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = Lanes(builder, s.dtype)
        panel = pointer(context, builder, signature.args[0], args[0], args[1])
        flags = pointer(context, builder, signature.args[3], args[3], args[4])
        some = ir.VectorType(ir.IntType(8), lanes.count)
        # A pointer that LLVM cannot know to be the same: it would make the choice a masked store,
        # which AMD's machines do in microcode, ten times slower.
        kind = ir.FunctionType(panel.type, [panel.type])
        target = builder.asm(kind, "", "=r,0", [panel], side_effect=False)
        loop = Loop(builder, LONG(0), args[2], 1, [])
        row = builder.mul(loop.i, LONG(lanes.row))
        here, there, to = (builder.gep(x, [row]) for x in (panel, flags, target))
        for n in range(0, lanes.row, lanes.count):
            address = builder.bitcast(builder.gep(there, [LONG(n)]), some.as_pointer())
            times = builder.load(address, align=1)
            seen = builder.icmp_unsigned("!=", times, ir.Constant(some, [0] * lanes.count))
            score = builder.select(seen, lanes.load(here, n), lanes.all(-math.inf))
            lanes.store(score, to, n)
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
