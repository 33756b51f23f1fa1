"""Products with keys and values that lie scattered, written as LLVM IR: columns in the lanes.

Either four rows take each key, or one row takes four keys; four sums are then folded together, not
one by one.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from .lanes import INT, LONG, Lanes, Loop, pointer
from .simd import I

TOGETHER = 4  # sums of `dots` that are folded together
SUMS = 8  # vectors that `sums` holds in registers


def _intrinsic(name: str, body: Any, rows: int) -> Any:
    """(x, xo, a, ao, apart, y, yo, size, row, keys, first, stop) as a call of an LLVM function."""

    @intrinsic
    def call(
        typing: Any, x: Any, xo: Any, a: Any, ao: Any, apart: Any, y: Any, yo: Any, size: Any,
        row: Any, keys: Any, first: Any, stop: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            to, left, right = (
                pointer(context, builder, kinds[i], args[i], args[i + 1]) for i in (0, 2, 5)
            )
            slots = pointer(context, builder, kinds[9], args[9], LONG(0))
            given = [to, left, right, args[4], args[7], args[8], slots, args[10], args[11]]
            full = f"sparse_ref.{name}.{rows}.{x.dtype}.{keys.dtype}"
            function = builder.module.globals.get(full)
            if function is None:
                kind = ir.FunctionType(ir.VoidType(), [one.type for one in given])
                function = ir.Function(builder.module, kind, full)
                function.linkage = "linkonce_odr"
                function.attributes.add("noinline")
                inside = ir.IRBuilder(function.append_basic_block("entry"))
                body(Lanes(inside, x.dtype), rows, *function.args)
                inside.ret_void()
            builder.call(function, given)
            return context.get_dummy_value()

        return types.void(x, I, a, I, I, y, I, I, I, keys, I, I), codegen

    return call


def _dots(
    lanes: Lanes, rows: int, to: Any, left: Any, right: Any, apart: Any, size: Any, row: Any,
    slots: Any, first: Any, stop: Any,
) -> None:  # fmt: skip
    b, many = lanes.b, TOGETHER // rows
    whole = b.and_(size, LONG(-lanes.count))
    starts = [b.gep(left, [b.mul(size, LONG(r))]) for r in range(rows)]
    each = Loop(b, first, stop, many, [])
    last = b.sub(stop, LONG(1))
    places = [b.add(each.i, LONG(u)) for u in range(many)]
    inside = [b.select(b.icmp_signed("<", i, last), i, last) for i in places]
    keys = [_at(b, right, slots, i, row) for i in inside]
    cells = [(r, u) for r in range(rows) for u in range(many)]
    loop = Loop(b, LONG(0), whole, lanes.count, [lanes.all(0.0)] * TOGETHER)
    a, y = ([lanes.load(x, loop.i) for x in side] for side in (starts, keys))
    sums = [
        lanes.call("fma", a[r], y[u], total)
        for (r, u), total in zip(cells, loop.carried, strict=True)
    ]
    loop = Loop(b, whole, size, 1, _folded(lanes, loop.end(sums)))
    a, y = ([b.load(b.gep(x, [loop.i])) for x in side] for side in (starts, keys))
    sums = [
        b.fadd(total, b.fmul(a[r], y[u])) for (r, u), total in zip(cells, loop.carried, strict=True)
    ]
    for (r, u), total in zip(cells, loop.end(sums), strict=True):
        b.store(total, b.gep(to, [b.add(b.mul(apart, LONG(r)), places[u])]))
    each.end([])


def _at(b: Any, values: Any, slots: Any, i: Any, row: Any) -> Any:
    """Where the key in slot number i begins."""
    slot = b.load(b.gep(slots, [i]))
    if slot.type.width < LONG.width:
        slot = b.sext(slot, LONG)
    return b.gep(values, [b.mul(slot, row)])


def _folded(lanes: Lanes, sums: list[Any]) -> list[Any]:
    """The sum of the lanes of each of four vectors."""
    segment = lanes.count  # lanes that belong to one sum
    while segment > 1:
        pairs = zip(sums[::2], sums[1::2], strict=True) if len(sums) > 1 else [(sums[0], None)]
        sums = [_halved(lanes.b, x, y, segment) for x, y in pairs]
        segment //= 2
    return [lanes.b.extract_element(x, INT(i)) for x in sums for i in range(x.type.count)]


def _halved(b: Any, x: Any, y: Any, segment: int) -> Any:
    """First halves of all segments plus second halves, of one vector or of two in a row."""
    size = x.type.count * (1 if y is None else 2)
    lower = [i for i in range(size) if i % segment < segment // 2]
    places = (lower, [i + segment // 2 for i in lower])
    masks = (ir.Constant(ir.VectorType(INT, len(lower)), place) for place in places)
    other = ir.Constant(x.type, ir.Undefined) if y is None else y
    low, high = (b.shuffle_vector(x, other, mask) for mask in masks)
    return b.fadd(low, high)


def _sums(
    lanes: Lanes, rows: int, to: Any, left: Any, right: Any, apart: Any, size: Any, row: Any,
    slots: Any, first: Any, stop: Any,
) -> None:  # fmt: skip
    b, begin, most = lanes.b, LONG(0), SUMS // rows
    starts = [b.gep(to, [b.mul(size, LONG(r))]) for r in range(rows)]
    steps = {most * lanes.count, most // 2 * lanes.count, lanes.count, 1}
    for step in sorted(steps, reverse=True):  # so many columns together; the last ones singly
        whole = b.and_(size, LONG(-step))
        across = Loop(b, begin, whole, step, [])
        places = range(0, step, lanes.count)
        cells = [(r, n) for r in range(rows) for n in places]
        at = [b.gep(starts[r], [b.add(across.i, LONG(n))]) for r, n in cells]
        each = Loop(b, first, stop, 1, [b.load(x) if step == 1 else lanes.load(x) for x in at])
        here = b.gep(_at(b, right, slots, each.i, row), [across.i])
        near = {n: b.load(here) if step == 1 else lanes.load(here, n) for n in places}
        weights = [b.load(b.gep(left, [b.add(b.mul(apart, LONG(r)), each.i)])) for r in range(rows)]
        if step == 1:
            totals = [
                b.fadd(total, b.fmul(weights[r], near[n]))
                for (r, n), total in zip(cells, each.carried, strict=True)
            ]
        else:
            splats = [lanes.splat(one) for one in weights]
            totals = [
                lanes.call("fma", splats[r], near[n], total)
                for (r, n), total in zip(cells, each.carried, strict=True)
            ]
        for x, total in zip(at, each.end(totals), strict=True):
            b.store(total, x) if step == 1 else lanes.store(total, x)
        across.end([])
        begin = whole


# x[r apart + j] = the product of row r of a, of `size` numbers, with the key in slot keys[j]; for
# one row up to three more numbers behind the last one are written.
dots_4, dots_1 = (_intrinsic("dots", _dots, rows) for rows in (4, 1))
# Rows of x, of `size` numbers, += a[r apart + j] times the value in slot keys[j].
sums_4, sums_1 = (_intrinsic("sums", _sums, rows) for rows in (4, 1))
