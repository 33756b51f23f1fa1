"""Matrix products on panels: a register tile, written as LLVM IR, and what is made of it.

A register tile of ROWS x VECTORS sums, fed by one broadcast a row, fills the registers of the
machine: 6 x 2 of 16 with AVX2, 8 x 2 of 32 with AVX-512.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from ._jit import inner
from .lanes import BYTES, LONG, VECTORS, Lanes, Loop, pointer
from .simd import I, width

ROWS = 8 if BYTES == 64 else 6
DEPTH = 2  # steps of a register tile between two jumps


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
            kinds = signature.args
            to, left, right, factor = (
                pointer(context, builder, kinds[i], args[i], args[i + 1]) for i in (0, 2, 5, 8)
            )
            function = function_of(builder.module, rows, add, c.dtype)
            builder.call(function, [to, left, args[4], right, args[7], factor])
            return context.get_dummy_value()

        return types.void(c, I, a, I, I, b, I, I, shrink, I), codegen

    return tile


def function_of(module: Any, rows: int, add: bool, dtype: Any) -> Any:
    """The LLVM function of a register tile; a call of its own, as inlining it compiles for long."""
    name = f"sparse_ref.{'add' if add else 'set'}.{rows}.{dtype}"
    if name in module.globals:
        return module.globals[name]
    element = (ir.FloatType() if dtype.bitwidth == 32 else ir.DoubleType()).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [element, element, LONG, element, LONG, element])
    function = ir.Function(module, kind, name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    to, left, apart, right, count, factor = function.args
    lanes = Lanes(builder, dtype)
    columns = [n * lanes.count for n in range(VECTORS)]
    cells = [(r, n) for r in range(rows) for n in columns]
    sums = [lanes.all(0.0)] * len(cells)
    if add:
        shrinks = {n: lanes.load(factor, n) for n in columns}
        sums = [builder.fmul(lanes.load(to, r * lanes.row + n), shrinks[n]) for r, n in cells]
    whole = builder.and_(count, LONG(-DEPTH))
    for start, stop, depth in ((LONG(0), whole, DEPTH), (whole, count, 1)):
        loop = Loop(builder, start, stop, depth, sums)
        here = builder.gep(left, [builder.mul(loop.i, apart) if add else loop.i])
        there = builder.gep(right, [builder.mul(loop.i, LONG(lanes.row))])
        sums = list(loop.carried)
        for i in range(depth):
            vectors = {n: lanes.load(there, i * lanes.row + n) for n in columns}
            along, across = (builder.mul(apart, LONG(i)), LONG(1)) if add else (LONG(i), apart)
            place = builder.gep(here, [along])
            for r in range(rows):
                offset = builder.mul(LONG(r), across)
                one = lanes.splat(builder.load(builder.gep(place, [offset])))
                for n in range(VECTORS):
                    cell = r * VECTORS + n
                    sums[cell] = lanes.call("fma", one, vectors[columns[n]], sums[cell])
        sums = loop.end(sums)
    for (r, n), total in zip(cells, sums, strict=True):
        lanes.store(total, to, r * lanes.row + n)
    builder.ret_void()
    return function


set_rows, set_4, set_2, set_1 = (register_tile(rows, add=False) for rows in (ROWS, 4, 2, 1))
add_rows, add_4, add_2, add_1 = (register_tile(rows, add=True) for rows in (ROWS, 4, 2, 1))


@inner
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


@inner
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
